"""CIFAR-10 and CIFAR-100 from their authors' Python archives (Krizhevsky 2009)."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jsharp._files import read_bytes
from jsharp.data import _archives, _pickles
from jsharp.data._options import LabelledSource
from jsharp.data.dataset import Dataset

_SIDE = 32


class _Layout(NamedTuple):
  archive: str
  files: dict[str, tuple[str, ...]]  # By split.
  names_file: str
  labels: str
  names: str


_LAYOUTS = {
  10: _Layout(
    "cifar-10-python.tar.gz",
    {
      "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
      "test": ("test_batch",),
    },
    "batches.meta",
    "labels",
    "label_names",
  ),
  100: _Layout(
    "cifar-100-python.tar.gz",
    {"train": ("train",), "test": ("test",)},
    "meta",
    "fine_labels",
    "fine_label_names",
  ),
}


@_archives.archives_within_named()
def load(data_dir: str | os.PathLike, *, num_classes: int = 10) -> dict[str, Dataset]:
  """The images of `cifar-10-python.tar.gz` or `cifar-100-python.tar.gz`.

  The files are pickles, which can contain code; none of it is executed, and anything
  but arrays of numbers and text is rejected.

  Args:
    data_dir: the archive, or a directory with the archive or its contents
      (`data_batch_1`, ... or `train`, `test`, `meta`), at any depth.
    num_classes: 10, or 100 for CIFAR-100 with its fine labels.

  Returns:
    `{"train", "test"}`, uint8 images `[num_images, 32, 32, 3]`, by class in the order
    of the labels; the published files have 50,000 and 10,000.

  Raises:
    FileNotFoundError: if `data_dir` does not exist or a file is missing.
    ValueError: if a file is damaged, unsafe or of another dataset, or a label has no
      name.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  return {
    split: Dataset.from_class_arrays(classes, split=split)
    for split, classes in class_arrays(data_dir, num_classes=num_classes).items()
  }


def class_arrays(
  data_dir: str | os.PathLike, *, num_classes: int = 10
) -> dict[str, dict[str, np.ndarray]]:
  """The images of each class of "train" and of "test", in the order of the labels.

  Args:
    data_dir: as for `load`.
    num_classes: as for `load`.

  Returns:
    Split -> class -> uint8 `[num_images, 32, 32, 3]`.

  Raises:
    FileNotFoundError: as for `load`.
    ValueError: as for `load`.

  Example:
    >>> class_arrays("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  if num_classes not in _LAYOUTS:
    raise ValueError(f"num_classes={num_classes} must be 10 or 100.")
  layout = _LAYOUTS[num_classes]
  contents = _contents(data_dir, layout)
  place, meta = contents[layout.names_file]
  names = _texts(place, layout.names, meta, num_classes)
  found = {}
  for split, files in layout.files.items():
    parts = [_part(*contents[file], layout, num_classes) for file in files]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    found[split] = {name: images[labels == i] for i, name in enumerate(names)}
  return found


def _contents(data_dir: Any, layout: _Layout) -> dict[str, tuple[str, dict]]:
  """The location (for errors) and content of every needed file, by name."""
  wanted = {
    layout.names_file,
    *(name for part in layout.files.values() for name in part),
  }
  root, sources = _archives.given(data_dir)
  if not root.exists():
    raise FileNotFoundError(f"data_dir={data_dir} does not exist.")
  found: dict[str, tuple[str, dict]] = {}
  for name, place, data in _files(sources, wanted):
    if name in found:
      raise ValueError(f"{place} and {found[name][0]} are two of {name}: remove one.")
    content = _pickles.read(io.BytesIO(data), len(data), where=place)
    if not isinstance(content, dict):
      raise ValueError(f"{place} holds a {type(content).__name__}, not a dict.")
    found[name] = place, {_text(key): value for key, value in content.items()}
  missing = sorted(wanted - found.keys())
  if missing:
    raise FileNotFoundError(
      f"{root} lacks {', '.join(missing)}: put {layout.archive} or what is in it there."
    )
  return found


def _files(
  sources: list[pathlib.Path], wanted: set[str]
) -> Iterator[tuple[str, str, bytes]]:
  """Name, location and content; if there are loose files, archives are not read."""
  loose = [file for file in sources if file.name in wanted]
  for file in loose:
    yield file.name, str(file), read_bytes(file, most=_archives.LARGEST_MEMBER)
  if loose:
    return
  for file in sources:
    if _archives.is_archive(file):
      for name, data in _archives.members(file, lambda name: _last(name) in wanted):
        yield _last(name), f"{file}: {name}", data


def _last(name: str) -> str:
  return name.rpartition("/")[2]


def _part(
  place: str, content: dict, layout: _Layout, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels of one file."""
  pixels = content.get("data")
  dtype, shape = getattr(pixels, "dtype", None), getattr(pixels, "shape", ())
  if pixels is None or dtype != np.uint8 or shape[1:] != (3 * _SIDE**2,):
    raise ValueError(
      f"{place}: data is {dtype} of shape {list(shape)}, not uint8 of shape "
      f"[num_images, {3 * _SIDE**2}]; this is not a file of CIFAR's Python version."
    )
  if layout.labels not in content:
    raise ValueError(
      f"{place} has no {layout.labels}; choose the dataset that the file belongs to."
    )
  labels = _pickles.whole_numbers(
    place, layout.labels, content[layout.labels], len(pixels)
  )
  if len(labels) != len(pixels):
    raise ValueError(f"{place} has {len(labels)} labels for {len(pixels)} images.")
  if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
    raise ValueError(
      f"{place} has labels from {labels.min()} to {labels.max()}, outside of the "
      f"{num_classes} classes."
    )
  images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
  return images, labels


def _texts(place: str, key: str, content: dict, count: int) -> list[str]:
  names = content.get(key)
  if not isinstance(names, list) or not all(isinstance(n, str | bytes) for n in names):
    raise ValueError(f"{place} has no list {key} of names.")
  texts = [str(_text(name)) for name in names]
  if len(texts) != count or len(set(texts)) != count:
    raise ValueError(
      f"{place}: {key} has {len(texts)} names, {len(set(texts))} of them different, "
      f"not {count}."
    )
  return texts


def _text(value: Any) -> Any:
  return value.decode(errors="replace") if isinstance(value, bytes) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class CIFAR10(LabelledSource):
  """60,000 photographs of 10 classes, 32x32 (Krizhevsky 2009), in Python's archive."""

  name: ClassVar[str] = "cifar10"
  files: ClassVar[str] = (
    "pass the directory that holds cifar-10-python.tar.gz, or what is in it, as "
    "--data_dir"
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CIFAR100(LabelledSource):
  """60,000 photographs of 100 classes, 32x32 (Krizhevsky 2009), in Python's archive."""

  name: ClassVar[str] = "cifar100"
  files: ClassVar[str] = (
    "pass the directory that holds cifar-100-python.tar.gz, or what is in it, as "
    "--data_dir"
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory, num_classes=100)
