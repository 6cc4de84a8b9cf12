"""Few-shot characters drawn by this module, for machines without data.

Every class is a made-up character of two to four strokes (lines, arcs,
S-curves), often connected; every drawing of it moves the control points, rotates,
shears, stretches and shifts the whole, and chooses a pen width. Nothing is downloaded
or stored.

The images depend only on the seed and are bitwise equal everywhere: random numbers come
from the raw output of NumPy's Philox counter generator (whose stream is fixed, unlike
that of `Generator`'s methods), and drawing uses only operations that IEEE 754 rounds
exactly (`+ - * /`, square root, comparisons). `docs/characters.md` has the difficulty
of the classes.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from jsharp.data import same_classes
from jsharp.data._options import ImageSource, LabelledSource
from jsharp.data.dataset import Dataset
from jsharp.data.pictures import Filter
from jsharp.options import at_least, between, option

NUM_CLASSES = {"train": 320, "val": 60, "test": 100}
"""Classes per split; the splits use consecutive characters in this order."""

_LEAST_SIZE = 8
_MAX_STROKES = 4
_SEGMENTS = 8  # Straight segments per stroke.
_STROKE_NUMBERS = 10  # Random numbers that define a stroke.
_POSE_NUMBERS = 7  # Random numbers that define a drawing, without control points.

# How much drawings of one character differ, in units of half the image.
_JITTER = 0.2  # largest shift of a control point, in x and in y
_TURN = 0.15  # tan of half the largest angle
_SHEAR = 0.2
_STRETCH = 0.15
_SHIFT = 0.12
_PEN = (0.04, 0.085)  # half of the stroke's width


def load(
  *, seed: int = 0, num_drawings: int = 20, size: int = 28, only: str | None = None
) -> dict[str, Dataset]:
  """Draws the dataset: 320 training, 60 validation and 100 test classes.

  Example:
    >>> splits = load(num_drawings=2)
    >>> splits["test"]
    Dataset(split='test', 100 classes, 200 images of 28x28x1)

  Args:
    seed: each seed has its own classes and drawings.
    num_drawings: images per class. The first images do not depend on this number.
    size: height and width in pixels.
    only: the only split to draw: "train", "val" or "test".

  Returns:
    `"train"`, `"val"` and `"test"`, or only the requested one, on the host, with no
    class in common; images `[num_images, size, size, 1]`, ink 255 on 0.

  Raises:
    ValueError: if the seed is outside `[0, 2**64)`, `num_drawings` is below 1, or
      `size` is below 8.
  """
  if not 0 <= seed < 2**64:
    raise ValueError(f"seed is {seed}; it must lie in [0, 2**64)")
  if num_drawings < 1:
    raise ValueError(f"num_drawings is {num_drawings}; it must be at least 1")
  if size < _LEAST_SIZE:
    raise ValueError(f"size is {size}; characters need at least {_LEAST_SIZE} pixels")
  if only not in (None, *NUM_CLASSES):
    raise ValueError(f"only is {only!r}; it must be one of {', '.join(NUM_CLASSES)}")
  splits, first = {}, 0
  for split, num_classes in NUM_CLASSES.items():
    indices = range(first, first + num_classes)
    first += num_classes
    if only not in (None, split):
      continue
    splits[split] = Dataset(
      images=_draw(seed, num_drawings, size, indices).reshape(-1, size, size, 1),
      offsets=np.arange(num_classes, dtype=np.int32) * np.int32(num_drawings),
      counts=np.full(num_classes, num_drawings, np.int32),
      class_names=tuple(f"character{index:03d}" for index in indices),
      split=split,
    )
  return splits


@functools.lru_cache(maxsize=len(NUM_CLASSES))
def _draw(seed: int, num_drawings: int, size: int, indices: range) -> np.ndarray:
  """Draws classes, `[num_classes, num_drawings, size, size]` uint8, read-only."""
  images = np.empty([len(indices), num_drawings, size, size], np.uint8)
  for place, index in enumerate(indices):
    strokes = _character(_uniforms(seed, 2 * index, _MAX_STROKES * _STROKE_NUMBERS + 1))
    per_drawing = 2 * strokes.size + _POSE_NUMBERS
    numbers = _uniforms(seed, 2 * index + 1, num_drawings * per_drawing)
    curves, pen = _drawings(strokes, numbers.reshape(num_drawings, per_drawing))
    images[place] = _render(curves, pen, size)
  images.flags.writeable = False
  return images


def _uniforms(seed: int, stream: int, num: int) -> np.ndarray:
  """`[num]` float64 in [0, 1); a prefix of any longer draw of the same stream."""
  philox = np.random.Philox(key=np.array([seed, stream], np.uint64))
  return (philox.random_raw(num) >> np.uint64(11)) * 2.0**-53


def _character(numbers: np.ndarray) -> np.ndarray:
  """A class: control points of cubic Bezier curves, `[num_strokes, 4, 2]`."""
  num_strokes = 2 + int(numbers[-1] * (_MAX_STROKES - 1))
  strokes: list[np.ndarray] = []
  for u in numbers[:-1].reshape(_MAX_STROKES, _STROKE_NUMBERS)[:num_strokes]:
    # Strokes run between different cells of a 3x3 grid, so none is a dot.
    first = int(u[0] * 9)
    last = (first + 1 + int(u[1] * 8)) % 9
    start, end = (
      0.75 * np.array([cell % 3 - 1, cell // 3 - 1]) + 0.4 * (noise - 0.5)
      for cell, noise in ((first, u[2:4]), (last, u[4:6]))
    )
    if strokes and u[6] < 0.6:  # Connected to an end or bend of an earlier stroke.
      start = strokes[int(u[6] / 0.6 * len(strokes))][(3, 0, 1)[int(u[7] * 3)]]
    along = end - start
    across = np.array([-along[1], along[0]])
    bend = 1.4 * (u[8] - 0.5)
    other_bend = (bend, -bend, 0.3 * bend)[int(u[9] * 3)]
    strokes.append(
      np.stack(
        [
          start,
          start + along / 3 + bend * across,
          end - along / 3 + other_bend * across,
          end,
        ]
      )
    )
  points = np.stack(strokes)
  low, high = points.min((0, 1)), points.max((0, 1))
  return (points - (low + high) / 2) * (1.5 / (high - low).max())


def _drawings(
  strokes: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a class several times over.

  Args:
    strokes: `[num_strokes, 4, 2]` control points.
    numbers: `[num_drawings, 2 * strokes.size + 7]` in [0, 1).

  Returns:
    Curves `[num_drawings, num_strokes, segments + 1, 2]` and the pens' radii
    `[num_drawings]`, in units of half the image.
  """
  num_drawings = len(numbers)
  pose = (2 * numbers[:, :_POSE_NUMBERS].T - 1)[:, :, None, None]
  turn, shear, stretch_x, stretch_y, shift_x, shift_y, press = pose
  # The sum of two numbers is small more often than large, like errors of a hand.
  jitter = numbers[:, _POSE_NUMBERS:].reshape(num_drawings, 2, *strokes.shape)
  points = strokes + _JITTER * (jitter[:, 0] + jitter[:, 1] - 1)

  x, y = points[..., 0], points[..., 1]
  x = (1 + _STRETCH * stretch_x) * (x + _SHEAR * shear * y)
  y = (1 + _STRETCH * stretch_y) * y
  half = _TURN * turn  # tan of half the angle: no sine, which is not exact
  cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
  x, y = cos * x - sin * y + _SHIFT * shift_x, sin * x + cos * y + _SHIFT * shift_y

  t = np.arange(_SEGMENTS + 1) / _SEGMENTS
  s = 1 - t
  basis = (s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t)
  curves = [
    sum(weight * axis[..., i, None] for i, weight in enumerate(basis))
    for axis in (x, y)
  ]
  pen = _PEN[0] + (_PEN[1] - _PEN[0]) * (press[:, 0, 0] + 1) / 2
  return np.stack(curves, -1), pen


