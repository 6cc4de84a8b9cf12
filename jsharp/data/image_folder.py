"""Any directory `split/class/image` as a few-shot dataset."""

import dataclasses
import os
import pathlib
import unicodedata
from typing import ClassVar

import numpy as np

from jsharp.data import _archives, _formats, _left_out, _pixels, splits
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset
from jsharp.options import at_least, option


def load(
  data_dir: str | os.PathLike, *, size: int, channels: int | None = None
) -> dict[str, Dataset]:
  """The images of `train/`, `val/` and `test/`, one folder per class.

  Args:
    data_dir: the directory with the three folders; `val/` may also be called
      `valid/` or `validation/`. Everything below a class's folder belongs to the class.
      Files that are no images are left out with a warning; hidden ones, such as `.*`
      and `Thumbs.db`, without one.
    size: height and width of the result in pixels. An image of another size is
      resized by Lanczos' filter without keeping its aspect.
    channels: 1 (grayscale) or 3 (RGB). None takes 1 if every image is grayscale,
      else 3.

  Returns:
    `{"train", "val", "test"}` with uint8 images `[num_images, size, size, channels]`,
    classes and images in the order of their names.

  Raises:
    FileNotFoundError: the directory or a split is missing, or a split is empty.
    ValueError: an argument is wrong, a class is empty or in two splits, an image
      lies outside of a class folder or cannot be decoded.

  Example:
    >>> load("/nowhere", size=28)
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  if size < 1:
    raise ValueError(f"size={size} must be at least 1 pixel.")
  if channels not in (None, 1, 3):
    raise ValueError(f"channels={channels} must be 1, 3 or None.")
  root = pathlib.Path(data_dir).expanduser()
  folders = _split_folders(root)
  left_out = _left_out.LeftOut(root)
  class_files = {split: _classes(folder, left_out) for split, folder in folders.items()}
  left_out.warn()
  _check_disjoint(root, class_files)
  items = [
    (split, name, file)
    for split, classes in class_files.items()
    for name, files in classes.items()
    for file in files
  ]
  mode = {None: None, 1: "L", 3: "RGB"}[channels]

  def decode(item: tuple[str, str, pathlib.Path]) -> np.ndarray:
    image = _pixels.decode(item[2].read_bytes(), name=str(item[2]), mode=mode)
    return _pixels.to_size(image, size)

  found: dict[tuple[str, str], list[np.ndarray]] = {}
  for (split, name, _), image in zip(
    items, _pixels.map_threads(decode, items), strict=True
  ):
    found.setdefault((split, name), []).append(image)
  depth = max(image.shape[-1] for images in found.values() for image in images)
  return {
    split: Dataset.from_class_arrays(
      {
        name: np.stack(
          [np.broadcast_to(image, (size, size, depth)) for image in found[split, name]]
        )
        for name in classes
      },
      split=split,
    )
    for split, classes in class_files.items()
  }


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  if not root.is_dir():
    raise FileNotFoundError(f"data_dir={root} does not exist. {_help(root)}")
  folders: dict[str, pathlib.Path] = {}
  for name, split in splits.FOLDERS.items():
    if (root / name).is_dir():
      if split in folders:
        raise ValueError(
          f"{root} has both {folders[split].name}/ and {name}/: keep one."
        )
      folders[split] = root / name
  for split in ("train", "val", "test"):
    if split not in folders:
      raise FileNotFoundError(f"data_dir={root} has no folder {split}/. {_help(root)}")
  return {split: folders[split] for split in ("train", "val", "test")}


def _help(root: pathlib.Path) -> str:
  return (
    f"Put the images into {root}/train/CLASS/, {root}/val/CLASS/ and "
    f"{root}/test/CLASS/, with different classes in each. --dataset=characters needs "
    "no data."
  )


def _classes(
  folder: pathlib.Path, left_out: _left_out.LeftOut
) -> dict[str, list[pathlib.Path]]:
  """Name and image files of each class of a split."""
  found: dict[str, list[pathlib.Path]] = {}
  root = folder.parent
  for entry in sorted(folder.iterdir()):
    if _left_out.is_hidden(entry.name):
      continue
    if not entry.is_dir():
      if left_out.is_image(entry.relative_to(root).as_posix()):
        raise ValueError(f"{entry} lies in no class folder. {_help(root)}")
      continue
    files = [
      file
      for file in _archives.walk(entry)
      if left_out.is_image(file.relative_to(root).as_posix())
    ]
    if not files:
      raise ValueError(
        f"the class folder {entry} holds no {_formats.NAMES}: remove it."
      )
    # macOS writes accents apart from their letters, others do not.
    name = unicodedata.normalize("NFC", entry.name)
    if name in found:
      raise ValueError(f"{folder} has two folders called {name}: make them one.")
    found[name] = files
  if not found:
    raise FileNotFoundError(f"{folder} holds no class folders. {_help(root)}")
  return dict(sorted(found.items()))


def _check_disjoint(root: pathlib.Path, classes: dict[str, dict]) -> None:
  where: dict[str, str] = {}
  for split, names in classes.items():
    for name in names:
      if where.setdefault(name, split) != split:
        raise ValueError(
          f"data_dir={root}: the class {name} is in {where[name]} and in {split}. "
          "Test classes must not be seen in training: keep it in one split."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSource):
  """Any directory split/class/image."""

  name: ClassVar[str] = "image_folder"
  holds_any: ClassVar[bool] = True
  files: ClassVar[str] = (
    "pass the directory that holds train/, val/ and test/, each with a folder of "
    "images per class, as --data_dir"
  )

  image_size: int = option(
    84,
    "Height and width in pixels that images are resized to.",
    check=at_least(1),
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory, size=self.image_size)
