"""Every kind of flagfile of ordinary training, started on small images."""

import json
import pathlib
import tempfile

import jax
from absl.testing import absltest, parameterized

from tests.experiments import supervised_test

ROOT = pathlib.Path(__file__).parents[2]
FLAGFILES = sorted((ROOT / "experiments" / "flagfiles").glob("*_cifar10*.txt"))
# What a file says that only changes a number of the program, or where its data lie.
NUMBERS = ("dataset", "rho", "label_noise", "num_epochs", "lr", "weight_decay")
TINY = {
  "resnet": ("--depth=8",),
  "wide_resnet": ("--depth=10", "--widen=1"),
  "shake_shake": ("--depth=8", "--width=2"),
  "pyramid_net": ("--depth=11", "--pyramid_alpha=3"),
}


def settings(path):
  lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
  return dict(line[2:].partition("=")[::2] for line in lines)


def kinds():
  """The first file of every set of files that differ in numbers alone."""
  found = {}
  for path in FLAGFILES:
    kind = {k: v for k, v in settings(path).items() if k not in NUMBERS}
    found.setdefault(tuple(sorted(kind.items())), path)
  return [(path.stem, path) for path in found.values()]


class StartedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))  # optax's schedules

  @parameterized.named_parameters(*kinds())
  def test_three_steps(self, path):
    with tempfile.TemporaryDirectory() as run_dir:
      small = (
        "--dataset=characters",
        *supervised_test.TINY,
        *TINY[settings(path)["model"]],
      )
      code, out, err = supervised_test.run(
        run_dir, f"--flagfile={path}", *small, "--hessian_eigenvalues=0"
      )
      self.assertEqual(code, 0, err)
      result = json.loads((pathlib.Path(run_dir) / "result.json").read_text())
    self.assertEqual(result["num_steps"], 3)
    self.assertBetween(result["test_error"], 0, 1)
    gradients = 2 if settings(path)["algorithm"] == "sam" else 1
    self.assertEqual(result["gradients_per_step"], gradients)
    self.assertIn("test error", out)


if __name__ == "__main__":
  absltest.main()
