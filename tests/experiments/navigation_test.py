"""Few-shot control as a program: two steps, resume, an environment of one's own."""

import contextlib
import io
import json
import pathlib
import tempfile

import jax
from absl import flags
from absl.testing import absltest, parameterized

from experiments import _program, navigation
from tests import toy_runs

TINY = (
  *("--num_tasks=2", "--val_tasks=2", "--eval_tasks=3", "--eval_every=1"),
  *("--trajectories=3", "--eval_trajectories=2", "--hidden_width=4"),
  *("--num_eval_inner_steps=1", "--horizon=4", "--num_devices=1"),
  "--algorithm=fomaml",
)
LINE = "--environment=tests.control.own_environment:"


def run(run_dir, *arguments):
  """Returns exit code, standard output and standard error."""
  words = ["--compilation_cache_dir=", f"--run_dir={run_dir}", *arguments]
  out, err = io.StringIO(), io.StringIO()
  with (
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    toy_runs.suites_cache(),
  ):
    code = _program.start(navigation.EXPERIMENT, words, flags.FlagValues())
  return code, out.getvalue(), err.getvalue()


class NavigationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))  # optax's Adam needs it.
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_it_reports_each_step_and_goes_on_bit_for_bit(self):
    code, out, err = run(self.root / "whole", *TINY, "--num_steps=2")
    self.assertEqual(code, 0, err)
    self.assertRegex(out, r"test return, 0 steps +-[0-9.]+ ± ")
    self.assertIn("paths.png", out)
    for steps in (1, 2):
      code, _, err = run(self.root / "parts", *TINY, f"--num_steps={steps}")
      self.assertEqual(code, 0, err)
    whole, parts = (
      json.loads((self.root / name / "result.json").read_text())
      for name in ("whole", "parts")
    )
    self.assertLen(whole["test_return_by_step"], 2)
    self.assertEqual(whole["test_return_by_step"], parts["test_return_by_step"])
    lines = (self.root / "whole" / "test_tasks.csv").read_text().splitlines()
    self.assertEqual((lines[0], len(lines)), ("task,return_0,return_1", 4))

  def test_an_environment_of_ones_own(self):
    code, out, err = run(self.root, *TINY, LINE + "Line", "--num_steps=1")
    self.assertEqual(code, 0, err)
    self.assertNotIn("paths.png", out)  # Its observations are no positions.
    code, _, err = run(self.root / "lost", *TINY, LINE + "Lost", "--num_steps=1")
    self.assertEqual(code, 1, err)
    self.assertIn("the loss of task 0, 1 is not finite at meta-step 1", err)

  @parameterized.parameters(
    (("--algorithm=cavia",), "cavia needs examples with targets"),
    (("--num_seeds=2",), "--num_seeds=2 is for images"),
    (("--environment=cheetah",), "environment"),
    (("--discount=2",), "--discount=2"),
  )
  def test_refuses(self, arguments, message):
    code, _, err = run(self.root, *TINY, "--num_steps=1", *arguments)
    self.assertEqual(code, 2)
    self.assertIn(message, err)


if __name__ == "__main__":
  absltest.main()