def _render(curves: np.ndarray, pen: np.ndarray, size: int) -> np.ndarray:
  """Inks every pixel by its distance from the nearest segment of a curve.

  Args:
    curves: `[num_drawings, num_strokes, num_points, 2]` x and y in [-1, 1].
    pen: `[num_drawings]` radii in the same units.
    size: height and width in pixels.

  Returns:
    `[num_drawings, size, size]` uint8, edges anti-aliased over one pixel.
  """
  half = size / 2
  points = (curves * half).astype(np.float32)
  starts = points[:, :, :-1].reshape(len(points), -1, 2)
  steps = np.diff(points, axis=2).reshape(starts.shape)
  centers = np.arange(size, dtype=np.float32) + np.float32(0.5 - half)
  nearest = np.full([len(points), size, size], np.inf, np.float32)
  for i in range(starts.shape[1]):
    step_x, step_y = (steps[:, i, axis, None, None] for axis in (0, 1))
    x = centers - starts[:, i, 0, None, None]
    y = centers[:, None] - starts[:, i, 1, None, None]
    length = np.maximum(step_x * step_x + step_y * step_y, np.float32(1e-6))
    along = np.clip(x * (step_x / length) + y * (step_y / length), 0, 1)
    off_x, off_y = x - along * step_x, y - along * step_y
    nearest = np.minimum(nearest, off_x * off_x + off_y * off_y)
  radius = (pen * half).astype(np.float32)[:, None, None]
  ink = np.clip(radius + np.float32(0.5) - np.sqrt(nearest), 0, 1)
  return (ink * np.float32(255) + np.float32(0.5)).astype(np.uint8)


NUM_TEST_DRAWINGS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Characters(ImageSource):
  """Characters drawn by jsharp itself; needs no files."""

  name: ClassVar[str] = "characters"
  filter: ClassVar[Filter] = "BOX"
  light_ink: ClassVar[bool] = True

  image_size: int = option(
    28,
    "Height and width in pixels that images are resized to or drawn at.",
    check=at_least(1),
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(size=self.image_size)

  def read_one(self, directory: str, split: str) -> Dataset:
    return load(size=self.image_size, only=split)[split]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledCharacters(LabelledSource):
  """Drawings of the same characters, 15 to train and 5 to test."""

  name: ClassVar[str] = "characters"
  filter: ClassVar[Filter] = "BOX"
  light_ink: ClassVar[bool] = True
  mirrored: ClassVar[bool] = False

  num_characters: int = option(
    20,
    "Number of classes to use, of the 320 training classes.",
    check=between(2, 320),
  )
  image_size: int = option(
    28,
    "Height and width in pixels that images are resized to or drawn at.",
    check=at_least(1),
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    drawn = load(size=self.image_size)["train"]
    chosen = same_classes.first_classes(drawn, self.num_characters)
    return same_classes.split_classes(chosen, NUM_TEST_DRAWINGS)
