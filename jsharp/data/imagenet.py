"""ImageNet of the ILSVRC 2012, or images in its layouts, streamed from disk.

Nothing is unpacked, and images are decoded on demand. Images are numbered in the same
way in all three layouts: by class, then by file name.
"""

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from jsharp._files import composed, read_bytes
from jsharp.data import _archives, _formats, _left_out, _tar_index
from jsharp.data._encoded import (
  Encoded,
  FileImages,
  Listed,
  Names,
  RecordImages,
  TarImages,
  digest_of,
)
from jsharp.data._options import StreamedSource
from jsharp.options import option

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
VAL_LABELS = "imagenet_2012_validation_synset_labels.txt"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_MOST = 2**26
_VAL_FOLDERS = ("val", "valid", "validation")
_SPLITS = {"train": "train", "validation": "test"}
_FIX = (
  "Put there one of: train/CLASS/ and val/CLASS/ with images; "
  f"{TRAIN_TAR} and {VAL_TAR} with {VAL_LABELS} or {DEVKIT}; a dataset that "
  "tensorflow-datasets has prepared as array_record"
)


def load(
  data_dir: str | os.PathLike[str], *, prepared: str = "imagenet2012"
) -> dict[str, Listed]:
  """Lists the training images and the validation images, which are the test set.

  The first of these layouts that is found:

  - class folders `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`;
  - the official `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, the latter
    with `imagenet_2012_validation_synset_labels.txt`, a WordNet id for each image in
    the order of the names, or with `ILSVRC2012_devkit_t12.tar.gz`;
  - a dataset prepared by tensorflow-datasets as array_record, with features `image`,
    `label` and `file_name`.

  Args:
    data_dir: the directory.
    prepared: name of the prepared dataset.

  Returns:
    `{"train", "test"}`, with the same classes.

  Raises:
    FileNotFoundError: if no layout is found, or a part is missing.
    ValueError: if a class is empty or in one split only, an archive is truncated or the
      wrong one, or labels do not fit.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist. Put there one of: ...
  """
  root = pathlib.Path(data_dir).expanduser()
  if not root.is_dir():
    what = "is not a directory" if root.exists() else "does not exist"
    raise FileNotFoundError(f"data_dir={root} {what}. {_FIX}")
  if (root / "train").is_dir():
    found = _folders(root)
  elif (root / TRAIN_TAR).exists() or (root / VAL_TAR).exists():
    found = _tars(root)
  elif (root / prepared.split("/")[0].split(":")[0]).is_dir():
    found = _records(prepared, root)
  else:
    there = sorted(path.name for path in root.iterdir())
    raise FileNotFoundError(
      f"data_dir={root} does not contain ImageNet (found: "
      f"{', '.join(there[:10]) or 'nothing'}). {_FIX}"
    )
  return found


_Row = tuple[str, str, Any]
"""Class, file name, and location of an image."""


def _folders(root: pathlib.Path) -> dict[str, Listed]:
  val = next((root / name for name in _VAL_FOLDERS if (root / name).is_dir()), None)
  if val is None:
    raise FileNotFoundError(
      f"data_dir={root} has train/ but no val/. Put the validation images into "
      "val/CLASS/, with the same classes; they are the test set"
    )
  return _same_classes(
    {
      split: _in_order(
        folder,
        list(_images_below(folder)),
        lambda paths, folder=folder: FileImages(str(folder), Names(paths)),
      )
      for split, folder in (("train", root / "train"), ("test", val))
    }
  )


def _images_below(folder: pathlib.Path) -> Iterator[_Row]:
  with os.scandir(folder) as entries:
    classes = [
      e.name for e in entries if e.is_dir() and not _left_out.is_hidden(e.name)
    ]
  left_out = _left_out.LeftOut(folder)
  for name in classes:
    _archives.check_encodable(name, where=folder)
    with os.scandir(folder / name) as entries:
      files = [e.name for e in entries if not _left_out.is_hidden(e.name)]
    images = [file for file in files if left_out.is_image(file)]
    if not images:
      raise ValueError(
        f"{folder / name} has no {_formats.NAMES} files: the class is empty. Put its "
        "images directly into this folder, or remove it from train/ and val/"
      )
    for file in images:
      _archives.check_encodable(file, where=folder / name)
      yield composed(name), file, f"{name}/{file}"
  left_out.warn()


