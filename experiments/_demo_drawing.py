"""Strokes and uploaded files as the images that a learner was trained on.

People draw anywhere on an empty page and at any size. The drawings of a dataset have a
similar position, size and stroke width. So a drawing is centred, scaled if it is
smaller or larger than usual, and drawn with the stroke width of the training data.
docs/demo.md has the effect on accuracy.
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
"""Maximum pixels of an uploaded picture; decoding takes up to four bytes for each."""

MAX_SIDE = 1024
"""Maximum side of a picture to recognise; uploads are reduced first."""

MAX_POINTS = 5000
"""Maximum points of one drawing."""

_SMALL_SIDE = 256  # An upload's shorter side; learners use 84 pixels or fewer.
_SUPERSAMPLING = 8


class Hand(NamedTuple):
  """The look of a dataset's drawings; lengths are fractions of the image's side.

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
"""The look of drawings, by the name of the dataset."""


class RefusedError(ValueError):
  """A request that cannot be answered; the message is shown to the user."""


def render(
  strokes: Sequence[np.ndarray], *, size: tuple[int, int], hand: Hand
) -> np.ndarray:
  """Draws strokes as the learner's training data are drawn.

  Args:
    strokes: each `[num_points, 2]`, x to the right and y down, in units of the pad.
    size: height and width of the image in pixels.
    hand: the look of its drawings.

  Returns:
    uint8 `[height, width, 1]`: 255 times the fraction of ink in each pixel.

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
  if length > hand.pen:  # A dot stays a dot.
    wanted = min(max(length, hand.smallest - hand.pen), hand.largest - hand.pen)
    scale = wanted / length
  side = _SUPERSAMPLING * max(size)
  width = max(1, round(hand.pen * side))
  image = Image.new("L", (side, side))
  draw = ImageDraw.Draw(image)
  for stroke in strokes:
    placed = ((stroke - (low + high) / 2) * scale + 0.5) * side
    draw.line([tuple(point) for point in placed], fill=255, width=width)
    for x, y in placed:  # Round joints and ends.
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
    RefusedError: if it has another form, is empty, or has more than `MAX_POINTS`
      points.

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
  """Rotates an uploaded picture upright and reduces it, to be sent with every request.

  Args:
    data: the encoded picture, of any format that jsharp reads.
    name: the file name, for the message.

  Returns:
    A PNG, gray or in colour, its shorter side at most 256 pixels.

  Raises:
    RefusedError: if it is not a picture, is damaged, or has more than `MAX_PIXELS`
      pixels.
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
  except Exception as error:  # Pillow can raise anything for a damaged picture.
    raise RefusedError(
      f"{name} is damaged or not a picture. Choose one in {_formats.NAMES}."
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
    value: the result of `upload`, in base64.

  Returns:
    uint8 `[height, width, channels]`, 1 or 3 channels.

  Raises:
    RefusedError: if it is anything else.
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
    raise RefusedError(f"a picture is not a PNG in base64: {error}") from error


def inked(pixels: np.ndarray, hand: Hand) -> np.ndarray:
  """Converts a picture of a drawing to light ink, centred in a dark square.

  Args:
    pixels: uint8 `[height, width, channels]`, 1 or 3 channels, of a dark drawing on a
      light background or the other way round.
    hand: the look of the learner's drawings.

  Returns:
    uint8 `[side, side, 1]`: background 0, strongest ink 255, and the ink scaled to the
    usual size of drawings. A picture without ink is all background.

  Example:
    >>> page = np.full((20, 20, 3), 255, np.uint8)
    >>> page[2:8, 3:5] = 0
    >>> inked(page, HANDS["omniglot"]).shape
    (9, 9, 1)
  """
  from PIL import Image

  gray = pixels.mean(axis=-1)
  # Ink covers less than half of a drawing, so its median pixel is background.
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
  """Encodes an image as a data URL.

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
