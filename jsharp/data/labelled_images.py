"""Any directory or archive `split/class/image` with the same classes in every split."""

import dataclasses
import os
import pathlib
from typing import ClassVar

import numpy as np

from jsharp.data import _archives, _image_files, _pixels, _prepared, splits
from jsharp.data._options import LabelledSource
from jsharp.data.dataset import Dataset
from jsharp.data.same_classes import check_same_classes
from jsharp.options import at_least, option

_Key = tuple[str, str, str]  # Split, class, file name.
_FIX = (
  "Put the images into {0}/train/CLASS/ and {0}/test/CLASS/, with the same classes in "
  "both, or an archive of these. --dataset=characters needs no data."
)


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  size: int | None = None,
  prepared_dir: str | os.PathLike | None = None,
) -> dict[str, Dataset]:
  """The images of `train/`, `test/` and, if it exists, `val/`.

  They are decoded once and stored, as for mini-ImageNet; see `docs/data.md`.

  Args:
    data_dir: a directory with the folders, one folder per class in each, at any
      depth; or with an archive of these (tar, tar.xz, tar.gz, tar.bz2 or zip); or
      the archive itself. Loose images take precedence over archives. `val/` may also be
      called `valid/` or `validation/`. Other files are ignored with a warning; hidden
      ones, such as `.*` and `Thumbs.db`, without.
    size: height and width in pixels that images of another size are resized to, by
      Lanczos' filter, ignoring the aspect ratio; None expects images of the same size.
    prepared_dir: where to keep the prepared dataset.

  Returns:
    `{"train", "test"}`, perhaps with `"val"`: uint8 images `[num_images, height,
    width, channels]`, grayscale if every image is, classes and images in the order of
    their names.

  Raises:
    FileNotFoundError: if `data_dir` does not exist or lacks images of train or test.
    ValueError: if a split has other classes, or an image is outside a class folder,
      occurs twice, has another size or cannot be decoded.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  if size is not None and size < 1:
    raise ValueError(f"size={size} must be at least 1 pixel.")
  images = _image_files.ImageFiles.find(data_dir, fix=_FIX)
  opened = _prepared.load(
    "JsharpLabelledImages",
    lambda: _read(images, size),
    data_dir=images.root,
    prepared_dir=prepared_dir,
    files=images.sources,
    settings=(size,),
    encoded=_prepared.Encoded(images.encoded, None),
  )
  images.warn()
  datasets = {
    split: Dataset.from_class_arrays(classes.arrays(), split=split)
    for split, classes in opened.items()
  }
  check_same_classes(datasets)
  return datasets


def _read(
  images: _image_files.ImageFiles, size: int | None
) -> dict[str, dict[str, np.ndarray]]:
  found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
  shape = None

  def decode(file: _image_files.ImageFile) -> tuple[str, _Key, np.ndarray]:
    key = _key(images.root, file.path)
    image = _pixels.decode(file.content, name=file.place, mode=None)
    return file.place, key, _pixels.to_size(image, size)

  for place, (split, label, name), image in _pixels.map_threads(decode, images.read()):
    shape = shape or image.shape[:2]
    if image.shape[:2] != shape:
      raise ValueError(
        f"{place} is {image.shape[0]}x{image.shape[1]} pixels, images before it are "
        f"{shape[0]}x{shape[1]}: give a size to resize all of them to."
      )
    classes = found.setdefault(split, {}).setdefault(label, {})
    if name in classes:
      raise ValueError(f"{place}: {split}/{label}/{name} occurs twice. Remove one.")
    classes[name] = image
  for split in ("train", "test"):
    if split not in found:
      raise FileNotFoundError(
        f"{images.root} has no images of {split}/. {_FIX.format(images.root)}"
      )
  everything = (
    image for c in found.values() for i in c.values() for image in i.values()
  )
  depth = max(image.shape[-1] for image in everything)
  return {
    split: {
      label: np.stack(
        [
          np.broadcast_to(image, (*image.shape[:2], depth))
          for _, image in sorted(found[split].pop(label).items())
        ]
      )
      for label in sorted(found[split])
    }
    for split in ("train", "val", "test")
    if split in found
  }


def _key(root: pathlib.Path, path: str) -> _Key:
  folders = path.split("/")
  # A class folder may contain folders, such as images/ in tiny-imagenet.
  for number, folder in enumerate(folders[:-2]):
    if folder in splits.FOLDERS:
      label, *rest = folders[number + 1 :]
      return splits.FOLDERS[folder], label, "/".join(rest)
  raise ValueError(f"{path} below {root} is not in a class folder. {_FIX.format(root)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledImages(LabelledSource):
  """train/class/image and test/class/image, the same classes in both."""

  name: ClassVar[str] = "image_folder"
  files: ClassVar[str] = (
    "pass the directory with train/ and test/, each with a folder of images per class, "
    "as --data_dir"
  )

  image_size: int | None = option(
    None,
    "Height and width in pixels that images are resized to. Default: no resizing.",
    check=at_least(1),
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory, size=self.image_size)
