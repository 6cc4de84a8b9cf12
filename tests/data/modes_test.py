"""Tests of jsharp.data._modes: pictures of every kind keep their content."""

import io
import struct
import warnings
import zlib

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import _modes, _pixels
from tests.data import fixtures

RGB = fixtures.images(0, 1, 3)[0]
GRAY = fixtures.images(1, 1, 1)[0]
ALPHA = np.where(GRAY < 80, 0, np.where(GRAY > 170, 255, GRAY)).astype(np.uint8)
DEEP = np.array([[0, 255, 256, 4660], [32768, 40000, 65279, 65535]], np.uint16)
UPPER = np.array([[0, 0, 1, 18], [128, 156, 254, 255]], np.uint8)[..., None]
ORIENTATION = 274


def saved(image, format="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, format, **options)
  return buffer.getvalue()


def on_white(color, alpha):
  """Exact: a share of alpha / 255 of the colour, the rest white."""
  share = alpha.astype(np.float64) / 255
  return np.floor(color * share + 255 * (1 - share) + 0.5)


def raw_png(rows, bits, kind, key=b""):
  """A PNG byte for byte; `kind` is the colour type, `key` the chunk tRNS."""

  def chunk(name, data):
    return (
      struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc(name, data))
    )

  def crc(name, data):
    return zlib.crc32(data, zlib.crc32(name))

  channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
  width = len(rows[0]) * 8 // (bits * channels)
  header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
  palette = chunk(b"PLTE", bytes(range(30))) if kind == 3 else b""
  return b"".join(
    (
      b"\x89PNG\r\n\x1a\n",
      chunk(b"IHDR", header),
      palette,
      chunk(b"tRNS", key) if key else b"",
      chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
      chunk(b"IEND", b""),
    )
  )


def raw_tiff(data, shape, *, bits=16, white=255, kind=1, order="<"):
  """A TIFF byte for byte, one row after the other; `kind` 1 is unsigned, 2 signed."""
  height, width = shape
  photometric = 1 if white else 0
  tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
  tags += [(273, 8), (277, 1), (278, height), (279, len(data)), (339, kind)]
  mark = b"II" if order == "<" else b"MM"
  out = mark + struct.pack(order + "HI", 42, 8 + len(data)) + data
  out += struct.pack(order + "H", len(tags))
  for tag, value in tags:
    out += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
  return out + struct.pack(order + "I", 0)


