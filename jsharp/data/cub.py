"""CUB-200-2011 for few-shot learning, from its archive or its folders.

11,788 photographs of 200 species of birds (Wah et al. 2011), 100 / 50 / 50 for
training, validation and testing (Chen et al. 2019). `docs/data.md` shows every layout.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from jsharp._files import read_bytes
from jsharp.data import _archives, _formats, _prepared, _published, splits
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset
from jsharp.options import at_least, option

_TITLE = "CUB-200-2011"
_BOXES, _IMAGES, _LABELS = "bounding_boxes.txt", "images.txt", "image_class_labels.txt"
_MASKS = "segmentations"

_Table = dict[str, list[str]]  # The values of each image, by the image's number.
_Box = tuple[float, float, float, float]  # Left, top, width, height.


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  size: int = 84,
  bounding_boxes: bool = False,
  only: str | None = None,
  prepared_dir: str | os.PathLike | None = None,
  expected: splits.Composition = splits.CUB,
) -> dict[str, Dataset]:
  """CUB-200-2011 as three datasets of different species.

  Args:
    data_dir: `CUB_200_2011.tgz`, or the directory with one of these, at any depth: the
      folder extracted from it; folders `NNN.Species/` or `split/NNN.Species/`; or
      archives of these. Folders take precedence over archives. Masks (`segmentations/`)
      are ignored.
    size: height and width of the result in pixels. Images are resized by Lanczos'
      filter without keeping the aspect.
    bounding_boxes: whether images are first cropped to the box around the bird, which
      needs `bounding_boxes.txt` and `images.txt`.
    only: the only split to load: "train", "val" or "test"; images of the others may be
      missing.
    prepared_dir: where to keep the prepared dataset; see `docs/data.md`.
    expected: the expected species and numbers of images; its image size is not used.

  Returns:
    `{"train", "val", "test"}`, or only the requested one, with uint8 images
    `[num_images, size, size, 3]`, species in the order of their numbers.

  Raises:
    FileNotFoundError: if `data_dir` does not exist, has no images, or lacks the boxes.
    ValueError: if an argument is invalid; a file is damaged or not an image; a species
      is missing, unknown, in the wrong split or of the wrong size; or the lists
      contradict the folders. The message names the file or class.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  if size < 1:
    raise ValueError(f"size={size} must be at least 1 pixel.")
  expected = expected._replace(image_size=size)
  wanted = _published.wanted_splits(only, expected.classes)
  root, files = _published.given(data_dir, help_on=_help)
  below = [file for file in files if _is_part(file.relative_to(root).as_posix())]
  sources = [file for file in below if _formats.is_image(file.name)]
  sources = sources or [file for file in below if _archives.is_archive(file)]
  if not sources:
    raise FileNotFoundError(f"data_dir={root} does not contain {_TITLE}. {_help(root)}")
  lists = [file for file in below if file.name in (_BOXES, _IMAGES, _LABELS)]

  def read() -> dict[str, dict[str, np.ndarray]]:
    change = None
    tables = _tables(lists or [file for file in sources if _archives.is_archive(file)])
    _check_labels(root, tables)
    if bounding_boxes:
      change = _cropping(root, tables)
    found = _published.Reader(
      root,
      sources,
      expected,
      title=_TITLE,
      only=only,
      is_part=_is_part,
      change=change,
      say_resized=False,
    ).read()
    _published.check(root, found, expected, title=_TITLE, only=only)
    return {
      split: {name: found[split][name] for name in sorted(found[split])}
      for split in wanted
    }

  opened = _prepared.load(
    "JsharpCub",
    read,
    data_dir=root,
    prepared_dir=prepared_dir,
    files=[*sources, *lists],
    settings=(expected, bounding_boxes),
    parts=None if only is None else (only,),
  )
  return _published.datasets(opened)


def _help(root: pathlib.Path) -> str:
  return (
    f"Put CUB_200_2011.tgz of https://data.caltech.edu/records/20098 into {root}, or "
    "the folder extracted from it, or a folder of images per species. "
    "--dataset=characters needs no data."
  )


def _is_part(path: str) -> bool:
  """Whether a file may be an image; masks are in folders of the same names."""
  return not any(part.split(".")[0] == _MASKS for part in path.split("/"))


