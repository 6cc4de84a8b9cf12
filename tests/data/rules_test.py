"""Tests of jsharp.data._rules: which images read as by the rule before."""

import io
import warnings
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import _pixels, _rules
from tests.data import fixtures, modes_test

GRAY, RGB = fixtures.images(0, 1, 1)[0], fixtures.images(1, 1, 3)[0]


def _exif(orientation):
  exif = Image.Exif()
  exif[274] = orientation
  return exif


def _pictures():
  """Name -> content: pictures of many kinds, of which some changed with the rule."""
  rgba = np.concatenate([RGB, GRAY], -1)
  deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999)
  saved = modes_test.saved
  palette = Image.fromarray(GRAY[..., 0]).convert("P")
  photo = Image.fromarray(RGB)
  return {
    "gray.png": fixtures.png(GRAY),
    "rgb.png": fixtures.png(RGB),
    "rgb.jpg": fixtures.png(RGB, "JPEG"),
    "one_bit.png": saved(Image.fromarray(GRAY[..., 0] > 99)),
    "jpeg_called.png": fixtures.png(GRAY, "JPEG"),
    "png_called.jpeg": fixtures.png(GRAY),
    "palette.png": saved(palette),
    "key.png": saved(palette, transparency=int(GRAY[0, 0, 0])),
    "unused_key.png": saved(Image.new("P", (8, 8)), transparency=3),
    "rgb_key.png": saved(photo, transparency=tuple(RGB[0, 0].tolist())),
    "rgba.png": fixtures.png(rgba),
    "opaque.png": saved(photo.convert("RGBA")),
    "16.png": saved(deep),
    "turned.png": saved(photo, exif=_exif(3)),
    "turned.jpg": saved(photo, "JPEG", exif=_exif(8)),
    "upright.jpg": saved(photo, "JPEG", exif=_exif(1)),
    "nonsense.jpg": saved(photo, "JPEG", exif=_exif(77)),
    "several.jpg": saved(photo, "MPO", save_all=True, append_images=[photo]),
  }


class RulesTest(parameterized.TestCase):
  @parameterized.product(mode=("L", "RGB", None))
  def test_against_both_rules(self, mode):
    changed = []
    for name, data in _pictures().items():
      image = Image.open(io.BytesIO(data))
      own = "L" if image.mode in ("1", "L", "LA") else "RGB"
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = np.asarray(image.convert(mode or own))
      now = _pixels.decode(data, name=name, mode=mode)
      same = np.array_equal(before.reshape(*before.shape[:2], -1), now)
      answer = _rules.reads_as_before(data, name=name, mode=mode)
      self.assertEqual(answer, same, name)
      if not same:
        changed.append(name)
    self.assertIn("key.png", changed)
    self.assertLen(changed, 6)

  def test_usual_pictures_are_not_decoded(self):
    pictures = _pictures()
    with mock.patch.object(_pixels, "decode", side_effect=AssertionError):
      for name in ("gray.png", "one_bit.png", "rgb.jpg", "upright.jpg", "palette.png"):
        self.assertTrue(
          _rules.reads_as_before(pictures[name], name=name, mode="RGB"), name
        )

  @parameterized.parameters("1.gif", "1.webp", "1.tif")
  def test_what_was_left_out(self, name):
    data = fixtures.png(GRAY)
    self.assertFalse(_rules.reads_as_before(data, name=name, mode=None))

  @parameterized.parameters(b"", b"x", b"\xff\xd8\xffExif", b"\x89PNG\r\n\x1a\n")
  def test_damage_is_left_to_the_reader(self, data):
    self.assertFalse(_rules.reads_as_before(data, name="1.png", mode=None))


if __name__ == "__main__":
  absltest.main()
