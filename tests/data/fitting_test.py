"""Tests of jsharp.data.fitting: images brought to the shape of another dataset."""

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import Dataset
from jsharp.data.fitting import fit_to
from jsharp.data.pictures import Looks
from tests.data import fixtures


def _dataset(channels, size=8, **options):
  arrays = {"a": fixtures.images(0, 3, channels, size)}
  arrays["b"] = fixtures.images(1, 2, channels, size)
  return Dataset.from_class_arrays(arrays, split="test", **options)


class FittingTest(parameterized.TestCase):
  def test_colour_becomes_gray_by_luma(self):
    dataset = _dataset(3)
    gray, said = fit_to(dataset, Looks((8, 8, 1)))
    expected = dataset.images @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray.images[..., 0], expected, atol=0.51)
    self.assertEqual(said, "8x8 colour to 8x8 gray, lanczos filter")

  def test_gray_is_repeated(self):
    dataset = _dataset(1)
    colour, _ = fit_to(dataset, Looks((8, 8, 3)))
    np.testing.assert_array_equal(colour.images, np.repeat(dataset.images, 3, -1))

  @parameterized.product(
    channels=(1, 3), shape=((5, 5), (20, 12)), filter=("BOX", "LANCZOS")
  )
  def test_height_and_width_are_scaled(self, channels, shape, filter):
    dataset = _dataset(channels)
    scaled, _ = fit_to(dataset, Looks((*shape, channels), filter))
    self.assertEqual(scaled.image_shape, (*shape, channels))
    for image, found in zip(dataset.images, scaled.images, strict=True):
      for channel in range(channels):  # One channel at a time.
        source = Image.fromarray(np.ascontiguousarray(image[..., channel]))
        expected = source.resize(shape[::-1], Image.Resampling[filter])
        np.testing.assert_array_equal(found[..., channel], np.asarray(expected))

  def test_classes_rotations_and_origin_stay(self):
    dataset = _dataset(3, num_rotations=4, origin="all 2 classes")
    fitted, _ = fit_to(dataset, Looks((4, 4, 1)))
    self.assertEqual(fitted.class_names, dataset.class_names)
    np.testing.assert_array_equal(fitted.counts, dataset.counts)
    self.assertEqual((fitted.num_rotations, fitted.split), (4, "test"))
    self.assertEqual(fitted.origin, "all 2 classes")

  def test_images_that_fit_are_left_alone(self):
    for dataset in (_dataset(3), _dataset(3).on_host()):
      self.assertIs(fit_to(dataset, Looks((8, 8, 3)))[0], dataset)
    fitted, _ = fit_to(_dataset(3).on_host(), Looks((4, 4, 3)))
    self.assertEqual(fitted.image_shape, (4, 4, 3))

  def test_only_drawings_that_are_dark_on_light_are_inverted(self):
    dataset = Dataset.from_class_arrays(
      {"a": np.full((2, 8, 8, 1), 250, np.uint8)}, split="test"
    )
    looks = Looks((8, 8, 1), light_ink=True)
    inverted, said = fit_to(dataset, looks)
    np.testing.assert_array_equal(inverted.images, 5)
    self.assertEqual(said, "dark ink on a light ground inverted")
    self.assertEqual(fit_to(dataset, looks, light_ink=True), (dataset, ""))


if __name__ == "__main__":
  absltest.main()