def _tars(root: pathlib.Path) -> dict[str, Listed]:
  paths = {"train": root / TRAIN_TAR, "test": root / VAL_TAR}
  for path in paths.values():
    if not path.exists():
      raise FileNotFoundError(f"data_dir={root} lacks {path.name}. {_FIX}")
  labels = _val_labels(root)
  found = {}
  for split, path in paths.items():
    index = _tar_index.index(path, nested=split == "train")
    count = len(index.names)
    if split == "train":
      classes = [index.groups[i] for i in range(count)]
    else:
      if len(labels) != count:
        raise ValueError(
          f"{path} has {count} images, but there are {len(labels)} labels for them. "
          "Fetch both again"
        )
      classes = labels
    rows = [(classes[i], index.names[i], i) for i in range(count)]

    def images(order: Sequence[int], path=path, index=index) -> Encoded:
      chosen = np.array(order, np.int64)
      names = index.names.take(chosen)
      return TarImages(str(path), names, index.starts[chosen], index.sizes[chosen])

    found[split] = _in_order(path, rows, images)
  return _same_classes(found)


def _val_labels(root: pathlib.Path) -> list[str]:
  """The classes of the validation images, in the order of their names."""
  path = root / VAL_LABELS
  if path.exists():
    words = read_bytes(path, most=_MOST).decode(errors="replace").split()
    if wrong := [word for word in words if len(word) > 100 or "\0" in word]:
      raise ValueError(
        f"{path} has {wrong[0][:20]!r}, which is not a class name. Provide one line "
        "with a WordNet id per image"
      )
    return words
  path = root / DEVKIT
  if not path.exists():
    raise FileNotFoundError(
      f"data_dir={root} has {VAL_TAR} but no labels for it. Put {VAL_LABELS} there, "
      f"one WordNet id per line and image in the order of their names, or {DEVKIT}"
    )
  contents = {
    pathlib.PurePosixPath(name).name: content
    for name, content in _archives.members(
      path, lambda name: pathlib.PurePosixPath(name).name in (_TRUTH, _META)
    )
  }
  if missing := {_TRUTH, _META} - contents.keys():
    raise ValueError(f"{path} lacks {', '.join(sorted(missing))}. Fetch it again")
  numbered = _numbered_classes(path, contents[_META])
  try:
    return [numbered[int(word)] for word in contents[_TRUTH].split()]
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"{path}: {_TRUTH} has the label {error}, not one of 1 to {max(numbered)}. "
      "Fetch it again"
    ) from error


def _numbered_classes(path: pathlib.Path, content: bytes) -> dict[int, str]:
  """The WordNet id of each ILSVRC number; leaf classes come first."""
  import scipy.io

  try:
    synsets = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    return {
      int(row["ILSVRC2012_ID"]): str(row["WNID"])
      for row in synsets
      if int(row["num_children"]) == 0
    }
  except Exception as error:  # The reader can raise anything for a damaged file.
    raise ValueError(
      f"{path}: {_META} cannot be read ({type(error).__name__}: {error}). Fetch it "
      "again"
    ) from error


