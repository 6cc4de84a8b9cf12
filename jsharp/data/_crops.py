"""Rectangles of photographs, and their pixels at one size.

The rectangle that is trained on is random (Szegedy et al. 2015, arXiv 1409.4842); the
one that is tested is in the middle. Sizes differ from image to image, so this happens
on the host, one image at a time.
"""

import math

import numpy as np

AREA = (0.08, 1.0)
"""Smallest and largest share of an image that a random rectangle covers."""

ASPECT = (3 / 4, 4 / 3)
"""Smallest and largest width of a random rectangle, divided by its height."""

CENTRAL = 224 / 256
"""Share of the shorter side that the rectangle in the middle covers."""

FILTER = "BICUBIC"
"""Pillow's filter that rectangles are resized by."""

_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are outside."""


def random_box(draw: np.random.RandomState, height: int, width: int) -> Box:
  """A rectangle whose area and aspect are drawn.

  The area is uniform between the shares `AREA` of the image, the logarithm of the
  aspect between those of `ASPECT`, the position uniform. What does not fit into the
  image is drawn anew; after ten of these it is the rectangle in the middle.

  Args:
    draw: where the random numbers come from.
    height: of the image in pixels.
    width: of the image in pixels.

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
  """The square in the middle that covers `CENTRAL` of the shorter side.

  Example:
    >>> central_box(256, 320)
    (48, 16, 272, 240)
  """
  side = max(1, round(CENTRAL * min(height, width)))
  left, top = (width - side) // 2, (height - side) // 2
  return left, top, left + side, top + side


def cropped(image: np.ndarray, box: Box, size: int) -> np.ndarray:
  """The pixels of a rectangle, resized to a square.

  Args:
    image: `[height, width, 3]` uint8.
    box: the rectangle.
    size: of the square in pixels.

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
