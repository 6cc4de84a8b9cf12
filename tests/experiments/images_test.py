"""--images: where a run keeps its images, with the same results."""

import contextlib
import io
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments import choices, program
from jsharp.data import Dataset, HostImages
from tests.experiments.flags_test import settings
from tests.experiments.program_test import TINY_IMAGES, records, run


def splits(num_images):
  images = np.zeros((num_images, 4, 4, 1), np.uint8)
  return {
    name: Dataset.from_class_arrays({"a": images}, split=name)
    for name in ("train", "val", "test")
  }


class ImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  def _placed(self, num_images, images, device):
    out = io.StringIO()
    devices = jax.local_devices()

    def local_devices(backend=None):
      return devices if backend else [device]

    with (
      mock.patch.object(choices.jax, "local_devices", local_devices),
      contextlib.redirect_stdout(out),
    ):
      placed = choices.placed(splits(num_images), images)
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
    choices._say.cache_clear()
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
      mock.patch.object(choices.jax, "local_devices", side_effect=error),
      self.assertRaisesRegex(ValueError, "JAX_PLATFORMS.*--images=device"),
    ):
      choices.placed(splits(2), "host")

  def test_a_run_may_go_on_with_another_value(self):
    plain = program.identity(settings("omniglot"))
    self.assertEqual(program.identity(settings("omniglot", "--images=host")), plain)

  def test_two_steps(self):
    with tempfile.TemporaryDirectory() as directory:
      found = []
      for images in ("host", "device"):
        run_dir = pathlib.Path(directory, images)
        code, out, err = run(
          "omniglot",
          run_dir,
          *TINY_IMAGES,
          "--model=mlp",
          "--algorithm=fomaml",
          "--num_steps=2",
          "--support_label_noise=0.4",
          f"--images={images}",
        )
        self.assertEqual(code, 0, err)
        self.assertIn("%  transductive", out)
        tests = (run_dir / "test_tasks.csv").read_text()
        found.append((records(run_dir), tests))
      self.assertEqual(*found)


if __name__ == "__main__":
  absltest.main()
