"""Datasets that split images instead of classes: every split has the same classes."""

from collections.abc import Mapping

import numpy as np

from jsharp.data.dataset import Dataset


def first_classes(dataset: Dataset, num_classes: int) -> Dataset:
  """The dataset with its first classes only.

  Example:
    >>> images = np.zeros([4, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="all")
    >>> first_classes(dataset, 1)
    Dataset(split='all', 1 classes, 4 images of 8x8x1)
  """
  return _select(dataset, dataset.split, num_classes, slice(None))


def split_classes(dataset: Dataset, num_test: int) -> dict[str, Dataset]:
  """Splits off the last images of every class as the test set.

  Args:
    dataset: any dataset on the host.
    num_test: test images per class.

  Returns:
    `{"train", "test"}` with the same classes.

  Raises:
    ValueError: if the smallest class has no image left for training.

  Example:
    >>> images = np.zeros([4, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="all")
    >>> split_classes(dataset, 1)["train"]
    Dataset(split='train', 2 classes, 6 images of 8x8x1)
  """
  name, count = dataset.smallest
  if not 0 < num_test < count:
    raise ValueError(
      f"num_test is {num_test}, but class {name!r} has {count} images: use 1 to "
      f"{count - 1}"
    )
  cuts = {"train": slice(None, -num_test), "test": slice(-num_test, None)}
  return {
    split: _select(dataset, split, dataset.num_base_classes, cut)
    for split, cut in cuts.items()
  }


def split_share(dataset: Dataset, share: float) -> dict[str, Dataset]:
  """Splits off a fraction of the images of every class, the last ones, as the test set.

  Args:
    dataset: any dataset on the host; rotations are left out.
    share: the fraction, between 0 and 1. Each part gets at least one image per class.

  Returns:
    `{"train", "test"}` with the same classes.

  Raises:
    ValueError: if a class has only one image.

  Example:
    >>> images = np.zeros([20, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images[:4]}, split="all")
    >>> split_share(dataset, 0.1)["test"].counts.tolist()
    [2, 1]
  """
  name, count = dataset.smallest
  if count < 2:
    raise ValueError(
      f"class {name!r} has only one image, so none would be left for training; add "
      "images, or leave the class out"
    )
  counts = np.asarray(dataset.counts)
  tested = np.clip(np.round(share * counts).astype(np.int32), 1, counts - 1)
  ends = np.cumsum(counts)
  is_test = np.zeros(len(dataset.images), bool)
  for end, number in zip(ends, tested, strict=True):
    is_test[end - number : end] = True
  parts = {}
  for split, chosen, sizes in (
    ("train", ~is_test, counts - tested),
    ("test", is_test, tested),
  ):
    parts[split] = Dataset(
      images=np.asarray(dataset.images)[chosen],
      offsets=(np.cumsum(sizes) - sizes).astype(np.int32),
      counts=sizes.astype(np.int32),
      class_names=dataset.class_names,
      split=split,
    )
  return parts


def _select(dataset: Dataset, split: str, num_classes: int, cut: slice) -> Dataset:
  images = np.split(np.asarray(dataset.images), np.asarray(dataset.offsets)[1:])
  pairs = list(zip(dataset.class_names, images, strict=True))[:num_classes]
  return Dataset.from_class_arrays({name: i[cut] for name, i in pairs}, split=split)


def check_same_classes(datasets: Mapping[str, Dataset]) -> None:
  """Checks that all splits have the classes and image shape of `train`.

  Args:
    datasets: the datasets by split, including `train`.

  Raises:
    ValueError: if a split has other classes or images of another shape.

  Example:
    >>> images = np.zeros([2, 8, 8, 1], np.uint8)
    >>> one, two = (
    ...   Dataset.from_class_arrays({name: images}, split="train") for name in "ab")
    >>> check_same_classes({"train": one, "test": two})
    Traceback (most recent call last):
    ...
    ValueError: the classes of test are not those of train: 'a' is in only one of \
them. For other classes in test use a few-shot experiment
  """
  train = datasets["train"]
  for split, dataset in datasets.items():
    if different := sorted(set(dataset.class_names) ^ set(train.class_names)):
      raise ValueError(
        f"the classes of {split} are not those of train: {different[0]!r} is in only "
        "one of them. For other classes in test use a few-shot experiment"
      )
    if dataset.class_names != train.class_names:
      raise ValueError(f"the classes of {split} are not in the order of train's")
    if dataset.image_shape != train.image_shape:
      raise ValueError(
        f"the images of {split} have shape {dataset.image_shape}, but those of train "
        f"{train.image_shape}: pass a size to resize them to"
      )
