"""Datasets that tensorflow-datasets has already prepared, read without TensorFlow.

Few-shot learning needs splits with different classes; most prepared datasets split the
images instead. The dataset's own splits are kept if their classes differ; otherwise all
images are joined and the classes are divided.
"""

import dataclasses
import os
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import numpy as np

from jsharp._files import composed
from jsharp.data import _pixels, _tfds_reader, splits
from jsharp.data._options import ImageSource, LabelledSource
from jsharp.data.dataset import Dataset
from jsharp.data.same_classes import check_same_classes
from jsharp.options import at_least, option

# Formats that an `Image` feature of tensorflow-datasets can decode.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP")

_Classes = dict[str, list[np.ndarray]]


def load(
  name: str,
  data_dir: str | os.PathLike,
  *,
  size: int | None = None,
  image: str = "image",
  label: str = "label",
  split_seed: int = 0,
) -> dict[str, Dataset]:
  """A prepared tensorflow-datasets dataset with an image and a label per record.

  The splits called train, val (valid, validation) and test are used; others only if
  there are none of these. If train and test exist without common classes, they are
  kept, and val too; a missing val gets a fifth of the train classes. In all other cases
  the images of all splits are joined, and 64 % / 16 % / 20 % of the classes become
  train / val / test. Classes are chosen by a permutation of their sorted names that
  depends on `split_seed`.

  Args:
    name: `dataset`, `dataset/config` or `dataset/config:version`.
    data_dir: the directory that tensorflow-datasets prepared it in.
    size: height and width in pixels that every image is resized to, by Lanczos'
      filter without keeping the aspect; None expects images of one size.
    image: name of the image feature.
    label: name of the class label feature.
    split_seed: decides the split of each class if the dataset does not.

  Returns:
    `{"train", "val", "test"}` with uint8 images `[num_images, height, width,
    channels]`.

  Raises:
    FileNotFoundError: if nothing of that name is prepared in `data_dir`.
    ValueError: if the records were written as tfrecord, lack the features or have
      images of several sizes; if there are fewer than three classes; or if the dataset
      has a feature whose class would have to be imported.

  Example:
    >>> load("omniglot", "/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere has no prepared dataset omniglot...
  """
  builder = _tfds_reader.opened(name, data_dir)
  _tfds_reader.check_features(name, builder.info.features, image, label)
  own = {
    own_name: split
    for own_name in builder.info.splits
    if (split := splits.FOLDERS.get(own_name))
  }
  found: dict[str, _Classes] = {}
  for own_name in own or builder.info.splits:
    classes = found.setdefault(own.get(own_name, "all"), {})
    for class_name, pixel in _read(builder, own_name, image, label, size):
      classes.setdefault(class_name, []).append(pixel)
  divided = _divide(name, found, split_seed)
  return {
    split: Dataset.from_class_arrays(
      {class_name: np.stack(images) for class_name, images in classes.items()},
      split=split,
    )
    for split, classes in divided.items()
  }


def load_labelled(
  name: str,
  data_dir: str | os.PathLike,
  *,
  size: int | None = None,
  image: str = "image",
  label: str = "label",
) -> dict[str, Dataset]:
  """The dataset's own splits of images, the same classes in each.

  Args:
    name: as for `load`.
    data_dir: as for `load`.
    size: as for `load`.
    image: name of the image feature.
    label: name of the class label feature.

  Returns:
    `{"train", "test"}`, with `"val"` if the dataset has one: uint8 images `[num_images,
    height, width, channels]`, classes in the order of their labels.

  Raises:
    FileNotFoundError: if nothing of that name is prepared in `data_dir`.
    ValueError: if there is no split train or test, a class is in only one of them, or
      the records are invalid as for `load`.

  Example:
    >>> load_labelled("cifar10", "/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere has no prepared dataset cifar10...
  """
  builder = _tfds_reader.opened(name, data_dir)
  _tfds_reader.check_features(name, builder.info.features, image, label)
  own = {splits.FOLDERS.get(own_name): own_name for own_name in builder.info.splits}
  if not own.keys() >= {"train", "test"}:
    raise ValueError(
      f"{name} has the splits {', '.join(builder.info.splits)}; ordinary training "
      "needs train and test."
    )
  datasets: dict[str, Dataset] = {}
  for split in ("train", "val", "test"):
    if split not in own:
      continue
    classes: _Classes = {
      composed(class_name): [] for class_name in builder.info.features[label].names
    }
    for class_name, pixel in _read(builder, own[split], image, label, size):
      classes[class_name].append(pixel)
    datasets[split] = Dataset.from_class_arrays(
      {
        class_name: np.stack(images) for class_name, images in classes.items() if images
      },
      split=split,
    )
  check_same_classes(datasets)
  return datasets


def _read(
  builder: Any, split: str, image: str, label: str, size: int | None
) -> Iterator[tuple[str, np.ndarray]]:
  """Class name and image of every record of a split."""
  source = _tfds_reader.encoded_source(builder, split, image)
  features = builder.info.features
  mode = "L" if features[image].shape[-1] == 1 else "RGB"

  def decode(index: int) -> tuple[str, np.ndarray]:
    record = source[index]
    place = f"record {index} of {split} in {builder.data_dir}"
    pixel = _pixels.decode(record[image], name=place, mode=mode, formats=_FORMATS)
    name = features[label].int2str(int(record[label]))
    return composed(name), _pixels.to_size(pixel, size)

  shape = None
  for index, item in enumerate(_pixels.map_threads(decode, range(len(source)))):
    shape = shape or item[1].shape
    if item[1].shape != shape:
      raise ValueError(
        f"record {index} of {split} in {builder.data_dir} is {item[1].shape}, others "
        f"are {shape} [height, width, channels]: pass size=."
      )
    yield item


def _divide(name: str, found: dict[str, _Classes], seed: int) -> dict[str, _Classes]:
  """The classes of train, val and test, none in two of them."""
  names = [class_name for classes in found.values() for class_name in classes]
  if len(set(names)) == len(names) and {"train", "test"} <= found.keys():
    if "val" in found:
      return {split: found[split] for split in ("train", "val", "test")}
    order = splits.permutation(tuple(sorted(found["train"])), seed)
    num_val = max(1, len(order) // 5)
    parts: dict[str, Collection[str]] = {
      "train": order[num_val:],
      "val": order[:num_val],
      "test": found["test"],
    }
  else:
    try:
      parts = {**splits.divided(tuple(set(names)), seed, least=1)}
    except ValueError as error:
      raise ValueError(
        f"{name} cannot be divided into three splits: {error}"
      ) from error
  pooled: _Classes = {}
  for classes in found.values():
    for class_name, images in classes.items():
      pooled.setdefault(class_name, []).extend(images)
  return {
    split: {class_name: pooled[class_name] for class_name in sorted(class_names)}
    for split, class_names in parts.items()
  }


_FILES = "pass the directory that tensorflow-datasets prepared it in as --data_dir"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(ImageSource):
  """Already prepared by tensorflow-datasets, as tfds:NAME."""

  name: ClassVar[str] = "tfds:"
  files: ClassVar[str] = _FILES

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(self.name.removeprefix("tfds:"), directory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTFDS(LabelledSource):
  """Already prepared by tensorflow-datasets, with its own splits, as tfds:NAME."""

  name: ClassVar[str] = "tfds:"
  files: ClassVar[str] = _FILES

  image_size: int | None = option(
    None,
    "Height and width in pixels that images are resized to. Default: no resizing.",
    check=at_least(1),
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    name = self.name.removeprefix("tfds:")
    return load_labelled(name, directory, size=self.image_size)
