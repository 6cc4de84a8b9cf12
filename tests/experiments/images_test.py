"""--images: where a run keeps its images, with the same results."""

import pathlib
import tempfile

import jax
from absl.testing import absltest

from tests.experiments.flags_test import identity
from tests.experiments.program_test import SMALL_NETWORK, TINY_IMAGES, records, run

# Flags of an inner loop have no effect where there is none.
WITHOUT_INNER_LOOP = [flag for flag in TINY_IMAGES if "inner_steps" not in flag]


class ImagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  def test_a_run_may_go_on_with_another_value(self):
    self.assertEqual(identity("omniglot", "--images=host"), identity("omniglot"))

  def test_two_steps(self):
    with tempfile.TemporaryDirectory() as directory:
      found = []
      for images in ("host", "device"):
        run_dir = pathlib.Path(directory, images)
        code, out, err = run(
          "omniglot",
          run_dir,
          *WITHOUT_INNER_LOOP,
          SMALL_NETWORK,
          "--algorithm=protonet",
          "--num_steps=2",
          f"--images={images}",
        )
        self.assertEqual(code, 0, err)
        self.assertIn("%  transductive", out)
        tests = (run_dir / "test_tasks.csv").read_text()
        found.append((records(run_dir), tests))
      self.assertEqual(*found)


if __name__ == "__main__":
  absltest.main()
