"""Rectangles of photographs against a second formulation, pixels against Pillow."""

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import _crops
from tests.data import fixtures


def _law(generator, height, width, number):
  """Area share, log aspect and relative position of rectangles, by rejection."""
  share = generator.uniform(0.08, 1.0, 4 * number)
  aspect = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), 4 * number))
  tall = np.sqrt(share * height * width / aspect)
  wide = tall * aspect
  fits = np.flatnonzero((tall <= height) & (wide <= width))[:number]
  return share[fits], np.log(aspect[fits])


class RandomBoxTest(parameterized.TestCase):
  @parameterized.parameters((300, 400), (500, 260))
  def test_boxes_follow_the_law(self, height, width):
    draw, number = np.random.RandomState(1), 3000
    boxes = np.array([_crops.random_box(draw, height, width) for _ in range(number)])
    left, top, right, bottom = boxes.T
    self.assertTrue((left >= 0).all() and (top >= 0).all())
    self.assertTrue((right <= width).all() and (bottom <= height).all())
    wide, tall = right - left, bottom - top
    share, aspect = wide * tall / (height * width), np.log(wide / tall)
    self.assertBetween(share.min(), 0.075, 0.1)
    self.assertBetween(np.exp(aspect).min(), 0.74, 0.76)
    self.assertBetween(np.exp(aspect).max(), 1.32, 1.35)
    wanted = _law(np.random.default_rng(2), height, width, number)
    for found, law in zip((share, aspect), wanted, strict=True):
      levels = np.linspace(0.05, 0.95, 10)
      np.testing.assert_allclose(
        np.quantile(found, levels), np.quantile(law, levels), atol=0.035
      )
    for start, room in ((left, width - wide), (top, height - tall)):
      place = start[room > 20] / room[room > 20]
      quantiles = np.quantile(place, (0.1, 0.5, 0.9))
      np.testing.assert_allclose(quantiles, (0.1, 0.5, 0.9), atol=0.04)

  def test_what_never_fits_is_the_middle(self):
    box = _crops.random_box(np.random.RandomState(0), 8, 1000)
    self.assertEqual(box, _crops.central_box(8, 1000))
    self.assertEqual(box, (496, 0, 503, 7))

  def test_an_image_of_one_pixel(self):
    self.assertEqual(_crops.random_box(np.random.RandomState(0), 1, 1), (0, 0, 1, 1))


class PixelsTest(parameterized.TestCase):
  def test_the_middle_at_its_own_size_is_a_slice(self):
    image = fixtures.images(0, 1, size=320)[0, :256]
    crop = _crops.cropped(image, _crops.central_box(256, 320), 224)
    np.testing.assert_array_equal(crop, image[16:240, 48:272])

  @parameterized.parameters(((3, 5, 40, 29), 16), ((0, 0, 48, 48), 20))
  def test_pixels_are_those_of_pillow(self, box, size):
    image = fixtures.images(1, 1, size=48)[0]
    whole = Image.fromarray(image).resize((size, size), Image.BICUBIC, box=box)
    np.testing.assert_array_equal(_crops.cropped(image, box, size), np.asarray(whole))

  def test_a_cubic_kernel_by_hand(self):
    # Halved, a pixel is the mean over 8, weighted by Keys' kernel with a = -1/2.
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    distance = np.abs(np.arange(8) - 3.5) / 2
    inner = 1.5 * distance**3 - 2.5 * distance**2 + 1
    outer = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    kernel = np.where(distance < 1, inner, np.where(distance < 2, outer, 0))
    kernel /= kernel.sum()
    row = np.array([kernel @ image[0, 2 * i - 3 : 2 * i + 5, 0] for i in range(2, 14)])
    found = _crops.cropped(image, (0, 0, 32, 32), 16)[8, 2:14, 0]
    np.testing.assert_allclose(found, np.clip(row, 0, 255), atol=1)


if __name__ == "__main__":
  absltest.main()
