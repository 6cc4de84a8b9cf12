"""Where images are kept: on the device or in host memory."""

import contextlib
import io
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import Dataset, HostImages, ImageSource, placement
from jsharp.data.characters import Characters
from jsharp.data.image_folder import ImageFolder
from tests.data import fixtures


def splits(num_images):
  images = np.zeros((num_images, 4, 4, 1), np.uint8)
  return {
    name: Dataset.from_class_arrays({"a": images}, split=name)
    for name in ("train", "val", "test")
  }


class PlacementTest(parameterized.TestCase):
  def _placed(self, num_images, images, device):
    out = io.StringIO()
    devices = jax.local_devices()

    def local_devices(backend=None):
      return devices if backend else [device]

    with (
      mock.patch.object(placement.jax, "local_devices", local_devices),
      contextlib.redirect_stdout(out),
    ):
      placed = placement.placed(splits(num_images), images)
    kinds = {isinstance(split.images, HostImages) for split in placed.values()}
    self.assertLen(kinds, 1)
    return kinds == {True}, out.getvalue()

  @parameterized.named_parameters(
    # Three splits of 16 bytes an image.
    ("small", 10, "gpu", {"bytes_limit": 960}, False),
    ("large", 11, "gpu", {"bytes_limit": 960}, True),
    ("cpu", 11, "cpu", {"bytes_limit": 960}, False),
    ("unknown", 11, "gpu", None, False),
  )
  def test_auto(self, num_images, platform, statistics, expected):
    device = mock.Mock(platform=platform, memory_stats=lambda: statistics)
    placement._say.cache_clear()
    on_host, out = self._placed(num_images, "auto", device)
    self.assertEqual(on_host, expected)
    if expected:
      self.assertEqual(out.count("\n"), 1)
      self.assertRegex(out, "^images: 528 bytes stay in host memory.* 960 ")
    else:
      self.assertEqual(out, "")

  @parameterized.parameters(("host", True), ("device", False))
  def test_said(self, images, expected):
    device = mock.Mock(platform="gpu", memory_stats=lambda: {"bytes_limit": 960})
    self.assertEqual(self._placed(11, images, device), (expected, ""))

  def test_host_memory_needs_the_cpu_platform(self):
    error = RuntimeError("Unknown backend cpu")
    with (
      mock.patch.object(placement.jax, "local_devices", side_effect=error),
      self.assertRaisesRegex(ValueError, "JAX_PLATFORMS.*--images=device"),
    ):
      placement.placed(splits(2), "host")


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)

  def _write(self, names, images):
    for name, image in zip(names, images, strict=True):
      fixtures.write_files(self.root, {f"{name}/1.png": fixtures.png(image)})

  def test_the_test_alone_is_of_another_dataset_and_shape(self):
    source, other = Characters(image_size=8), Characters(image_size=16)
    loaded = placement.load_with_test(source, None, test_source=other)
    own = source.load(None)
    self.assertEqual(list(loaded), ["train", "val", "test"])
    for split in ("train", "val"):
      self.assertEqual(loaded[split].fingerprint(), own[split].fingerprint())
    large = other.load(None, only="test")["test"]
    self.assertEqual(loaded["test"].class_names, large.class_names)
    area = large.images.reshape(-1, 8, 2, 8, 2).mean((2, 4))
    # Pillow rounds after each of the two axes.
    np.testing.assert_allclose(loaded["test"].images[..., 0], area, atol=1.01)
    said = "test: 16x16 gray to 8x8 gray, box filter"
    self.assertEqual(placement.origins(loaded), said)
    self.assertIsNone(placement.origins(own))

  def test_dark_drawings_in_colour_become_light_ink_in_gray(self):
    page = np.full((1, 8, 8, 3), 255, np.uint8)
    page[0, 2:4, 2:6] = (0, 0, 255)
    self._write("ab", np.repeat(page, 2, 0))
    test = placement.load_with_test(
      Characters(image_size=8),
      None,
      test_source=ImageFolder(image_size=8),
      test_data_dir=str(self.root),
    )["test"]
    ink = 255 - round(0.114 * 255)
    np.testing.assert_array_equal(test.images[0, 2:4, 2:6], ink)
    self.assertEqual(test.images.astype(int).sum(), 2 * 8 * ink)
    self.assertEqual(
      test.origin,
      "all 2 classes; 8x8 colour to 8x8 gray, box filter, dark ink on a light ground "
      "inverted",
    )

  def test_classes_that_are_trained_on_are_not_tested_on(self):
    root = self.root
    self._write("abcdef", fixtures.images(0, 6))
    source = ImageFolder(image_size=8).for_training()
    link = fixtures.temporary_dir(self) / "link"
    link.symlink_to(root)
    with contextlib.redirect_stderr(io.StringIO()):
      for where in (None, str(root), f"{root}/", str(link)):
        with self.assertRaisesRegex(ValueError, "test on training classes of"):
          placement.load_with_test(
            source,
            str(root),
            test_source=ImageFolder(image_size=8),
            test_data_dir=where,
          )
      both = placement.load_with_test(
        source, str(root), test_source=source, test_data_dir=str(link)
      )
    self.assertEqual(both["test"].num_classes, 2)
    self.assertEqual(
      placement.origins(both),
      "train, val, test: 6 classes, divided 2 / 2 / 2 by split_seed=0",
    )

  def test_a_source_of_ones_own_needs_no_more_than_read(self):
    class Own(ImageSource):
      name = "own"

      def read(self, directory):
        return splits(2)

    (alone,) = Own().load(None, only="val").values()
    self.assertEqual(alone.split, "val")
    loaded = placement.load_with_test(Characters(image_size=8), None, test_source=Own())
    self.assertEqual(loaded["test"].image_shape, (8, 8, 1))


if __name__ == "__main__":
  absltest.main()
