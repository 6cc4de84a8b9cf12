"""A memory budget: what it means, what it chooses, and what it refuses."""

import pathlib
import tempfile

import jax
from absl.testing import absltest, parameterized

from experiments import _program, sinusoid
from jsharp.core.execution import Execution
from jsharp.training import memory_budget
from tests.experiments.flags_test import describe
from tests.experiments.program_test import TINY, run

SINES = (
  *TINY,
  "--num_inner_steps=40",
  "--num_eval_inner_steps=1",
  "--num_steps=2",
  "--hidden_width=64",
  "--num_devices=1",
)


class MemoryBudgetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  @parameterized.parameters(
    ("8e9", 8_000_000_000), ("1.5 GiB", 3 * 2**29), ("200mb", 200_000_000)
  )
  def test_sizes(self, text, expected):
    self.assertEqual(memory_budget.in_bytes(text), expected)

  def test_a_fraction_is_of_the_device(self):
    memory = memory_budget.device_bytes()
    self.assertGreater(memory, 2**28)
    self.assertEqual(memory_budget.in_bytes("0.25"), memory // 4)

  @parameterized.parameters("much", "-1", "0", "8 TB")
  def test_what_is_no_size_is_refused(self, text):
    with self.assertRaisesRegex(ValueError, f"--memory_budget={text} is not a size"):
      memory_budget.in_bytes(text)

  def test_the_fastest_that_fits_is_chosen(self):
    def fit(budget):
      chosen = describe("sinusoid", *SINES, f"--memory_budget={budget}")
      parts = _program._fitting(sinusoid.EXPERIMENT, chosen, Execution())
      return parts.protocol["memory"]

    ample = fit("1GiB")
    self.assertEqual((ample["task_chunk"], ample["second_order"]), (1, "stored"))
    tight = fit(ample["needed_bytes"] - 1)
    self.assertEqual(tight["second_order"], "forward_over_reverse")
    self.assertLess(tight["needed_bytes"], ample["needed_bytes"])

  def test_as_a_program(self):
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory) / "run"
      code, out, err = run("sinusoid", path, *SINES, "--memory_budget=1GiB")
      self.assertEqual(code, 0, err)
      self.assertRegex(out, "(?m)^memory: .* of .* bytes with --task_chunk=1 ")
      again = run("sinusoid", path, *SINES, "--memory_budget=1GiB")
      self.assertEqual(again[0], 0)
      self.assertNotIn("testing", again[1])
      other = pathlib.Path(directory) / "other"
      code, _, err = run("sinusoid", other, *SINES, "--memory_budget=1000")
      self.assertEqual(code, 2)
      self.assertRegex(
        err, "1,000 bytes, but the smallest .*forward_over_reverse.*needs"
      )
      code, _, err = run(
        "sinusoid", other, *SINES, "--memory_budget=1GiB", "--task_chunk=2"
      )
      self.assertEqual(code, 2)
      self.assertRegex(err, "memory_budget chooses --task_chunk.*=2 is given too")


if __name__ == "__main__":
  absltest.main()
