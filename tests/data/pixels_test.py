"""Tests of jsharp.data._pixels."""

import io
import threading

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import _pixels
from tests.data import fixtures


class PixelsTest(parameterized.TestCase):
  @parameterized.parameters((1, "L"), (3, "RGB"))
  def test_decode_gives_the_pixels(self, channels, mode):
    image = fixtures.images(0, 1, channels)[0]
    for asked in (mode, None):
      decoded = _pixels.decode(fixtures.png(image), name="x", mode=asked)
      np.testing.assert_array_equal(decoded, image)

  def test_one_bit_images_decode_to_0_and_255(self):
    buffer = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=bool)).save(buffer, "PNG")
    decoded = _pixels.decode(buffer.getvalue(), name="x", mode="L")
    np.testing.assert_array_equal(decoded[..., 0], 255 * np.eye(4, dtype=np.uint8))

  @parameterized.parameters("PNG", "JPEG")
  def test_a_truncated_image_is_named(self, format):
    data = fixtures.png(fixtures.images(0, 1, 3, 32)[0], format)
    with self.assertRaisesRegex(ValueError, "a/1.png cannot be decoded"):
      _pixels.decode(data[: len(data) // 2], name="a/1.png", mode="RGB")

  def test_something_else_than_an_image_is_named(self):
    with self.assertRaisesRegex(ValueError, "a/1.png cannot be decoded"):
      _pixels.decode(b"hello", name="a/1.png", mode=None)

  def test_check_size_names_the_file_and_both_sizes(self):
    image = np.zeros((5, 7, 3), np.uint8)
    with self.assertRaisesRegex(ValueError, "a/1.png is 5x7 pixels, not 7x7"):
      _pixels.check_size(image, 7, name="a/1.png")
    _pixels.check_size(image[:, :5], 5, name="a/1.png")

  @parameterized.parameters(1, 3)
  def test_box_is_the_area_average(self, channels):
    image = fixtures.images(1, 1, channels)[0]
    mean = image.reshape(4, 2, 4, 2, channels).astype(float).mean((1, 3))
    resized = _pixels.resize(image, 4, method="BOX")
    # Pillow rounds after each of the two axes.
    np.testing.assert_allclose(resized, mean, atol=1.01)

  def test_to_size_leaves_alone_what_has_the_size(self):
    image = fixtures.images(1, 1, 3)[0]
    for size in (None, fixtures.SIZE):
      self.assertIs(_pixels.to_size(image, size), image)
    expected = _pixels.resize(image, 4, method="LANCZOS")
    np.testing.assert_array_equal(_pixels.to_size(image, 4), expected)
    # One side alone is not enough.
    wide = image[: fixtures.SIZE // 2]
    self.assertEqual(_pixels.to_size(wide, fixtures.SIZE).shape, image.shape)

  def test_map_threads_keeps_the_order_and_reads_little_ahead(self):
    taken = []

    def items():
      for item in range(5000):
        taken.append(item)
        yield item

    results = _pixels.map_threads(lambda item: -item, items())
    self.assertEqual(next(results), 0)
    self.assertLess(len(taken), 5000)
    self.assertEqual(list(results), [-item for item in range(1, 5000)])

  def test_map_threads_raises_the_first_error_and_stops_its_threads(self):
    before = threading.active_count()
    with self.assertRaises(ZeroDivisionError):
      list(_pixels.map_threads(lambda item: 1 // (item - 3), range(10)))
    self.assertEqual(threading.active_count(), before)


if __name__ == "__main__":
  absltest.main()
