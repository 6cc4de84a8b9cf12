"""Where images are kept: on the device or in host memory."""

import contextlib
import io
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import Dataset, HostImages, placement


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


if __name__ == "__main__":
  absltest.main()
