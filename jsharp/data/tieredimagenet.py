"""tieredImageNet from its common caches and folders.

608 classes of ImageNet as RGB images of 84x84 pixels, 351 / 97 / 160 for training,
validation and testing, split by WordNet categories, so that test classes differ
strongly from training classes (Ren et al. 2018). 779,165 images, 16.5 GB of pixels.
ImageNet's terms allow non-commercial research and education. `docs/data.md` shows every
layout.
"""

import dataclasses
import itertools
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jsharp._files import open_regular
from jsharp._terminal import say
from jsharp.data import (
  _archives,
  _formats,
  _pickles,
  _pixels,
  _prepared,
  _published,
  splits,
)
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset

_TITLE = "tieredImageNet"
_SCALE = 8  # A split has this many times the images of mini-ImageNet.
_ROWS = 4096  # Images read from an npz at a time.
_WNID = re.compile(r"n\d{8}")
_PREFIX = "tiered-imagenet-"  # File names of learn2learn's copies start with it.


class _Cache(NamedTuple):
  """The files of one split."""

  images: pathlib.Path
  labels: pathlib.Path


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  only: str | None = None,
  prepared_dir: str | os.PathLike | None = None,
  expected: splits.Composition = splits.TIERED_IMAGENET,
  num_images: Mapping[str, int] = splits.TIERED_IMAGENET_IMAGES,
) -> dict[str, Dataset]:
  """Loads tieredImageNet as three datasets of different classes.

  The splits are prepared one after the other, each as a separate copy. Both memory and
  disk hold the pixels once (train 9.5 GB, val 2.6 GB, test 4.4 GB), whether they are
  prepared or opened.

  Args:
    data_dir: an archive, or the directory with one of these, at any depth: for each
      split `train_images_png.pkl` with `train_labels.pkl`; or `train_images.npz` with
      `train_labels.pkl`; or folders `split/wnid/` or `wnid/`; or archives of such
      folders. The first layout found is read. Folders `wnid/` of ImageNet's other
      classes are ignored. Pickles are never executed.
    only: the only split to load: "train", "val" or "test"; files of the others may be
      missing.
    prepared_dir: where to keep the prepared dataset; see `docs/data.md`.
    expected: the expected classes. Caches do not have WordNet ids, so their classes are
      only counted.
    num_images: the expected number of images, by split.

  Returns:
    `{"train", "val", "test"}`, or only the requested one, with uint8 images
    `[num_images, 84, 84, 3]`. Classes from folders are named by WordNet id and sorted
    by it; classes from caches are named by label and content and sorted by label.
    Images of other sizes are resized with a Lanczos filter, without keeping the aspect
    ratio. An npz in BGR order, as OpenCV reads images, is converted to RGB.

  Raises:
    FileNotFoundError: `data_dir` does not exist, does not contain tieredImageNet, or
      lacks the labels of a split.
    ValueError: a file is damaged, not an image or unsafe to read; classes are missing,
      unknown or in the wrong split; or the number of images differs from the expected
      one.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  wanted = _published.wanted_splits(only, expected.classes)
  root, files = _published.given(data_dir, help_on=_help)
  caches = {split: cache for split in wanted if (cache := _cache(files, split))}
  missing = [split for split in wanted if split not in caches]
  if caches and missing:
    raise FileNotFoundError(
      f"{next(iter(caches.values())).images} is there, the images of {missing[0]} are "
      f"missing: put {missing[0]}_images_png.pkl or {missing[0]}_images.npz and "
      f"{missing[0]}_labels.pkl beside it."
    )
  split_of = {
    name: split for split, names in expected.classes.items() for name in names
  }

  def is_part(path: str) -> bool:
    """Whether a path does not belong to one of ImageNet's other classes."""
    split, label = _folders(path)
    return bool(split) or label in split_of or not _WNID.fullmatch(label)

  sources = [
    file
    for file in files
    if _formats.is_image(file.name) and is_part(file.relative_to(root).as_posix())
  ]
  sources = sources or [file for file in files if _archives.is_archive(file)]
  if not caches and not sources:
    raise FileNotFoundError(f"data_dir={root} does not contain {_TITLE}. {_help(root)}")

  def files_of(split: str) -> list[pathlib.Path]:
    """The files that a split depends on."""
    if caches:
      return list(caches[split])
    folders = [_folders(file.relative_to(root).as_posix()) for file in sources]
    return [
      file
      for file, (named, label) in zip(sources, folders, strict=True)
      if _archives.is_archive(file) or split == (named or split_of.get(label, split))
    ]

  def prepared(split: str) -> Dataset:
    def read() -> dict[str, dict[str, np.ndarray]]:
      if caches:
        return {split: _read_cache(root, caches[split], split, expected, num_images)}
      reader = _published.Reader(
        root, sources, expected, title=_TITLE, only=split, is_part=is_part
      )
      found = reader.read()
      _published.check(root, found, expected, title=_TITLE, only=split)
      counts = {name: len(images) for name, images in found[split].items()}
      _check_total(root, split, counts, num_images)
      return {split: {name: found[split][name] for name in sorted(found[split])}}

    opened = _prepared.load(
      "JsharpTieredImagenet",
      read,
      data_dir=root,
      prepared_dir=prepared_dir,
      files=files_of(split),
      settings=(expected.classes[split], num_images[split], expected.image_size),
      parts=(split,),
    )
    return _published.datasets(opened)[split]

  # The largest first, whose preparation takes the most memory.
  largest_first = sorted(wanted, key=lambda split: -num_images[split])
  found = {split: prepared(split) for split in largest_first}
  return {split: found[split] for split in wanted}


