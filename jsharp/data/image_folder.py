"""Any directory or archive of images as a few-shot dataset.

The class folders are in `train/`, `val/` and `test/`, or directly in the directory; a
seed then divides them into splits.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Container
from typing import ClassVar, Self

import numpy as np

from jsharp._files import composed
from jsharp._terminal import say
from jsharp.data import (
  _archives,
  _formats,
  _image_files,
  _left_out,
  _pixels,
  _prepared,
  splits,
)
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset
from jsharp.options import at_least, between, option

_UNDIVIDED = "undivided"  # tensorflow-datasets reserves "all".
_Paths = dict[str, dict[str, list[str]]]  # Split, or `_UNDIVIDED`, -> class -> images.
_FIX = (
  "Put the images into {0}/CLASS/, or into {0}/train/CLASS/, {0}/val/CLASS/ and "
  "{0}/test/CLASS/ with different classes in each. --dataset=characters needs no data."
)


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  size: int,
  channels: int | None = None,
  split_seed: int | None = None,
  only: str | None = None,
  prepared_dir: str | os.PathLike | None = None,
) -> dict[str, Dataset]:
  """The images of `train/`, `val/` and `test/`, or of classes that a seed divides.

  Args:
    data_dir: a directory with the three folders, which hold one folder per class; or
      with only the class folders, which are then divided into the three; or with one
      folder that contains either; or with archives of these (tar, tar.xz, tar.gz,
      tar.bz2 or zip), or such an archive itself. `val/` may also be called `valid/` or
      `validation/`. All images below a class folder belong to the class. Other files
      are ignored with a warning; hidden ones, such as `.*` and `Thumbs.db`, without.
    size: height and width of the result in pixels. An image of another size is
      resized by Lanczos' filter without keeping its aspect.
    channels: 1 (grayscale) or 3 (RGB). None chooses 1 if every image is grayscale,
      otherwise 3.
    split_seed: decides the split of each class if there are no split folders, see
      `jsharp.data.splits.divided`. None means 0; with `only` it assigns all classes to
      that split.
    only: the only split to read: "train", "val" or "test"; it must exist.
    prepared_dir: where to keep the decoded images of archives; see `docs/data.md`.

  Returns:
    `{"train", "val", "test"}`, or only the requested one, with uint8 images
    `[num_images, size, size, channels]`, classes and images in the order of their
    names.

  Raises:
    FileNotFoundError: if the directory or a split is missing or has no images.
    ValueError: if an argument is invalid, a class is empty or in two splits, there are
      too few classes to divide, there are class folders next to `train/`, or an image
      is outside a class folder, occurs twice or cannot be decoded.

  Example:
    >>> load("/nowhere", size=28)
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  if size < 1:
    raise ValueError(f"size={size} must be at least 1 pixel.")
  if channels not in (None, 1, 3):
    raise ValueError(f"channels={channels} must be 1, 3 or None.")
  if only not in (None, *splits.NAMES):
    raise ValueError(
      f"only={only!r} must be one of {', '.join(splits.NAMES)}, or None."
    )
  files = _image_files.ImageFiles.find(data_dir, fix=_FIX)

  def read() -> dict[str, dict[str, np.ndarray]]:
    return _read(files, size, channels, only)

  if files.packed:
    opened = _prepared.load(
      "JsharpImageFolder",
      read,
      data_dir=files.root,
      prepared_dir=prepared_dir,
      files=files.sources,
      settings=(size, channels),
      parts=None if only is None else (only, _UNDIVIDED),
    )
    found = {part: classes.arrays() for part, classes in opened.items()}
  else:
    found = read()
  files.warn()
  origin = ""
  if _UNDIVIDED in found:
    found, origin = _divided(files.given, found[_UNDIVIDED], split_seed, only)
  return {
    split: Dataset.from_class_arrays(found[split], split=split, origin=origin)
    for split in splits.NAMES
    if split in found
  }


def _divided(
  given: pathlib.Path,
  classes: dict[str, np.ndarray],
  split_seed: int | None,
  only: str | None,
) -> tuple[dict[str, dict[str, np.ndarray]], str]:
  """The classes of each split, and a description of how they were divided."""
  if only is not None and split_seed is None:
    return {only: classes}, f"all {len(classes)} classes"
  seed = split_seed or 0
  try:
    divided = splits.divided(tuple(classes), seed)
  except ValueError as error:
    raise ValueError(
      f"data_dir={given} has no folders train/, val/ and test/, and {error} Add "
      "classes. To test a trained learner on these classes, use python -m "
      "jsharp.evaluate."
    ) from error
  sizes = " / ".join(str(len(names)) for names in divided.values())
  origin = f"{len(classes)} classes, divided {sizes} by split_seed={seed}"
  say(f"data_dir={given} has {origin}.")
  return {
    split: {name: classes[name] for name in names}
    for split, names in divided.items()
    if only in (None, split)
  }, origin