def _records(name: str, root: pathlib.Path) -> dict[str, Listed]:
  from jsharp.data import _tfds_reader

  builder = _tfds_reader.opened(name, root, formats=("array_record",))
  _tfds_reader.check_features(name, builder.info.features, "image", "label")
  class_names = builder.info.features["label"].names
  there = set(builder.info.splits)
  if "file_name" not in builder.info.features or not there >= _SPLITS.keys():
    raise ValueError(
      f"{name} in {root} has the splits {', '.join(sorted(there))} and the features "
      f"{', '.join(builder.info.features)}; train, validation, image, label and "
      "file_name are needed. Prepare imagenet2012, or provide the images in folders"
    )
  found = {}
  for own, split in _SPLITS.items():
    source = _tfds_reader.encoded_source(builder, own, "image")
    place = f"{own} in {builder.data_dir}"
    rows = _listed_records(root, builder, own, source, class_names)

    def images(order: Sequence[int], source=source, place=place) -> Encoded:
      return RecordImages(source, place, np.array(order, np.int64))

    found[split] = _in_order(place, rows, images)
  return _same_classes(found)


def _listed_records(
  root: pathlib.Path, builder: Any, split: str, source: Any, class_names: Sequence[str]
) -> list[_Row]:
  """Class, file name and number of every record, found by reading all once."""
  files = [pathlib.Path(path) for path in builder.info.splits[split].filepaths]

  def make() -> dict[str, np.ndarray]:
    labels, names = [], []
    for number in range(len(source)):
      record = source[number]
      label, file = int(record["label"]), record["file_name"]
      if not 0 <= label < len(class_names):
        raise ValueError(
          f"record {number} of {split} in {builder.data_dir} has the label {label}, "
          f"outside the {len(class_names)} classes. Prepare the dataset again"
        )
      labels.append(label)
      names.append(file.decode() if isinstance(file, bytes) else str(file))
    kept = Names(names)
    return {
      "labels": np.array(labels, np.int32),
      "names": kept.blob,
      "names_ends": kept.ends,
    }

  what = f"records of {split} in {builder.data_dir}"
  found = _tar_index.kept(root, files, ("records", split), make, what=what)
  names = Names.of(found["names"], found["names_ends"])
  return [
    (class_names[label], pathlib.PurePosixPath(names[number]).name, number)
    for number, label in enumerate(found["labels"].tolist())
  ]


def _in_order(place: object, rows: list[_Row], images: Any) -> Listed:
  """Sorts the images by class and file name."""
  if not rows:
    raise ValueError(f"{place} has no images. {_FIX}")
  rows.sort(key=lambda row: row[:2])
  class_names = sorted({row[0] for row in rows})
  numbers = {name: number for number, name in enumerate(class_names)}
  labels = np.array([numbers[row[0]] for row in rows], np.int32)
  digest = digest_of(class_names, labels, Names(row[1] for row in rows))
  return Listed(images([row[2] for row in rows]), labels, tuple(class_names), digest)


def _same_classes(found: dict[str, Listed]) -> dict[str, Listed]:
  train, test = (set(found[split].class_names) for split in ("train", "test"))
  if different := sorted(train ^ test):
    only = [f"{name} (in {'train' if name in train else 'val'})" for name in different]
    more = f" and {len(only) - 5} more" if len(only) > 5 else ""
    raise ValueError(
      f"the classes of train and val differ: {', '.join(only[:5])}{more} in one of "
      f"them only, of {len(train)} and {len(test)}. Give both the same classes"
    )
  if len(train) < 2:
    raise ValueError(f"train has only the class {min(train)}; it needs at least two")
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet(StreamedSource):
  """ImageNet (ILSVRC 2012), or images in its layouts, streamed from disk."""

  name: ClassVar[str] = "imagenet"
  files: ClassVar[str] = (
    "pass the directory with train/CLASS/ and val/CLASS/, the official tar files or a "
    "prepared imagenet2012 as --data_dir"
  )
  # Of the training images, in [0, 1]: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225.
  pixel_mean: ClassVar[tuple[float, ...]] = (123.675, 116.28, 103.53)
  pixel_deviation: ClassVar[tuple[float, ...]] = (58.395, 57.12, 57.375)

  prepared: str = option(
    "imagenet2012",
    "Name of the dataset if it was prepared by tensorflow-datasets.",
  )

  def listed(self, directory: str) -> dict[str, Listed]:
    return load(directory, prepared=self.prepared)
