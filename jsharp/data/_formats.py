"""Recognising image files, and opening them as one of the expected formats only.

Pillow tries all formats that it knows, whatever the file's name. One of them, EPS, runs
Ghostscript on the file.
"""

import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from PIL import Image

# ImageNet has a PNG with the name of a JPEG, so either name allows both formats.
_PHOTOS = ("PNG", "JPEG")
FORMATS = {
  **dict.fromkeys((".png", ".jpg", ".jpeg"), _PHOTOS),
  ".bmp": ("BMP",),
  ".gif": ("GIF",),
  **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), ("PPM",)),
  **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
  ".webp": ("WEBP",),
}
"""Pillow's names of the formats allowed for each suffix."""

NAMES = "PNG, JPEG, BMP, GIF, PPM, TIFF or WebP"
"""The formats in words, for messages."""

_SIGNATURES = (
  (b"\x89PNG\r\n", "PNG"),
  (b"\xff\xd8\xff", "JPEG"),
  (b"GIF8", "GIF"),
  (b"II*\0", "TIFF"),
  (b"MM\0*", "TIFF"),
  (b"II+\0", "TIFF"),
  (b"MM\0+", "TIFF"),
  (b"BM", "BMP"),
  *((b"P%d" % number, "PPM") for number in range(1, 7)),
  (b"%!PS", "EPS"),
  (b"\xc5\xd0\xd3\xc6", "EPS"),
  (b"%PDF", "PDF"),
  (b"\0\0\0\x0cjP  ", "JPEG 2000"),
)
_BRANDS = {b"WEBP": "WEBP", b"avif": "AVIF", b"heic": "HEIC", b"mif1": "HEIC"}


class WrongFormatError(ValueError):
  """The format of an image differs from its file name's."""


def is_image(name: str) -> bool:
  """Whether a file has the name of an image that jsharp reads.

  Example:
    >>> is_image("train/n01532829/n0153282900000005.JPEG"), is_image("train.csv")
    (True, False)
  """
  return _suffix(name) in FORMATS


def open_image(
  data: bytes, *, name: str, formats: Sequence[str] | None = None
) -> "Image.Image":
  """Opens an encoded image as one of the expected formats.

  Args:
    data: the encoded image.
    name: the file's name, for errors; its suffix determines the formats.
    formats: Pillow's names of the formats, instead of the suffix's.

  Returns:
    Pillow's image, whose pixels are not decoded yet.

  Raises:
    WrongFormatError: if the content has another known format.
    OSError: if the format is unknown. Pillow raises this and other exceptions.
  """
  from PIL import Image

  meant = tuple(formats or FORMATS.get(_suffix(name), _PHOTOS))
  found = _kind(data)
  if found is not None and found not in meant:
    endings = [suffix for suffix, kinds in FORMATS.items() if found in kinds]
    renamed = endings and is_image(name)
    rename = f"Give it the ending {endings[0]}, or convert" if renamed else "Convert"
    raise WrongFormatError(
      f"{name} contains an image of the format {found}, not {' or '.join(meant)}. "
      f"{rename} it to PNG."
    )
  try:
    return Image.open(io.BytesIO(data), formats=meant)
  except Image.UnidentifiedImageError as error:
    # Pillow's own message contains a memory address.
    raise OSError(f"it is not {' or '.join(meant)}") from error


def _suffix(name: str) -> str:
  return pathlib.PurePosixPath(name).suffix.lower()


def _kind(data: bytes) -> str | None:
  """The format, judged by the first bytes."""
  if data[:4] == b"RIFF" or data[4:8] == b"ftyp":
    return _BRANDS.get(data[8:12])
  return next((kind for magic, kind in _SIGNATURES if data.startswith(magic)), None)
