"""The pixels of an opened image: every Pillow mode, upright, on a white background.

Transparent pixels are shown on white, as in browsers, since their stored colour is
meaningless. Images of 16 bits keep the upper 8 bits. Images whose values have no known
black and white are rejected.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from PIL import Image

_WITH_ALPHA = {"LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
_DEEP = frozenset(("I", "I;16", "I;16B", "I;16L", "I;16N"))
_GRAY = frozenset(("1", "L", "LA", "La", *_DEEP))
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # Tags of TIFF.


class WrongModeError(ValueError):
  """An image has an unsupported kind of pixels."""


def pixels(image: "Image.Image", *, name: str, mode: str | None) -> np.ndarray:
  """An image as an array; the first frame of an animation, the first of several pages.

  Args:
    image: as opened by Pillow, preferably before decoding its pixels: afterwards the
      original number of bits is unknown.
    name: the file's name, for errors.
    mode: `"L"` (one channel) or `"RGB"` (three); None for the image's own mode.

  Returns:
    uint8 `[height, width, channels]`, 1 or 3 channels.

  Raises:
    WrongModeError: if the pixels are floating point, signed or 32-bit integers, or RGB
      of 16 bits with a transparent colour.
    OSError: if the image is damaged. Pillow raises this and other exceptions.

  Example:
    >>> from PIL import Image
    >>> pixels(Image.new("LA", (1, 1), (0, 102)), name="faint.png", mode=None)
    array([[[153]]], dtype=uint8)
  """
  stored, file_format = _stored_mode(image), image.format
  image.load()
  _refuse_unknown_black(image, file_format, stored, name)
  if file_format != "TIFF":  # Pillow rotates TIFFs while decoding.
    image = _upright(image)
  own = "L" if image.mode in _GRAY or stored == "LA;16B" else "RGB"
  key = image.info.get("transparency")
  if image.mode in _WITH_ALPHA or (image.mode == "P" and _palette_has_alpha(image)):
    both = np.asarray(image.convert(_WITH_ALPHA.get(image.mode, "RGBA")))
    color, alpha = both[..., :-1], both[..., -1:]
  elif image.mode in _DEEP:
    values = np.asarray(image).astype(np.int64)[..., None]
    color = _upper_bits(image, values)
    alpha = np.where(values == (-1 if key is None else key), 0, 255)
  elif key is not None:
    color = _converted(image, own)
    alpha = np.where(_is_key(color, key, image.mode, stored), 0, 255)
  else:
    return _converted(image, mode or own)
  return _with_channels(_on_white(color, alpha), mode or own)


def _stored_mode(image: "Image.Image") -> str:
  """How the file stores its pixels, as Pillow's decoders call it; empty if decoded."""
  tiles: Any = getattr(image, "tile", None)
  if not tiles:
    return ""
  arguments = tiles[0][3]
  return arguments if isinstance(arguments, str) else str((*arguments, "")[0])


def _refuse_unknown_black(
  image: "Image.Image", file_format: str | None, stored: str, name: str
) -> None:
  # Pillow reads 16 bits into "I" where the file is a PGM and, before version 11, a PNG.
  if image.mode == "F" or (image.mode == "I" and file_format not in ("PNG", "PPM")):
    kind = "signed or 32-bit integers" if image.mode == "I" else "floating point"
    raise WrongModeError(
      f"{name} has pixels of Pillow's mode {image.mode} ({kind}), which does not "
      "define black and white. Convert it to grayscale of 8 or 16 bits."
    )
  if stored == "RGB;16B" and "transparency" in image.info:
    raise WrongModeError(
      f"{name} has pixels of the mode RGB with 16 bits and a transparent colour, which "
      "is not supported. Convert it to RGB with 8 bits, or to RGBA."
    )


def _upper_bits(image: "Image.Image", values: np.ndarray) -> np.ndarray:
  tags: Any = getattr(image, "tag_v2", {})
  bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # 12 in some TIFFs.
  color = (values >> bits - 8).astype(np.uint8)
  # Pillow does this for 8 bits and fewer only.
  return 255 - color if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else color


def _upright(image: "Image.Image") -> "Image.Image":
  """The image, rotated as its EXIF orientation says."""
  from PIL import ImageOps

  try:
    return ImageOps.exif_transpose(image)
  except MemoryError:
    raise
  except Exception:  # Unreadable EXIF data is ignored.
    return image


def _palette_has_alpha(image: "Image.Image") -> bool:
  palette = image.palette
  return "transparency" in image.info or (
    palette is not None and palette.mode.endswith("A")
  )


def _is_key(color: np.ndarray, key: Any, mode: str, stored: str) -> np.ndarray:
  """Where an image has the colour that its file declares transparent."""
  wanted = np.atleast_1d(key)
  if mode == "1":
    wanted = 255 * (wanted != 0)
  elif stored in ("L;2", "L;4"):  # The key has as few bits as the file's pixels.
    largest = 2 ** int(stored[-1]) - 1
    wanted = (wanted & largest) * (255 // largest)
  return (color == wanted).all(-1, keepdims=True)


def _on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  ink = (255 - color.astype(np.uint32)) * alpha.astype(np.uint32)
  return (255 - (ink + 127) // 255).astype(np.uint8)


def _converted(image: "Image.Image", mode: str) -> np.ndarray:
  if image.mode == "LAB":  # Pillow can convert it only to RGB.
    image = image.convert("RGB")
  array = np.asarray(image.convert(mode))
  return array.reshape(*array.shape[:2], -1)


def _with_channels(color: np.ndarray, mode: str) -> np.ndarray:
  from PIL import Image

  channels = {"L": 1, "RGB": 3}[mode]
  if color.shape[-1] == channels:
    return color
  if channels == 3:
    return np.repeat(color, 3, axis=-1)
  return _converted(Image.fromarray(color), "L")
