"""Encoded images to uint8 arrays, several at a time."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from jsharp.data import _formats, _modes

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def decode(
  data: bytes,
  *,
  name: str,
  mode: str | None,
  formats: Sequence[str] | None = None,
) -> np.ndarray:
  """One image as an array, upright and on white: see `_modes`.

  Args:
    data: the encoded image.
    name: the file's name, for the error; its suffix decides which formats are tried.
    mode: `"L"` (one channel) or `"RGB"` (three); None takes the image's own.
    formats: Pillow's names of the formats to try instead.

  Returns:
    uint8 `[height, width, channels]`, 1 or 3 channels.

  Raises:
    ValueError: the image has another format, pixels of a kind that is not read, or
      cannot be decoded.
  """
  try:
    with _formats.open_image(data, name=name, formats=formats) as image:
      return _modes.pixels(image, name=name, mode=mode)
  except (MemoryError, _formats.WrongFormatError, _modes.WrongModeError):
    raise
  except Exception as error:  # a damaged image can make Pillow raise anything
    raise ValueError(
      f"{name} cannot be decoded ({error}). The file is damaged or not an image: "
      "replace it, or fetch the data again."
    ) from error


def check_size(image: np.ndarray, size: int, *, name: str) -> None:
  """Refuse an image `[height, width, channels]` that is not `size` by `size`.

  Raises:
    ValueError: naming the file.
  """
  height, width = image.shape[:2]
  if (height, width) != (size, size):
    raise ValueError(
      f"{name} is {height}x{width} pixels, not {size}x{size}. Give the images in "
      "their published size."
    )


def resize(
  image: np.ndarray, size: int | tuple[int, int], *, method: str
) -> np.ndarray:
  """Scale height and width, each by itself, to `size`.

  Args:
    image: uint8 `[height, width, channels]`, one or three channels.
    size: pixels: of both, or `(height, width)`.
    method: the name of a Pillow filter: `"BOX"` is the area average, `"LANCZOS"` is
      sharper.

  Returns:
    uint8 `[height, width, channels]`.

  Example:
    >>> resize(np.array([[[0], [200]], [[100], [100]]], np.uint8), 1, method="BOX")
    array([[[100]]], dtype=uint8)
  """
  from PIL import Image

  source = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  height, width = (size, size) if isinstance(size, int) else size
  scaled = source.resize((width, height), Image.Resampling[method])
  return np.asarray(scaled).reshape(height, width, -1)


def to_size(image: np.ndarray, size: int | None) -> np.ndarray:
  """The image resized to `size` with a Lanczos filter; unchanged if it has that size.

  Args:
    image: uint8 `[height, width, channels]`, one or three channels.
    size: pixels; None leaves every image as it is.

  Returns:
    uint8 `[size, size, channels]`.

  Example:
    >>> to_size(np.zeros((4, 6, 3), np.uint8), 2).shape
    (2, 2, 3)
  """
  if size is None or image.shape[:2] == (size, size):
    return image
  return resize(image, size, method="LANCZOS")


def map_threads(
  function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
  """`map` in threads, in order, with only a few items read ahead.

  Pillow decodes outside the interpreter lock, so threads are enough, and nothing
  has to be pickled.

  Example:
    >>> list(map_threads(str.upper, ["a", "b"]))
    ['A', 'B']
  """
  num_threads = os.cpu_count() or 1
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    try:
      for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= 64 * num_threads:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()