def _help(root: pathlib.Path) -> str:
  return (
    f"Put into {root} either train_images_png.pkl, train_labels.pkl and those of val "
    "and test of https://github.com/renmengye/few-shot-ssl-public, or train_images.npz "
    "and so on with the labels, or folders train/, val/ and test/ with one folder per "
    "WordNet id. The images are ImageNet's: https://image-net.org, for non-commercial "
    "research and education. --dataset=characters needs no data."
  )


def _cache(files: Sequence[pathlib.Path], split: str) -> _Cache | None:
  """The files of a split: PNGs rather than an npz, whose channel order is uncertain."""
  by_name = {file.name.removeprefix(_PREFIX): file for file in files}
  for name in (f"{split}_images_png.pkl", f"{split}_images.npz"):
    if name in by_name:
      if f"{split}_labels.pkl" not in by_name:
        raise FileNotFoundError(
          f"{by_name[name]} is there, {split}_labels.pkl is missing: put it beside it."
        )
      return _Cache(by_name[name], by_name[f"{split}_labels.pkl"])
  return None


def _folders(path: str) -> tuple[str | None, str]:
  """The split that a folder names, if one does, and the class of an image."""
  folders = ["", "", *path.split("/")[:-1]]
  return splits.FOLDERS.get(folders[-2].lower()), folders[-1]


class _Labels(NamedTuple):
  """The class of each image of a cache.

  Attributes:
    names: the names of the classes, in the order of their labels.
    counts: `[num_classes]`, the number of images of each class.
    classes: `[num_images]`, the class number of each image.
    places: `[num_images]`, the position of each image in its class.
  """

  names: list[str]
  counts: np.ndarray
  classes: np.ndarray
  places: np.ndarray


