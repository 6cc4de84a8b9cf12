"""Crops of photographs, resized to one size.

Crops are random in training (Szegedy et al. 2015, arXiv 1409.4842) and central at test.
Sizes differ from image to image, so images are cropped on the host, one at a time.
"""

import math

import numpy as np

AREA = (0.08, 1.0)
"""Smallest and largest fraction of an image that a random crop covers."""

ASPECT = (3 / 4, 4 / 3)
"""Smallest and largest width of a random crop, divided by its height."""

CENTRAL = 224 / 256
"""Fraction of the shorter side that the central crop covers."""

FILTER = "BICUBIC"
"""The Pillow filter that resizes crops."""

_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


def random_box(draw: np.random.RandomState, height: int, width: int) -> Box:
  """A crop with random area, aspect ratio and position.

  The area is uniform between the fractions `AREA` of the image, the logarithm of the
  aspect ratio uniform between those of `ASPECT`, and the position uniform. A crop that
  does not fit into the image is drawn again; after ten attempts it is the central crop.

  Args:
    draw: the source of random numbers.
    height: height of the image in pixels.
    width: width of the image in pixels.

  Returns:
    The rectangle, at least one pixel wide and high.

  Example:
    >>> random_box(np.random.RandomState(0), 300, 400)
    (71, 28, 353, 277)
  """
  low, high = map(math.log, ASPECT)
  for _ in range(_ATTEMPTS):
    share, ratio, column, row = draw.random_sample(4)
    area = (AREA[0] + (AREA[1] - AREA[0]) * share) * height * width
    aspect = math.exp(low + (high - low) * ratio)
    wide = max(1, round(math.sqrt(area * aspect)))
    tall = max(1, round(math.sqrt(area / aspect)))
    if wide <= width and tall <= height:
      left = int(column * (width - wide + 1))
      top = int(row * (height - tall + 1))
      return left, top, left + wide, top + tall
  return central_box(height, width)


def central_box(height: int, width: int) -> Box:
  """The central square that covers the fraction `CENTRAL` of the shorter side.

  Example:
    >>> central_box(256, 320)
    (48, 16, 272, 240)
  """
  side = max(1, round(CENTRAL * min(height, width)))
  left, top = (width - side) // 2, (height - side) // 2
  return left, top, left + side, top + side


def cropped(image: np.ndarray, box: Box, size: int) -> np.ndarray:
  """Crops an image and resizes the crop to a square.

  Args:
    image: `[height, width, 3]` uint8.
    box: the rectangle.
    size: side of the square in pixels.

  Returns:
    `[size, size, 3]` uint8.

  Example:
    >>> cropped(np.full((4, 6, 3), 9, np.uint8), (1, 0, 5, 4), 2)[..., 0].tolist()
    [[9, 9], [9, 9]]
  """
  from PIL import Image

  resample = Image.Resampling[FILTER]
  resized = Image.fromarray(image).resize((size, size), resample, box=box)
  return np.asarray(resized)
