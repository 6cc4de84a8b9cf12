"""What worker processes make: parts of batches, each a pure function of its number.

A batch is divided into pieces of a few images, so that a batch is there as soon as
all workers together can decode it, and so that no more than a few images are on the
way from a worker at a time. Neither depends on how many workers there are.
"""

import dataclasses
import functools

import numpy as np

from jsharp.data import _crops, _pixels
from jsharp.data._encoded import FORMATS, Encoded

PIECE = 16
"""Images of a piece, fewer in the last one of a batch."""


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  # RandomState's stream is frozen for all NumPy versions; Generator's is not.
  return np.random.RandomState([seed, epoch]).permutation(num_examples)


@dataclasses.dataclass(frozen=True)
class Pieces:
  """Decodes and crops pieces of batches.

  Attributes:
    images: the encoded images.
    rows: `[num_examples]` which of them are the examples.
    size: height and width of the crops in pixels.
    batch_size: examples of a batch.
    seed: decides the order, another one in each epoch, and the rectangles, which are
      random. None: the examples in their order, each once, rectangles in the middle.
  """

  images: Encoded
  rows: np.ndarray
  size: int
  batch_size: int
  seed: int | None

  @property
  def per_batch(self) -> int:
    """Pieces of a batch."""
    return -(-self.batch_size // PIECE)

  def chosen(self, step: int) -> np.ndarray:
    """The numbers of the examples in a batch, `[batch_size]` int32.

    In order, those that the last batch lacks are the last example once more.
    """
    num_examples = len(self.rows)
    if self.seed is None:
      numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
      return np.minimum(numbers, num_examples - 1).astype(np.int32)
    epoch, place = divmod(step, num_examples // self.batch_size)
    start = place * self.batch_size
    order = _order(self.seed, epoch, num_examples)
    return order[start : start + self.batch_size].astype(np.int32)

  def __call__(self, number: int) -> np.ndarray:
    """The piece of this number, counted through all batches.

    Returns:
      `[up to PIECE, size, size, 3]` uint8.

    Raises:
      ValueError: an image cannot be decoded; the message names it.
      OSError: a file cannot be read.
    """
    step, part = divmod(int(number), self.per_batch)
    chosen = self.chosen(step)[part * PIECE : (part + 1) * PIECE]
    crops = np.empty((len(chosen), self.size, self.size, 3), np.uint8)
    for i, example in enumerate(chosen.tolist()):
      again = i and example == chosen[i - 1]  # What fills up the last batch.
      crops[i] = crops[i - 1] if again else self.one(example, step)
    return crops

  def one(self, example: int, step: int) -> np.ndarray:
    """One example as it is seen at a step, `[size, size, 3]` uint8."""
    place, content = self.images[int(self.rows[example])]
    image = _pixels.decode(content, name=place, mode="RGB", formats=FORMATS)
    height, width = image.shape[:2]
    if self.seed is None:
      box = _crops.central_box(height, width)
    else:
      draw = np.random.RandomState([self.seed, step, example])
      box = _crops.random_box(draw, height, width)
    return _crops.cropped(image, box, self.size)
