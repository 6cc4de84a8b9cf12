"""Which files are images, and how one is opened: by the formats that are meant alone.

Pillow tries every format that it knows, whatever a file is called. One of them,
EPS, starts Ghostscript on the file.
"""

import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from PIL import Image

# ImageNet has a PNG under the name of a JPEG: each of the two may hold the other.
_PHOTOS = ("PNG", "JPEG")
FORMATS = {
  **dict.fromkeys((".png", ".jpg", ".jpeg"), _PHOTOS),
  ".bmp": ("BMP",),
  ".gif": ("GIF",),
  **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), ("PPM",)),
  **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
  ".webp": ("WEBP",),
}
"""Pillow's names of the formats that a file of this suffix may have."""

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
  """A file holds an image of another format than its name says."""


def is_image(name: str) -> bool:
  """Whether a file's name is that of an image that we read.

  Example:
    >>> is_image("train/n01532829/n0153282900000005.JPEG"), is_image("train.csv")
    (True, False)
  """
  return _suffix(name) in FORMATS


def open_image(
  data: bytes, *, name: str, formats: Sequence[str] | None = None
) -> "Image.Image":
  """An encoded image, opened as one of the formats that are meant.

  Args:
    data: the encoded image.
    name: the file's name, for the error, and whose suffix decides the formats.
    formats: Pillow's names of the formats instead.

  Returns:
    Pillow's image, whose pixels have not been decoded yet.

  Raises:
    WrongFormatError: the content has another format that we know.
    OSError: it has none that we know. Pillow raises this and much else.
  """
  from PIL import Image

  meant = tuple(formats or FORMATS.get(_suffix(name), _PHOTOS))
  found = _kind(data)
  if found is not None and found not in meant:
    endings = [suffix for suffix, kinds in FORMATS.items() if found in kinds]
    renamed = endings and is_image(name)
    rename = f"Give it the ending {endings[0]}, or convert" if renamed else "Convert"
    raise WrongFormatError(
      f"{name} holds an image of the format {found}, not {' or '.join(meant)}. "
      f"{rename} it to PNG."
    )
  try:
    return Image.open(io.BytesIO(data), formats=meant)
  except Image.UnidentifiedImageError as error:
    # Pillow's own message holds an address in memory.
    raise OSError(f"it is not {' or '.join(meant)}") from error


def _suffix(name: str) -> str:
  return pathlib.PurePosixPath(name).suffix.lower()


def _kind(data: bytes) -> str | None:
  """The format that the first bytes announce."""
  if data[:4] == b"RIFF" or data[4:8] == b"ftyp":
    return _BRANDS.get(data[8:12])
  return next((kind for magic, kind in _SIGNATURES if data.startswith(magic)), None)
