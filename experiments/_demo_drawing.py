"""Strokes and uploaded files as the images that a learner was trained on.

People draw anywhere on an empty page and at any size. The drawings of a dataset are
alike in both, and in the width of their strokes. So a drawing is moved to the middle,
scaled if it is smaller or larger than usual, and inked with the pen of the training
data. docs/demo.md says what that is worth.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jsharp.data import _formats, _modes, _pixels

MAX_PIXELS = 64_000_000
"""Pixels of an uploaded picture; decoding takes up to four bytes for each."""

MAX_SIDE = 1024
"""Longest side of a picture that is named; uploads are made smaller first."""

MAX_POINTS = 5000
"""Points of one drawing."""

_SMALL_SIDE = 256  # an upload's shorter side; learners see 84 pixels or fewer
_SUPERSAMPLING = 8


class Hand(NamedTuple):
  """How drawings of a dataset look; lengths are shares of the image's side.

  Attributes:
    pen: width of a stroke.
    smallest: longer side of the ink; smaller drawings are scaled up to it.
    largest: larger drawings are scaled down to it.
  """

  pen: float
  smallest: float
  largest: float


# Measured on test drawings: the longer side is 0.65 +- 0.13 and 0.81 +- 0.09.
HANDS = {
  "omniglot": Hand(0.047, 0.6, 0.7),
  "characters": Hand(0.0625, 0.76, 0.86),
}
"""By the name of the dataset."""


class RefusedError(ValueError):
  """A request that cannot be answered; the message is for the person at the page."""


def render(
  strokes: Sequence[np.ndarray], *, size: tuple[int, int], hand: Hand
) -> np.ndarray:
  """Draws strokes as the learner's training data are drawn.

  Args:
    strokes: each `[num_points, 2]`, x to the right and y down, in units of the pad.
    size: height and width of the image in pixels.
    hand: how its drawings look.

  Returns:
    uint8 `[height, width, 1]`: 255 times the share of ink in each pixel.

  Example:
    >>> dot = render([np.array([[0.1, 0.2]])], size=(5, 5), hand=Hand(0.2, 0.6, 0.7))
    >>> bool(dot[2, 2, 0] > 150), int(dot[0, 0, 0])
    (True, 0)
  """
  from PIL import Image, ImageDraw

  points = np.concatenate(strokes)
  low, high = points.min(axis=0), points.max(axis=0)
  length = float((high - low).max())
  scale = 1.0
  if length > hand.pen:  # a dot stays a dot
    wanted = min(max(length, hand.smallest - hand.pen), hand.largest - hand.pen)
    scale = wanted / length
  side = _SUPERSAMPLING * max(size)
  width = max(1, round(hand.pen * side))
  image = Image.new("L", (side, side))
  draw = ImageDraw.Draw(image)
  for stroke in strokes:
    placed = ((stroke - (low + high) / 2) * scale + 0.5) * side
    draw.line([tuple(point) for point in placed], fill=255, width=width)
    for x, y in placed:  # round joints and ends
      box = (x - width / 2, y - width / 2, x + width / 2, y + width / 2)
      draw.ellipse(box, fill=255)
  height, width = size
  return np.asarray(image.resize((width, height), Image.Resampling.BOX))[..., None]


def strokes_of(value: Any) -> list[np.ndarray]:
  """The strokes of a request, checked.

  Args:
    value: a list of strokes, each a list of points `[x, y]`.

  Returns:
    Each stroke as float `[num_points, 2]`.

  Raises:
    RefusedError: it is nothing like that, empty, or longer than `MAX_POINTS`.

  Example:
    >>> strokes_of([[[0.5, 0.25]]])[0].tolist()
    [[0.5, 0.25]]
  """
  if not isinstance(value, list) or not all(
    isinstance(stroke, list) for stroke in value
  ):
    raise RefusedError("strokes must be a list of lists of points [x, y].")
  if sum(map(len, value)) > MAX_POINTS:
    raise RefusedError(
      f"A drawing has more than {MAX_POINTS} points; clear it and draw less."
    )
  try:
    strokes = [np.asarray(stroke, np.float64) for stroke in value]
  except (TypeError, ValueError) as error:
    raise RefusedError("points must be pairs of numbers [x, y].") from error
  if not strokes or any(s.ndim != 2 or s.shape[1] != 2 or not len(s) for s in strokes):
    raise RefusedError("a drawing needs a stroke, and every stroke a point [x, y].")
  if not all((np.abs(stroke) < 100).all() for stroke in strokes):
    raise RefusedError("points must lie on the pad, from 0 to 1.")
  return strokes


def upload(data: bytes, name: str) -> bytes:
  """An uploaded picture, upright and small enough to be sent with every request.

  Args:
    data: the encoded picture, of any format that jsharp reads.
    name: what the person calls it, for the message.

  Returns:
    A PNG, gray or in colour, its shorter side at most 256 pixels.

  Raises:
    RefusedError: it is no picture, damaged, or of more than `MAX_PIXELS` pixels.
  """
  from PIL import Image

  formats = sorted({kind for kinds in _formats.FORMATS.values() for kind in kinds})
  try:
    with _formats.open_image(data, name=name, formats=formats) as image:
      if math.prod(image.size) > MAX_PIXELS:
        raise Image.DecompressionBombError
    pixels = _pixels.decode(data, name=name, mode=None, formats=formats)
  except Image.DecompressionBombError as error:
    raise RefusedError(
      f"{name} has more than {MAX_PIXELS // 10**6} million pixels; make it smaller."
    ) from error
  except (_formats.WrongFormatError, _modes.WrongModeError) as error:
    raise RefusedError(str(error)) from error
  except Exception as error:  # a damaged picture can make Pillow raise anything
    raise RefusedError(
      f"{name} is damaged or no picture. Choose one in {_formats.NAMES}."
    ) from error
  picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  scale = min(1.0, _SMALL_SIDE / min(picture.size), MAX_SIDE / max(picture.size))
  if scale < 1:
    width, height = (math.ceil(side * scale) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
  encoded = io.BytesIO()
  picture.save(encoded, "PNG")
  return encoded.getvalue()


def photograph(value: Any) -> np.ndarray:
  """A picture of a request, checked.

  Args:
    value: what `upload` returned, in base64.

  Returns:
    uint8 `[height, width, channels]`, 1 or 3 channels.

  Raises:
    RefusedError: it is nothing like that.
  """
  try:
    data = base64.b64decode(value, validate=True)
    with _formats.open_image(data, name="the picture", formats=("PNG",)) as image:
      if max(image.size) > MAX_SIDE:
        raise RefusedError(f"a picture has more than {MAX_SIDE} pixels along a side.")
    return _pixels.decode(data, name="the picture", mode=None, formats=("PNG",))
  except RefusedError:
    raise
  except Exception as error:
    raise RefusedError(f"a picture is no PNG in base64: {error}") from error


def inked(pixels: np.ndarray, hand: Hand) -> np.ndarray:
  """A picture of a drawing as light ink in the middle of a dark square.

  Args:
    pixels: uint8 `[height, width, channels]`, 1 or 3 channels, of a dark drawing on a
      light ground or the other way round.
    hand: how the learner's drawings look.

  Returns:
    uint8 `[side, side, 1]`: the ground 0, the strongest ink 255, and the ink as
    large as drawings usually are. A picture without any ink is all ground.

  Example:
    >>> page = np.full((20, 20, 3), 255, np.uint8)
    >>> page[2:8, 3:5] = 0
    >>> inked(page, HANDS["omniglot"]).shape
    (9, 9, 1)
  """
  from PIL import Image

  gray = pixels.mean(axis=-1)
  # Ink covers the smaller part of a drawing, so its median pixel is ground.
  distance = np.abs(gray - np.median(gray))
  ink = distance / max(distance.max(), 1.0)
  rows, columns = (np.flatnonzero((ink > 0.4).any(axis=axis)) for axis in (1, 0))
  if not len(rows):
    return np.zeros((*gray.shape, 1), np.uint8)
  top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
  side = math.ceil(max(bottom - top, right - left) / hand.largest)
  square = Image.fromarray((255 * ink).astype(np.uint8)).crop(
    (
      (left + right - side) // 2,
      (top + bottom - side) // 2,
      (left + right - side) // 2 + side,
      (top + bottom - side) // 2 + side,
    )
  )
  return np.asarray(square)[..., None]


def data_url(image: np.ndarray) -> str:
  """An image as an address that holds it.

  Args:
    image: uint8 `[height, width, channels]`, 1 or 3 channels.

  Example:
    >>> data_url(np.zeros((2, 2, 1), np.uint8))[:22]
    'data:image/png;base64,'
  """
  from PIL import Image

  encoded = io.BytesIO()
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(pixels).save(encoded, "PNG")
  return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
