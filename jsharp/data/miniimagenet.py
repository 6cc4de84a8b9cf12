"""mini-ImageNet from the files that people have.

100 classes of 600 images of 84x84 pixels in RGB, 64 / 16 / 20 for training, validation
and testing (Vinyals et al. 2016; split of Ravi and Larochelle 2017). ImageNet's terms
allow non-commercial research and education. `docs/data.md` shows every layout.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from jsharp._files import parse_csv, read_bytes
from jsharp._terminal import say
from jsharp.data import _archives, _formats, _pickles, _pixels, _prepared, splits
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  prepared_dir: str | os.PathLike | None = None,
  expected: splits.Composition = splits.MINI_IMAGENET,
  only: str | None = None,
) -> dict[str, Dataset]:
  """mini-ImageNet as three datasets of different classes.

  Args:
    data_dir: an archive, or the directory with one of these, at any depth: both
      pickle families
      (`mini-imagenet-cache-*.pkl`, `miniImageNet_category_split_*.pickle`);
      `train.csv`, `val.csv`, `test.csv` with the images flat or in folders; folders
      `split/class/`; or any of the image layouts in tar, tar.xz, tar.gz, tar.bz2 or
      zip archives. Pickles come before images, folders before archives.
    prepared_dir: where to keep the prepared dataset (1.3 GB); see `docs/data.md`.
    expected: the classes and sizes that must be found.
    only: "train", "val" or "test", which alone is loaded; pickles, CSVs and archives of
      the others may be missing.

  Returns:
    `{"train", "val", "test"}`, or the one that was asked for, with uint8 images
    `[num_images, 84, 84, 3]`, classes in the order of their WordNet ids. Images of
    other sizes (ImageNet's own files) are resized to 84x84, without keeping the aspect,
    by Lanczos' filter, and their number is reported on stderr.

  Raises:
    FileNotFoundError: `data_dir` does not exist or holds no mini-ImageNet, or lacks
      an image that a CSV names.
    ValueError: a file is damaged, no image or refused; a class is
      missing, unknown, in the wrong split or not of the right size. The message
      names the file or class.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  if only not in (None, *expected.classes):
    raise ValueError(f"only={only!r} is none of {', '.join(expected.classes)}.")
  root, files = _archives.given(data_dir)
  if not root.is_dir():
    raise FileNotFoundError(f"data_dir={root} does not exist. {_help(root)}")
  caches = _caches(files, only)
  wanted = expected
  if only is not None:
    wanted = expected._replace(classes={only: expected.classes[only]})
  sources = sorted(caches.values()) or [
    file
    for file in files
    if _formats.is_image(file.name)
    or _archives.is_archive(file)
    or _csv_split(file.name)
  ]
  if not any(file.suffix != ".csv" for file in sources):
    raise FileNotFoundError(f"data_dir={root} holds no mini-ImageNet. {_help(root)}")

  def read() -> dict[str, dict[str, np.ndarray]]:
    if caches:
      size = expected.image_size
      found = {
        split: _pickles.class_arrays(caches[split], size) for split in wanted.classes
      }
    else:
      found = _Reader(root, sources, expected, only).read()
    _check(root, found, wanted)
    return {
      split: {name: found[split][name] for name in sorted(found[split])}
      for split in wanted.classes
    }

  def encoded() -> Iterator[tuple[str, bytes]]:
    return (
      (name, data) for _, name, _, data in _Reader(root, sources, expected).images()
    )

  opened = _prepared.load(
    "JsharpMiniImagenet",
    read,
    data_dir=root,
    prepared_dir=prepared_dir,
    files=sources,
    settings=(expected,),
    encoded=None if caches else _prepared.Encoded(encoded, "RGB"),
    parts=None if only is None else (only,),
  )
  return {
    split: Dataset(
      images=classes.images,
      offsets=np.cumsum(classes.counts, dtype=np.int32) - classes.counts,
      counts=classes.counts,
      class_names=classes.names,
      split=split,
    )
    for split, classes in opened.items()
  }


def _help(root: pathlib.Path) -> str:
  return (
    f"Put into {root} either the three mini-imagenet-cache-*.pkl, or train.csv, "
    "val.csv and test.csv of https://github.com/twitter-research/meta-learning-lstm "
    "with a folder images/, or folders train/, val/ and test/ with one folder per "
    "class, or archives of these. The images are ImageNet's: https://image-net.org, "
    "for non-commercial research and education. --dataset=characters needs no data."
  )


def _caches(files: Sequence[pathlib.Path], only: str | None) -> dict[str, pathlib.Path]:
  """The pickle of each split in the first family that has any, at least of `only`."""
  # learn2learn's copy of the first family says "validation".
  by_name = {file.name.replace("-validation.pkl", "-val.pkl"): file for file in files}
  for family in _pickles.FAMILIES:
    found = {split: by_name[name] for split, name in family.items() if name in by_name}
    missing = [split for split in family if split not in found]
    if only is not None:
      missing = [split for split in missing if split == only]
    if found and missing:
      raise FileNotFoundError(
        f"{next(iter(found.values()))} is there, {family[missing[0]]} is missing: put "
        "the files of the family side by side."
      )
    if found:
      return found
  return {}


def _csv_split(name: str) -> str | None:
  """The split that a CSV of this name lists; None for other files."""
  path = pathlib.PurePosixPath(name)
  return splits.FOLDERS.get(path.stem) if path.suffix == ".csv" else None


def _check(
  root: pathlib.Path,
  found: dict[str, dict[str, np.ndarray]],
  expected: splits.Composition,
) -> None:
  """Refuse missing, extra, misplaced and too small or too large classes."""
  for split, names in expected.classes.items():
    classes = found.get(split, {})
    # Caches without class names can only be counted.
    named = not classes or not all(name.startswith("label") for name in classes)
    missing = [name for name in names if named and name not in classes]
    extra = sorted(name for name in classes if named and name not in names)
    if len(classes) != len(names) or missing or extra:
      lists = (("missing", missing), ("not of this split", extra))
      detail = "; ".join(
        f"{what}: {', '.join(some[:5])}" for what, some in lists if some
      )
      raise ValueError(
        f"data_dir={root}: {split} has {len(classes)} classes, mini-ImageNet has "
        f"{len(names)} ({detail or 'the cache does not name them'}). For another "
        "choice of classes use --dataset=image_folder."
      )
    for name, images in classes.items():
      if len(images) != expected.images_per_class:
        raise ValueError(
          f"data_dir={root}: class {name} of {split} has {len(images)} images, not "
          f"{expected.images_per_class}. Complete it or fetch the data again."
        )


class _Reader:
  """Reads images from folders and archives and sorts them into splits and classes."""

  def __init__(
    self,
    root: pathlib.Path,
    sources: Sequence[pathlib.Path],
    expected: splits.Composition,
    only: str | None = None,
  ):
    self._root = root
    self._expected = expected
    self._only = only
    self._archives = [file for file in sources if _archives.is_archive(file)]
    self._first = self._archives  # Where CSVs and images are looked for first.
    if only is not None:
      self._archives.sort(key=lambda file: not file.name.startswith(only))
      named = [file for file in self._archives if file.name.startswith(only)]
      self._first = named or self._archives
    self._loose = [file for file in sources if file not in set(self._archives)]
    self._split_of = {
      name: split for split, names in expected.classes.items() for name in names
    }
    self._listed = self._read_csvs()
    self._seen: set[tuple[str, str, str]] = set()

  def read(self) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    num_resized = 0
    for key, image, resized in _pixels.map_threads(self._decode, self.images()):
      split, label, name = key
      found.setdefault(split, {}).setdefault(label, {})[name] = image
      num_resized += resized
    for name, (split, label) in self._listed.items():
      if self._is_wanted(split) and (split, label, name) not in self._seen:
        raise FileNotFoundError(
          f"{split}.csv names {name} of class {label}, which is nowhere below "
          f"{self._root}. Complete the images, or, if they lie in split/class/ "
          "folders under other names, remove the CSVs."
        )
    if num_resized:
      size = self._expected.image_size
      say(f"{num_resized} images were not {size}x{size} and have been resized.")
    return {
      split: {
        label: np.stack([image for _, image in sorted(classes.pop(label).items())])
        for label in list(classes)
      }
      for split, classes in found.items()
    }

  def _files(
    self, wanted: Callable[[str], bool], within: Iterable[pathlib.Path]
  ) -> Iterator[tuple[str, str, bytes]]:
    """Place for errors, name and content: loose files first, then those `within`."""
    for file in self._loose:
      name = file.relative_to(self._root).as_posix()
      if wanted(name):
        yield str(file), name, read_bytes(file, most=_archives.LARGEST_MEMBER)
    for archive in within:
      for name, data in _archives.members(archive, wanted):
        yield f"{archive}: {name}", name, data

  def _read_csvs(self) -> dict[str, tuple[str, str]]:
    """File name -> (split, class); empty where there are no CSVs."""
    listed: dict[str, tuple[str, str]] = {}
    # Looking through the archives takes seconds; loose CSVs make it needless.
    within = [] if any(_csv_split(file.name) for file in self._loose) else self._first
    for place, csv_name, data in self._files(
      lambda name: bool(_csv_split(name)), within
    ):
      split = _csv_split(csv_name)
      names, rows = parse_csv(data, where=place)
      if not {"filename", "label"} <= set(names):
        raise ValueError(f"{place} has the columns {names}, not filename and label.")
      for row in rows:
        values = dict(zip(names, row, strict=True))
        name = pathlib.PurePosixPath(values["filename"]).name
        entry = (str(split), values["label"])
        if listed.setdefault(name, entry) != entry:
          raise ValueError(f"{place} names {name} for {entry}, before {listed[name]}.")
    return listed

  def images(self) -> Iterator[tuple[str, str, tuple[str, str, str], bytes]]:
    """Place for errors, name, key and content of every image."""

    def wanted(name: str) -> bool:
      if name.lower().endswith((".pkl", ".pickle")):
        raise ValueError(
          f"an archive below {self._root} holds the pickle {name}: extract it into "
          f"{self._root}."
        )
      key = self._key(name) if _formats.is_image(name) else None
      return key is not None and self._is_wanted(key[0]) and key not in self._seen

    within = itertools.takewhile(
      lambda archive: not self._is_complete(), self._archives
    )
    for place, name, data in self._files(wanted, within):
      key = self._key(name)
      assert key is not None
      self._seen.add(key)
      yield place, name, key, data

  def _is_wanted(self, split: str) -> bool:
    return self._only in (None, split)

  def _is_complete(self) -> bool:
    """Whether further archives can hold no image of the split that alone is wanted."""
    if self._only is None:
      return False
    num_classes = len(self._expected.classes[self._only])
    return len(self._seen) >= num_classes * self._expected.images_per_class

  def _key(self, path: str) -> tuple[str, str, str] | None:
    """Split, class and file name of an image; None for one that no CSV names."""
    *folders, name = path.split("/")
    if self._listed:
      entry = self._listed.get(name)
      return (*entry, name) if entry else None
    label = folders[-1] if folders else ""
    split = splits.FOLDERS.get(folders[-2].lower()) if len(folders) > 1 else None
    split = split or self._split_of.get(label)
    if split is None:
      raise ValueError(
        f"{path} below {self._root} lies in no class folder of mini-ImageNet and there "
        "is no CSV that names it. Add train.csv, val.csv and test.csv, or use folders "
        "split/class/."
      )
    return split, label, name

  def _decode(self, item):
    place, _, key, data = item
    image = _pixels.decode(data, name=place, mode="RGB")
    size = self._expected.image_size
    if image.shape[:2] == (size, size):
      return key, image, False
    return key, _pixels.resize(image, size, method="LANCZOS"), True


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniImageNet(ImageSource):
  """Photographs of 100 classes, 84x84 (Vinyals et al. 2016)."""

  name: ClassVar[str] = "miniimagenet"
  holds_any: ClassVar[bool] = True
  files: ClassVar[str] = (
    "put mini-ImageNet in one directory and pass it as --data_dir: the three CSV files "
    "of Ravi and Larochelle beside images/, or folders or archives train, val, test "
    "with a folder per class, or the pickle caches"
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory)

  def read_one(self, directory: str, split: str) -> Dataset:
    return load(directory, only=split)[split]