class ModesTest(parameterized.TestCase):
  def check(self, data, expected, name="1.png", atol=0, gray=None):
    """The file's own channels, and both that may be asked for."""
    expected = np.asarray(expected)
    channels = expected.shape[-1]
    own = _pixels.decode(data, name=name, mode=None)
    self.assertEqual(own.dtype, np.uint8)
    np.testing.assert_allclose(own.astype(int), expected, atol=atol)
    as_rgb = _pixels.decode(data, name=name, mode="RGB")
    wide = np.broadcast_to(expected, (*expected.shape[:2], 3))
    np.testing.assert_allclose(as_rgb.astype(int), wide, atol=atol)
    as_gray = _pixels.decode(data, name=name, mode="L")
    if gray is None:
      weights = np.array([0.299, 0.587, 0.114]) if channels == 3 else np.ones(1)
      gray = (expected @ weights)[..., None]
    np.testing.assert_allclose(as_gray.astype(int), gray, atol=atol + 0.51)

  @parameterized.parameters("PNG", "TIFF", "WEBP")
  def test_rgba_is_composited_on_white(self, format):
    image = Image.fromarray(np.concatenate([RGB, ALPHA], -1))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = saved(image, format, **options)
    self.check(data, on_white(RGB, ALPHA), f"1.{format.lower()}")

  @parameterized.parameters("PNG", "TIFF")
  def test_gray_with_alpha(self, format):
    image = Image.merge("LA", [Image.fromarray(a[..., 0]) for a in (GRAY, ALPHA)])
    self.check(saved(image, format), on_white(GRAY, ALPHA), f"1.{format.lower()}")

  def test_ink_in_the_alpha_channel_is_seen(self):
    """Black everywhere, drawn by alpha alone, as drawing programs write it."""
    ink = np.eye(8, dtype=np.uint8)[..., None] * 255
    black = np.concatenate([np.zeros((8, 8, 3), np.uint8), ink], -1)
    self.check(saved(Image.fromarray(black)), np.repeat(255 - ink, 3, -1))

  def test_gray_with_alpha_of_16_bits(self):
    both = np.stack([DEEP, DEEP[::-1]], -1)
    rows = [row.astype(">u2").tobytes() for row in both]
    self.check(raw_png(rows, 16, 4), on_white(UPPER, UPPER[::-1]))

  def test_palettes(self):
    index = np.arange(8, dtype=np.uint8).reshape(2, 4)
    colors = fixtures.images(2, 1, 3)[0, :2, :4].reshape(8, 3)
    alpha = np.array([0, 255, 3, 128, 200, 255, 0, 77], np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putpalette(colors.tobytes())
    seen = colors[index]
    self.check(saved(image), seen)
    several = saved(image, transparency=alpha.tobytes())
    self.check(several, on_white(seen, alpha[index][..., None]))
    for format in ("PNG", "GIF"):
      white = np.where(index[..., None] == 3, 255, seen)
      self.check(saved(image, format, transparency=3), white, f"1.{format.lower()}")
    both = Image.merge("PA", [image, Image.fromarray(alpha[index])])
    both.putpalette(colors.tobytes())
    self.check(saved(both, "TIFF"), on_white(seen, alpha[index][..., None]), "1.tif")
    both = image.copy()
    both.putpalette(np.concatenate([colors, alpha[:, None]], -1).tobytes(), "RGBA")
    np.testing.assert_array_equal(
      _modes.pixels(both, name="x", mode=None),
      on_white(seen, alpha[index][..., None]),
    )

  @parameterized.parameters(
    (1, [0b01101001], [0, 1, 1, 0, 1, 0, 0, 1]),
    (2, [0b00011011, 0b11100100], [0, 1, 2, 3, 3, 2, 1, 0]),
    (4, [0x02, 0x5F, 0xE1], [0, 2, 5, 15, 14, 1]),
    (8, [0, 1, 17, 200], [0, 1, 17, 200]),
  )
  def test_one_transparent_gray(self, bits, row, values):
    """Its number has as many bits as the pixels of the file."""
    values = np.array([values])
    scaled = values * 255 // (2**bits - 1)
    self.check(raw_png([bytes(row)], bits, 0), scaled[..., None])
    for key in set(values[0].tolist()):
      data = raw_png([bytes(row)], bits, 0, struct.pack(">H", key))
      self.check(data, np.where(values == key, 255, scaled)[..., None])

  def test_one_transparent_gray_of_16_bits(self):
    rows = [row.astype(">u2").tobytes() for row in DEEP]
    self.check(raw_png(rows, 16, 0), UPPER)
    # 255 and 256 differ, though not in every half.
    for key in (256, 65279):
      white = np.where(DEEP[..., None] == key, 255, UPPER)
      self.check(raw_png(rows, 16, 0, struct.pack(">H", key)), white)

  def test_one_transparent_color(self):
    rows = [row.tobytes() for row in RGB]
    self.assertTrue((RGB[..., 0] == RGB[2, 3, 0]).any())
    expected = RGB.copy()
    expected[2, 3] = 255
    key = struct.pack(">HHH", *RGB[2, 3].tolist())
    self.check(raw_png(rows, 8, 2, key), expected)
    deep = [row.astype(">u2").tobytes() for row in RGB.astype(np.uint16) * 257]
    self.check(raw_png(deep, 16, 2), RGB)
    with self.assertRaisesRegex(
      _modes.WrongModeError, "1.png has .* RGB with 16 bits .* Convert it to RGB with 8"
    ):
      _pixels.decode(raw_png(deep, 16, 2, key), name="1.png", mode=None)

  def test_gray_of_16_bits_takes_the_upper_8(self):
    self.check(saved(Image.fromarray(DEEP)), UPPER)
    for order in "<>":
      data = DEEP.astype(f"{order}u2").tobytes()
      self.check(raw_tiff(data, (2, 4), order=order), UPPER, "1.tif")
    data = DEEP.astype("<u2").tobytes()
    self.check(raw_tiff(data, (2, 4), white=0), 255 - UPPER, "1.tiff")
    values = np.array([[0x000, 0x00F, 0x123, 0xFED]])
    twelve = bytes([0x00, 0x00, 0x0F, 0x12, 0x3F, 0xED])
    self.check(raw_tiff(twelve, (1, 4), bits=12), values[..., None] >> 4, "1.tif")
    self.check(b"P5 4 2 65535\n" + DEEP.astype(">u2").tobytes(), UPPER, "1.pgm")
    ten = np.array([[0, 3, 4, 1023]], ">u2")
    self.check(
      b"P5 4 1 1023\n" + ten.tobytes(), [[[0], [0], [1], [255]]], "1.pgm", gray=None
    )

  @parameterized.parameters(
    ("F", raw_tiff(np.ones(8, "<f4").tobytes(), (2, 4), bits=32, kind=3)),
    ("I", raw_tiff(np.ones(8, "<i4").tobytes(), (2, 4), bits=32, kind=2)),
    ("I", raw_tiff(np.ones(8, "<i2").tobytes(), (2, 4), bits=16, kind=2)),
  )
  def test_numbers_without_black_and_white_are_refused(self, mode, data):
    for asked in (None, "L", "RGB"):
      with self.assertRaisesRegex(
        _modes.WrongModeError, f"a/1.tif has .* mode {mode} .* Convert it to grayscale"
      ):
        _pixels.decode(data, name="a/1.tif", mode=asked)

  @parameterized.product(
    format=("JPEG", "PNG", "WEBP", "TIFF"), orientation=tuple(range(1, 9))
  )
  def test_turned_as_exif_says(self, format, orientation):
    """Orientations as in the standard: where the first row and column are seen."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255
    upright[:8, 8:16, 0] = 255
    stored = {
      1: upright,
      2: upright[:, ::-1],
      3: upright[::-1, ::-1],
      4: upright[::-1],
      5: upright.transpose(1, 0, 2),
      6: np.rot90(upright),
      7: np.rot90(upright, 2).transpose(1, 0, 2),
      8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    image = Image.fromarray(np.ascontiguousarray(stored))
    data = saved(image, format, exif=exif, **options.get(format, {}))
    atol = 6 if format == "JPEG" else 0
    self.check(data, upright, f"1.{format.lower()}", atol=atol)

  def test_gray_of_16_bits_is_turned_too(self):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(DEEP)))
    self.check(saved(stored, exif=exif), UPPER)
    self.check(saved(stored, "TIFF", exif=exif), UPPER, "1.tif")

  @parameterized.product(
    exif=(b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    format=("JPEG", "PNG"),
  )
  def test_damaged_exif_turns_nothing(self, exif, format):
    image = Image.fromarray(GRAY[..., 0])
    data = saved(image, format, quality=100, exif=exif)
    with warnings.catch_warnings():  # Pillow's own, of corrupt EXIF data
      warnings.simplefilter("ignore")
      self.check(data, GRAY, f"1.{format.lower()}", atol=2)

  @parameterized.parameters("GIF", "TIFF", "WEBP", "PNG")
  def test_the_first_frame(self, format):
    frames = [Image.new("RGB", (8, 6), (40 * i, 0, 9)) for i in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
      self.assertEqual(image.n_frames, 3)
    name = f"1.{format.lower()}"
    self.check(data, np.broadcast_to([0, 0, 9], (6, 8, 3)), name)

  def test_several_pictures_in_one_jpeg(self):
    """Phones write such files under the name .jpg."""
    first, second = (Image.new("RGB", (16, 8), (c, 0, 0)) for c in (250, 20))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as image:
      self.assertEqual(image.format, "MPO")
    self.check(data, np.broadcast_to([250, 0, 0], (8, 16, 3)), "1.jpg", atol=3)

  @parameterized.parameters(
    ("CMYK", "TIFF", (0, 255, 0, 0), (255, 0, 255)),
    ("CMYK", "JPEG", (0, 0, 0, 255), (0, 0, 0)),
    ("LAB", "TIFF", (255, 128, 128), (255, 255, 255)),
    ("RGBX", "TIFF", (1, 2, 3, 0), (1, 2, 3)),
  )
  def test_other_colors_become_rgb(self, mode, format, color, expected):
    data = saved(Image.new(mode, (8, 8), color), format)
    expected = np.broadcast_to(expected, (8, 8, 3))
    self.check(data, expected, f"1.{format.lower()}", atol=3)

  @parameterized.product(
    format=("BMP", "PPM", "TIFF", "WEBP", "PNG"), mode=("1", "L", "RGB")
  )
  def test_formats_without_loss(self, format, mode):
    pixels = RGB if mode == "RGB" else GRAY
    if mode == "1":
      pixels = (pixels > 99) * np.uint8(255)
    image = Image.fromarray(pixels[..., 0] if mode != "RGB" else pixels).convert(mode)
    endings = {"WEBP": "webp", "1PPM": "pbm", "LPPM": "pgm"}
    ending = endings.get(mode + format, format.lower())
    options = {"lossless": True} if format == "WEBP" else {}
    expected = (
      np.repeat(pixels, 3, -1) if format == "WEBP" and mode != "RGB" else pixels
    )
    self.check(saved(image, format, **options), expected, f"1.{ending}")

  def test_pictures_in_memory(self):
    for mode, color, expected in (
      ("RGBA", (0, 0, 0, 51), 204),
      ("La", (0, 51), 204),
      ("RGBa", (0, 0, 0, 51), 204),
      ("1", 1, 255),
      ("HSV", (0, 0, 7), 7),
    ):
      image = Image.new(mode, (1, 1), color)
      pixels = _modes.pixels(image, name="x", mode="L")
      self.assertEqual(pixels.tolist(), [[[expected]]], mode)
    opened = Image.open(io.BytesIO(saved(Image.fromarray(DEEP))))
    opened.load()
    np.testing.assert_array_equal(_modes.pixels(opened, name="x", mode=None), UPPER)
    with self.assertRaisesRegex(_modes.WrongModeError, "x has .* mode I "):
      _modes.pixels(Image.new("I", (1, 1)), name="x", mode="L")


if __name__ == "__main__":
  absltest.main()