def _tables(places: Sequence[pathlib.Path]) -> dict[str, tuple[str, _Table]]:
  """The location (for errors) and content of the lists, by file name."""
  names = (_BOXES, _IMAGES, _LABELS)

  def wanted(path: str) -> bool:
    return path.rpartition("/")[2] in names and _is_part(path)

  found: dict[str, tuple[str, _Table]] = {}

  def add(name: str, place: str, content: bytes) -> None:
    if name in found:
      raise ValueError(f"{place} and {found[name][0]} are two of {name}: remove one.")
    found[name] = place, _table(content, place, 4 if name == _BOXES else 1)

  for file in places:
    if not _archives.is_archive(file):
      add(file.name, str(file), read_bytes(file, most=_archives.LARGEST_MEMBER))
      continue
    for path, content in _archives.members(file, wanted):
      add(path.rpartition("/")[2], f"{file}: {path}", content)
  return found


def _table(content: bytes, place: str, num_values: int) -> _Table:
  """The lines of a list: an image's number, and its values."""
  rows: _Table = {}
  for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
    key, *values = line.split() or [""]
    if len(values) != num_values or not key.isdecimal() or key in rows:
      raise ValueError(
        f"line {number} of {place} is {line[:60]!a}, not a unique number of an image "
        f"and {num_values} values. Fetch the file again."
      )
    rows[key] = values
  return rows


def _check_labels(root: pathlib.Path, tables: dict[str, tuple[str, _Table]]) -> None:
  """Checks that the list of labels agrees with the folders of the images."""
  if _IMAGES not in tables or _LABELS not in tables:
    return
  (_, images), (place, labels) = tables[_IMAGES], tables[_LABELS]
  if images.keys() != labels.keys():
    raise ValueError(
      f"{place} has {len(labels)} labels, {_IMAGES} {len(images)} images, or they have "
      "other numbers. Fetch the data again."
    )
  for key, (path,) in images.items():
    (label,) = labels[key]
    if path.split(".")[0].lstrip("0") != label:
      raise ValueError(
        f"data_dir={root}: {place} gives image {key} the label {label}, {_IMAGES} says "
        f"{path}. Fetch the data again."
      )


def _cropping(
  root: pathlib.Path, tables: dict[str, tuple[str, _Table]]
) -> Callable[[str, np.ndarray], np.ndarray]:
  """A function that crops an image, given by path, to the box around its bird."""
  for name in (_BOXES, _IMAGES):
    if name not in tables:
      raise FileNotFoundError(
        f"bounding_boxes=True needs {name}, which is nowhere below data_dir={root}. "
        "Put it there, or leave out bounding_boxes."
      )
  (place, boxes), (_, images) = tables[_BOXES], tables[_IMAGES]
  found: dict[str, _Box] = {}
  for key, (path,) in images.items():
    if key not in boxes:
      raise ValueError(f"{place} has no box of image {key}, {path}.")
    try:
      left, top, width, height = map(float, boxes[key])
    except ValueError as error:
      raise ValueError(
        f"{place}: the box of image {key} is not four numbers."
      ) from error
    found[path] = left, top, width, height

  def crop(path: str, image: np.ndarray) -> np.ndarray:
    name = "/".join(path.split("/")[-2:])
    if name not in found:
      raise ValueError(
        f"{path} below {root} has no box: {_IMAGES} does not name {name}. Remove the "
        "image, or leave out bounding_boxes."
      )
    box = found[name]
    if np.abs(box).max() < 2**31:  # False for NaN.
      left, top, width, height = map(int, box)
      part = image[
        max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)
      ]
      if part.size:
        return part
    raise ValueError(
      f"{place}: the box of {name} is {box}, outside its {image.shape[1]}x"
      f"{image.shape[0]} pixels. Fetch the data again."
    )

  return crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class CUB(ImageSource):
  """Photographs of 200 species of birds (Wah et al. 2011), split as Chen et al. do."""

  name: ClassVar[str] = "cub"
  files: ClassVar[str] = (
    "pass CUB_200_2011.tgz, the folder extracted from it, or a folder of images per "
    "species as --data_dir"
  )

  image_size: int = option(
    84,
    "Height and width in pixels that images are resized to.",
    check=at_least(1),
  )
  bounding_boxes: bool = option(
    False, "Crop each image to the box around its bird before it is resized."
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory, size=self.image_size, bounding_boxes=self.bounding_boxes)

  def read_one(self, directory: str, split: str) -> Dataset:
    loaded = load(
      directory, size=self.image_size, bounding_boxes=self.bounding_boxes, only=split
    )
    return loaded[split]
