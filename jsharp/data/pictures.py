"""Preparing a user's images like a learner's training images.

A trained learner needs images of one shape in [0, 1]. Users have photographs of any
size, as files, Pillow images or arrays. Here each image is prepared as the training
images were: upright, in colour or gray on a white background, resized to the learner's
height and width, and for handwriting as light ink on dark.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jsharp._files import composed, read_bytes
from jsharp.data import _archives, _formats, _left_out, _modes, _pixels

Filter = Literal["LANCZOS", "BOX"]

_MOST_NAMED = 20
"""The number of images that an error names; it counts the rest."""


@dataclasses.dataclass(frozen=True)
class Looks:
  """How images are prepared for a learner.

  Attributes:
    shape: `(height, width, channels)`, one channel (gray) or three (RGB).
    filter: the Pillow filter for resizing, ignoring the aspect ratio: Lanczos' filter,
      or the area average ("BOX").
    light_ink: whether images are drawings in light ink on a dark background. An image
      with a light background, such as a scanned page, is inverted.
  """

  shape: tuple[int, int, int]
  filter: Filter = "LANCZOS"
  light_ink: bool = False


def read(pictures: Any, looks: Looks) -> np.ndarray:
  """Reads images of any kind and size, and prepares them for a learner.

  Args:
    pictures: one of
      an array `[n, height, width]` or `[n, height, width, channels]`,
      an array `[n, height * width * channels]` of images that already have the shape of
      `looks`, flattened,
      a list of arrays `[height, width]` or `[height, width, channels]` of any sizes, of
      paths, of Pillow images, or of a mixture of these,
      or the path of one file or of a directory of image files.
      Arrays are bool, integers from 0 to 255, or floats from 0 to 1, with one, three
      (RGB) or four (RGBA) channels. Transparent pixels are shown on white.
    looks: how the learner's images are prepared.

  Returns:
    uint8 `[n, *looks.shape]`.

  Raises:
    FileNotFoundError: if a file does not exist.
    ValueError: if an array has another shape or range, or images cannot be decoded; the
      message lists them.
    TypeError: if something is not an image.

  Example:
    >>> looks = Looks((2, 2, 1))
    >>> read(np.array([[[0.0, 1.0], [0.2, 0.4]]]), looks)[0, ..., 0].tolist()
    [[0, 255], [51, 102]]
    >>> read([np.zeros((4, 6, 3), np.uint8), np.zeros((2, 2), bool)], looks).shape
    (2, 2, 2, 1)
  """
  if is_path(pictures):
    pictures = files(pictures)
  if hasattr(pictures, "__array__") and not _is_pillow(pictures):
    pictures = _rows(np.asarray(pictures), looks)
  if _is_pillow(pictures):
    raise TypeError("pictures is one Pillow image; give a list, [image]")
  if not isinstance(pictures, Iterable) or isinstance(pictures, bytes | bytearray):
    raise TypeError(
      f"pictures is a {type(pictures).__name__}; give an array, a list of arrays, "
      "paths or Pillow images, or the path of a file or directory"
    )
  entries = list(pictures)
  failures: list[tuple[int, Exception]] = []

  def convert(numbered: tuple[int, Any]) -> np.ndarray | None:
    number, picture = numbered
    try:
      return _converted(picture, number, looks)
    except (OSError, ValueError, TypeError) as error:
      failures.append((number, error))
      return None

  images = list(_pixels.map_threads(convert, enumerate(entries)))
  if failures:
    _refuse(sorted(failures, key=lambda failure: failure[0]), len(entries))
  if not images:
    return np.zeros((0, *looks.shape), np.uint8)
  return np.stack(images)  # type: ignore[arg-type]


def is_path(pictures: Any) -> bool:
  """Whether pictures are given by a single path.

  Example:
    >>> is_path("photographs"), is_path(["a.png", "b.png"])
    (True, False)
  """
  return isinstance(pictures, str | os.PathLike)


def files(
  path: str | os.PathLike[str], *, recursive: bool = False
) -> list[pathlib.Path]:
  """The image files of a path: the file itself, or a directory's, sorted by name.

  Args:
    path: an image file, or a directory of image files. Other files are ignored with a
      warning that names them.
    recursive: whether to include the images in subfolders.

  Returns:
    The paths.

  Raises:
    FileNotFoundError: if the path does not exist, or the directory has no images.

  Example:
    >>> files("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: /nowhere does not exist; name an image or a directory of images
  """
  root = pathlib.Path(path).expanduser()
  if root.is_dir():
    entries = sorted(root.rglob("*") if recursive else root.iterdir())
    found = _pictures(root, entries)
    if not found:
      within = "" if recursive else ", and its folders are not searched"
      raise FileNotFoundError(
        f"{root} has no images ({', '.join(sorted(_formats.FORMATS))}){within}; name "
        "a directory with images"
      )
    return found
  if not root.exists():
    raise FileNotFoundError(
      f"{root} does not exist; name an image or a directory of images"
    )
  return [root]


def class_folders(
  path: str | os.PathLike[str],
) -> tuple[list[pathlib.Path], list[str]]:
  """The image files of a directory with one folder per class.

  Args:
    path: the directory; the names of its folders, with composed accents, are the names
      of the classes. Class folders may have subfolders.

  Returns:
    The paths and the class of each, sorted by class and name.

  Raises:
    FileNotFoundError: if the directory does not exist or has no folders.
    ValueError: if folders have no images, which the message lists, or an image is not
      in a folder.

  Example:
    >>> class_folders("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: /nowhere is not a directory; name one with a folder of ...
  """
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(
      f"{root} is not a directory; name one with a folder of images per class"
    )
  folders = [e for e in sorted(root.iterdir()) if e.is_dir() and _is_shown(e)]
  loose = [entry.name for entry in sorted(root.iterdir()) if _is_picture(entry)]
  if not folders:
    raise FileNotFoundError(
      f"{root} has no folders; put the examples of each class into a folder named "
      f"after it, such as {root / 'cat' / 'photo.jpg'}"
    )
  if loose:
    raise ValueError(
      f"{root / loose[0]} is not in a class folder ({len(loose)} such images); move it "
      "into one, or out of the directory"
    )
  examples: dict[str, list[pathlib.Path]] = {}
  for folder in folders:
    found = _pictures(root, sorted(folder.rglob("*")))
    examples.setdefault(composed(folder.name), []).extend(found)
  if empty := [name for name, found in examples.items() if not found]:
    raise ValueError(
      f"{root}: no images in {_listed(empty)}; add an example to each, or remove the "
      "folder"
    )
  pairs = [(path, name) for name, found in examples.items() for path in found]
  return [path for path, _ in pairs], [name for _, name in pairs]


def _is_shown(entry: pathlib.Path) -> bool:
  return not _left_out.is_hidden(entry.name)


def _pictures(
  root: pathlib.Path, entries: Sequence[pathlib.Path]
) -> list[pathlib.Path]:
  """The images among files; a warning counts and names the others."""
  left_out = _left_out.LeftOut(root)
  found = [
    entry
    for entry in entries
    if not _left_out.is_hidden(entry.relative_to(root).as_posix())
    and entry.is_file()
    and left_out.is_image(entry.relative_to(root).as_posix())
  ]
  left_out.warn()
  return found


def _is_picture(entry: pathlib.Path) -> bool:
  return _is_shown(entry) and entry.is_file() and _formats.is_image(entry.name)


def _is_pillow(picture: Any) -> bool:
  return hasattr(picture, "getbands") and hasattr(picture, "convert")


def _rows(array: np.ndarray, looks: Looks) -> Iterator[np.ndarray] | np.ndarray:
  """The images of one array."""
  if array.dtype == object:
    return iter(array)
  size = int(np.prod(looks.shape))
  if array.ndim == 2:
    if array.shape[1] != size:
      wanted = " x ".join(map(str, looks.shape))
      raise ValueError(
        f"images has shape {array.shape}: rows of flattened images need {size} numbers "
        f"({wanted}); give one image as images[None], or [n, height, width, channels]"
      )
    return array.reshape(-1, *looks.shape)
  if array.shape == looks.shape and array.shape[-1] == 3:
    raise ValueError(
      f"images has shape {array.shape}, that of one image; give images[None]"
    )
  if array.ndim not in (3, 4):
    raise ValueError(
      f"images has shape {array.shape}; expected [n, height, width] or [n, height, "
      "width, channels]"
    )
  return array


def _converted(picture: Any, number: int, looks: Looks) -> np.ndarray:
  height, width, channels = looks.shape
  mode = "L" if channels == 1 else "RGB"
  if is_path(picture):
    path = pathlib.Path(picture).expanduser()
    content = read_bytes(path, most=_archives.LARGEST_MEMBER)
    pixels = _pixels.decode(content, name=str(path), mode=mode)
  elif _is_pillow(picture):
    pixels = _modes.pixels(picture, name=f"images[{number}]", mode=mode)
  elif hasattr(picture, "__array__") or isinstance(picture, Sequence):
    image = _as_pillow(np.asarray(picture), number)
    pixels = _modes.pixels(image, name=f"images[{number}]", mode=mode)
  else:
    raise TypeError(
      f"images[{number}] is a {type(picture).__name__}; give an array, a path or a "
      "Pillow image"
    )
  if pixels.shape[:2] != (height, width):
    pixels = _pixels.resize(pixels, (height, width), method=looks.filter)
  # Ink covers less than half of a drawing, so its median pixel is background.
  if looks.light_ink and np.median(pixels) > 127:
    pixels = 255 - pixels
  return pixels


def _as_pillow(array: np.ndarray, number: int) -> Any:
  from PIL import Image

  name = f"images[{number}]"
  if array.ndim == 3 and array.shape[-1] == 1:
    array = array[..., 0]
  if (array.ndim, array.shape[-1] if array.ndim == 3 else 3) not in (
    (2, 3),
    (3, 3),
    (3, 4),
  ):
    raise ValueError(
      f"{name} has shape {array.shape}; expected [height, width] or [height, width, "
      "channels] with 1, 3 (RGB) or 4 (RGBA) channels"
    )
  if not array.size:
    raise ValueError(f"{name} has shape {array.shape}: it has no pixels")
  if array.dtype == bool:
    array = array.astype(np.uint8) * 255
  elif np.issubdtype(array.dtype, np.floating):
    if not np.isfinite(array).all():
      raise ValueError(f"{name} has NaN or infinity; give floats from 0 to 1")
    if array.min() < 0 or array.max() > 1:
      raise ValueError(
        f"{name} has floats from {array.min():g} to {array.max():g}; give floats "
        "from 0 to 1, or uint8 from 0 to 255"
      )
    array = np.rint(array * 255).astype(np.uint8)
  elif np.issubdtype(array.dtype, np.integer):
    if array.min() < 0 or array.max() > 255:
      raise ValueError(
        f"{name} has integers from {array.min()} to {array.max()}; give uint8 from 0 "
        "to 255, or floats from 0 to 1"
      )
    if array.max() == 1 and array.dtype != np.uint8:  # A mask, not an image.
      raise ValueError(
        f"{name} has integers from 0 to 1, which would be black on a scale of 255; "
        "give bool or floats for black and white"
      )
    array = array.astype(np.uint8)
  else:
    raise ValueError(f"{name} is an array of {array.dtype}; give uint8 or floats")
  return Image.fromarray(np.ascontiguousarray(array))


def _refuse(failures: list[tuple[int, Exception]], total: int) -> None:
  if len(failures) == 1:
    raise failures[0][1]
  named = "\n  ".join(str(error) for _, error in failures[:_MOST_NAMED])
  more = len(failures) - _MOST_NAMED
  rest = f"\n  and {more} more" if more > 0 else ""
  raise ValueError(
    f"{len(failures)} of {total} images cannot be read:\n  {named}{rest}"
  )


def _listed(names: Sequence[str]) -> str:
  shown = ", ".join(names[:_MOST_NAMED])
  return shown if len(names) <= _MOST_NAMED else f"{shown} and more"