def _read(
  files: _image_files.ImageFiles, size: int, channels: int | None, only: str | None
) -> dict[str, dict[str, np.ndarray]]:
  """The images of each class of each split, or of all classes if undivided."""
  layout = _layout(files)
  if _UNDIVIDED not in layout:
    for split in splits.NAMES if only is None else (only,):
      if split not in layout:
        raise FileNotFoundError(
          f"data_dir={files.given} has no images of {split}/. {_FIX.format(files.root)}"
        )
    if only is not None:
      layout = {only: layout[only]}
  mode = {None: None, 1: "L", 3: "RGB"}[channels]

  def decode(file: _image_files.ImageFile) -> tuple[str, np.ndarray]:
    image = _pixels.decode(file.content, name=file.place, mode=mode)
    return file.path, _pixels.to_size(image, size)

  wanted = {
    path for classes in layout.values() for paths in classes.values() for path in paths
  }
  images = dict(_pixels.map_threads(decode, files.read(wanted)))
  depth = max(image.shape[-1] for image in images.values())
  return {
    split: {
      name: np.stack(
        [np.broadcast_to(images.pop(path), (size, size, depth)) for path in paths]
      )
      for name, paths in classes.items()
    }
    for split, classes in layout.items()
  }


def _layout(files: _image_files.ImageFiles) -> _Paths:
  """The paths by split and class; all in `_UNDIVIDED` without splits.

  Raises:
    ValueError: if the layout is neither of the two.
  """
  given, root, paths = files.given, files.root, sorted(files.paths())
  for path, following in itertools.pairwise(paths):
    if path == following:
      raise ValueError(f"{path} occurs twice below {given}. Remove one.")
  around, parts = _within(paths)
  tops = sorted({folders[0] for folders in parts})
  named = [top for top in tops if top in splits.FOLDERS]
  others = [top for top in tops if top not in splits.FOLDERS]
  for path, folders in zip(paths, parts, strict=True):
    if len(folders) < 2 + bool(named):
      raise ValueError(
        f"{path} below {given} is not in a class folder. {_FIX.format(root)}"
      )
  if named and others:
    raise ValueError(
      f"data_dir={given} has {named[0]}/ next to {', '.join(others[:3])}"
      f"{', ...' if len(others) > 3 else ''}: put every class into train/, val/ or "
      "test/, or none; or remove what is not part of the data."
    )
  found: _Paths = {}
  names: dict[str, str] = {}
  for path, folders in zip(paths, parts, strict=True):
    split, label = _UNDIVIDED, folders[0]
    if named:
      split, label = splits.FOLDERS[folders[0]], folders[1]
      if names.setdefault(split, folders[0]) != folders[0]:
        raise ValueError(
          f"data_dir={given} has both {names[split]}/ and {folders[0]}/: keep one."
        )
    found.setdefault(split, {}).setdefault(label, []).append(path)
  if not files.packed:
    for top in named or [""]:
      classes = found[splits.FOLDERS[top] if named else _UNDIVIDED]
      _check_not_empty(root.joinpath(*around, top), classes)
  _check_disjoint(given, found)
  return found


def _within(paths: list[str]) -> tuple[list[str], list[list[str]]]:
  """The folders around the data, as in archives, and the paths within them."""
  around: list[str] = []
  parts = [path.split("/") for path in paths]
  while (
    len({folders[0] for folders in parts}) == 1
    and parts[0][0] not in splits.FOLDERS
    and min(map(len, parts)) > 2
  ):
    around.append(parts[0][0])
    parts = [folders[1:] for folders in parts]
  return around, parts


def _check_not_empty(folder: pathlib.Path, classes: Container[str]) -> None:
  for entry in sorted(folder.iterdir()):
    name = composed(entry.name)
    ours = _left_out.is_hidden(name) or name == "tfds"
    if entry.is_dir() and name not in classes and not ours:
      raise ValueError(
        f"the class folder {entry} has no {_formats.NAMES} files: remove it."
      )


def _check_disjoint(given: pathlib.Path, classes: _Paths) -> None:
  where: dict[str, str] = {}
  for split in splits.NAMES:
    for name in classes.get(split, ()):
      if where.setdefault(name, split) != split:
        raise ValueError(
          f"data_dir={given}: the class {name} is in {where[name]} and in {split}. "
          "Test classes must not be seen in training: keep it in one split."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSource):
  """Any directory split/class/image, or class/image."""

  name: ClassVar[str] = "image_folder"
  holds_any: ClassVar[bool] = True
  files: ClassVar[str] = (
    "pass the directory or archive with a folder of images per class, or with train/, "
    "val/ and test/ that contain these, as --data_dir"
  )

  image_size: int = option(
    84,
    "Height and width in pixels that images are resized to.",
    check=at_least(1),
  )
  split_seed: int | None = option(
    None,
    "Seed that divides the classes into 64, 16 and 20 percent for training, validation "
    "and test if there are no folders train/, val/ and test/. Default: 0 in training; "
    "a test without training uses all classes.",
    check=between(0, 2**31 - 1),
  )

  def for_training(self, split_seed: int = 0) -> Self:
    return self if self.split_seed is not None else self.replace(split_seed=split_seed)

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory, size=self.image_size, split_seed=self.split_seed)

  def read_one(self, directory: str, split: str) -> Dataset:
    loaded = load(
      directory, size=self.image_size, split_seed=self.split_seed, only=split
    )
    return loaded[split]