def _read_labels(path: pathlib.Path) -> _Labels:
  content = _pickles.load(path, scale=_SCALE)
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds a {type(content).__name__}, not a dict.")
  content = {_text(key): value for key, value in content.items()}
  key = next((key for key in ("label_specific", "labels") if key in content), None)
  if key is None:
    raise ValueError(
      f"{path} has neither label_specific nor labels, but "
      f"{', '.join(str(key)[:60] for key in list(content)[:10])}."
    )
  most = 2**24
  labels = _pickles.whole_numbers(path, key, content[key], most)
  numbers, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
  order = np.argsort(classes, kind="stable")
  places = np.empty(len(labels), np.int64)
  places[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
  shown = content.get("label_specific_str")
  names = [f"label{number}" for number in numbers.tolist()]
  if isinstance(shown, list) and numbers.tolist() == list(range(len(shown))):
    # With the number, since two classes may have the same description.
    names = [f"{name} {_text(text)}" for name, text in zip(names, shown, strict=True)]
  return _Labels(names, counts, classes, places)


def _text(value: Any) -> Any:
  return value.decode(errors="replace") if isinstance(value, bytes) else value


def _read_cache(
  root: pathlib.Path,
  cache: _Cache,
  split: str,
  expected: splits.Composition,
  num_images: Mapping[str, int],
) -> dict[str, np.ndarray]:
  """The images of each class of a split, without a second copy in memory."""
  labels = _read_labels(cache.labels)
  names = expected.classes[split]
  _published.check_names(root, split, labels.names, names, title=_TITLE)
  counts = dict(zip(labels.names, labels.counts.tolist(), strict=True))
  _check_total(root, split, counts, num_images)
  size = expected.image_size
  found = [np.empty((count, size, size, 3), np.uint8) for count in labels.counts]
  is_npz = cache.images.suffix == ".npz"
  total = len(labels.classes)
  images = (
    _of_npz(cache.images, size, total)
    if is_npz
    else _of_pngs(cache.images, size, total)
  )
  sums, num_read = np.zeros(3), 0
  for number, image in enumerate(images):
    num_read = number + 1
    if num_read > total:
      break
    found[labels.classes[number]][labels.places[number]] = image
    if is_npz:
      sums += image.sum((0, 1), dtype=np.int64)
  if num_read != total:
    shown = f"more than {total}" if num_read > total else num_read
    raise ValueError(
      f"{cache.images} has {shown} images, but {cache.labels.name} {total} labels: "
      "they do not belong together, or one is truncated. Fetch both again."
    )
  # Photographs have more red than blue: ImageNet's means are 124 and 104.
  if sums[2] > sums[0]:
    say(f"{cache.images} is in BGR order and is converted to RGB.")
    for part in found:
      part[:] = part[..., ::-1]
  return dict(zip(labels.names, found, strict=True))


def _check_total(
  root: pathlib.Path,
  split: str,
  counts: Mapping[str, int],
  num_images: Mapping[str, int],
) -> None:
  found, smallest = sum(counts.values()), min(counts, key=counts.__getitem__)
  if found != num_images[split]:
    raise ValueError(
      f"data_dir={root}: {split} has {found} images, {_TITLE} has {num_images[split]}; "
      f"the smallest class is {smallest} with {counts[smallest]}. Complete it or fetch "
      "the data again."
    )


def _of_pngs(path: pathlib.Path, size: int, total: int) -> Iterator[np.ndarray]:
  """The images of a pickled list of encoded images."""

  def decode(item: tuple[int, Any]) -> np.ndarray:
    number, data = item
    place = f"{path}: image {number}"
    if isinstance(data, np.ndarray) and data.dtype == np.uint8:
      data = data.tobytes()
    if not isinstance(data, bytes):
      raise ValueError(f"{place} is a {type(data).__name__}, not an encoded image.")
    image = _pixels.decode(data, name=place, mode="RGB", formats=("PNG", "JPEG"))
    _pixels.check_size(image, size, name=place)
    return image

  encoded = enumerate(itertools.islice(_pickles.stream(path), total + 1))
  return _pixels.map_threads(decode, encoded)


def _of_npz(path: pathlib.Path, size: int, total: int) -> Iterator[np.ndarray]:
  """The images of the array `images` of an npz, read piece by piece."""
  _archives.check_not_html(path)
  try:
    with (
      open_regular(path, most=_archives.LARGEST) as file,
      zipfile.ZipFile(file) as archive,
      archive.open("images.npy") as stream,
    ):
      shape = _shape_of(stream, path)
      if shape[1:] != (size, size, 3):
        raise ValueError(
          f"{path}: the images have the shape {list(shape)}, not "
          f"[num_images, {size}, {size}, 3]."
        )
      if shape[0] != total:
        raise ValueError(f"{path} has {shape[0]} images for {total} labels.")
      for start in range(0, total, _ROWS):
        count = min(_ROWS, total - start)
        data = stream.read(count * size * size * 3)
        if len(data) != count * size * size * 3:
          raise EOFError(f"only {start} of {total} images are complete")
        yield from np.frombuffer(data, np.uint8).reshape(count, size, size, 3)
  except KeyError as error:
    raise ValueError(f"{path} has no array images. Fetch it again.") from error
  except _archives.DAMAGE as error:
    raise ValueError(
      f"{path} is truncated or damaged ({type(error).__name__}: {error}). "
      "Fetch the file again."
    ) from error


def _shape_of(stream: Any, path: pathlib.Path) -> tuple[int, ...]:
  """Reads the header of an npy and returns its shape; leaves the stream at the data."""
  formats = np.lib.format
  try:
    version = formats.read_magic(stream)
    if version == (1, 0):
      shape, is_fortran, dtype = formats.read_array_header_1_0(stream)
    else:
      shape, is_fortran, dtype = formats.read_array_header_2_0(stream)
  except ValueError as error:
    raise ValueError(f"{path} has no array ({error}). Fetch it again.") from error
  if dtype != np.uint8 or is_fortran:
    raise ValueError(
      f"{path}: the images are {dtype}, not uint8 in rows. Nothing was executed."
    )
  return shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class TieredImageNet(ImageSource):
  """Photographs of 608 classes split by category, 84x84 (Ren et al. 2018)."""

  name: ClassVar[str] = "tieredimagenet"
  files: ClassVar[str] = (
    "pass as --data_dir the directory that holds train_images_png.pkl or "
    "train_images.npz, train_labels.pkl and those of val and test, or folders train, "
    "val, test with a folder per WordNet id. All three take 17 GB of memory"
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory)

  def read_one(self, directory: str, split: str) -> Dataset:
    return load(directory, only=split)[split]
