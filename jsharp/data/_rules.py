"""The rule by which images are decoded, and whether one reads as by the rule before.

A prepared copy holds pixels. One that was made by an older rule is still right if all
of its images read as they did, which this module finds out without decoding most.
"""

import warnings

import numpy as np

from jsharp.data import _formats, _modes, _pixels

RULE = 2
"""Rule 1 was Pillow's `convert` alone: no alpha, no orientation, 16 bits cut off."""

_GRAY_BY_RULE_1 = frozenset(("1", "L", "LA"))
_SUFFIXES_BY_RULE_1 = (".png", ".jpg", ".jpeg")
_ORIENTATION = 274
_XMP = b"ns.adobe.com/xap"  # where an orientation may stand besides
_PNG_MARKS = (b"tRNS", b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


def reads_as_before(data: bytes, *, name: str, mode: str | None) -> bool:
  """Whether an image has the pixels that it had by the rule before this one.

  Args:
    data: the encoded image.
    name: the file's name.
    mode: as for `jsharp.data._pixels.decode`.
  """
  if not name.lower().endswith(_SUFFIXES_BY_RULE_1):
    return False  # It was left out.
  if data.startswith(b"\xff\xd8\xff") and b"Exif" not in data and _XMP not in data:
    return True
  if _is_plain_png(data):
    return True
  try:
    with _formats.open_image(data, name=name) as image:
      if image.format in ("JPEG", "MPO"):
        return image.getexif().get(_ORIENTATION) not in range(2, 9)
      own = "L" if image.mode in _GRAY_BY_RULE_1 else "RGB"
      with warnings.catch_warnings():  # Pillow warns of what the rule did wrong.
        warnings.simplefilter("ignore")
        before = np.asarray(image.convert(mode or own))
    now = _pixels.decode(data, name=name, mode=mode)
  except (ValueError, OSError, _modes.WrongModeError):
    return False  # Whoever decodes it says what is wrong.
  return np.array_equal(now, before.reshape(*before.shape[:2], -1))


def _is_plain_png(data: bytes) -> bool:
  """Whether a PNG has neither alpha nor orientation, nor gray of 16 bits."""
  header = data[:26]  # Bits and colour type are the last two bytes.
  if len(header) < 26 or not header.startswith(b"\x89PNG") or header[12:16] != b"IHDR":
    return False
  bits, kind = header[24], header[25]
  plain = kind in (2, 3) or (kind == 0 and bits < 16)
  return plain and not any(mark in data for mark in _PNG_MARKS)
