"""Conversion of a dataset's images to those of a learner of another domain."""

import dataclasses

import numpy as np

from jsharp.data import _pixels, pictures
from jsharp.data.dataset import Dataset
from jsharp.data.pictures import Looks


def fit_to(
  dataset: Dataset, looks: Looks, *, light_ink: bool = False
) -> tuple[Dataset, str]:
  """Resizes and converts the images of a dataset to fit a learner.

  Args:
    dataset: on the host, images with 1 or 3 channels.
    looks: how the learner's images are prepared.
    light_ink: whether the dataset's images are already drawings in light ink.

  Returns:
    The dataset in the learner's shape, and a description of the changes, such as "84x84
    colour to 28x28 gray, box filter"; empty if there are none.

  Example:
    >>> images = np.zeros((2, 8, 6, 3), np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images}, split="test")
    >>> fit_to(dataset, Looks((4, 4, 1)))
    (Dataset(split='test', 1 classes, 2 images of 4x4x1), '8x6 colour to 4x4 gray, ...')
    >>> fit_to(dataset, Looks((8, 6, 3)))[1]
    ''
  """
  own, wanted = dataset.image_shape, looks.shape
  looks = dataclasses.replace(looks, light_ink=looks.light_ink and not light_ink)
  if own == wanted and not looks.light_ink:
    return dataset, ""
  found = list(
    _pixels.map_threads(
      lambda image: pictures.read([image], looks)[0], np.asarray(dataset.images)
    )
  )
  steps = []
  if own != wanted:
    steps.append(f"{_said(own)} to {_said(wanted)}, {looks.filter.lower()} filter")
  if looks.light_ink:
    steps.append("dark ink on a light ground inverted")
  return dataclasses.replace(dataset, images=np.stack(found)), ", ".join(steps)


def _said(shape: tuple[int, ...]) -> str:
  height, width, channels = shape
  return f"{height}x{width} {'gray' if channels == 1 else 'colour'}"
