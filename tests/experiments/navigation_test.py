"""Few-shot control as a program: two steps, resume, an environment of one's own."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
from unittest import mock

import jax
from absl import flags
from absl.testing import absltest, parameterized

import jsharp
from experiments import _program, navigation
from jsharp import control, evaluation
from jsharp.control import half_cheetah
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
    self.assertIn("own_environment:Lost.step returns a reward of nan at time 0", err)
    self.assertIn("return finite numbers", err)
    self.assertIn("The state before meta-step 1 is kept", err)

  @parameterized.parameters(
    ("one_step",), ("trpo", "--max_kl=0.02"), ("ppo", "--num_outer_steps=2")
  )
  def test_what_is_learned_is_loaded_adapts_and_acts(self, update, *options):
    words = ("--num_steps=1", f"--outer_update={update}", *options)
    code, out, err = run(self.root, *TINY, *words)
    self.assertEqual(code, 0, err)
    self.assertIn("model.safetensors", out)
    result = json.loads((self.root / "result.json").read_text())
    self.assertEqual(result["protocol"]["outer loop"]["update"], update)
    policy = jsharp.load(self.root)
    self.assertEqual(policy.description.environment.horizon, 4)
    lines = (self.root / "metrics.jsonl").read_text().splitlines()
    if update == "trpo":
      self.assertLessEqual(json.loads(lines[0])["kl"], 0.02)
    # It earns on the first test task what the run says.
    task = evaluation.task_list(
      lambda key, data: control.sample_task(
        policy.description.environment, key, support=3, query=2
      ),
      seed=result["protocol"]["seeds"]["eval_seed"],
      stream="test",
    )(0, None)
    _, *rows = (self.root / "test_tasks.csv").read_text().splitlines()
    for steps, told in zip((0, 1), rows[0].split(",")[1:], strict=True):
      adapted = policy.adapt(task.support, num_steps=steps)
      found = policy.roll_out(adapted, task.query)
      self.assertAlmostEqual(float(found.rewards.sum(1).mean()), float(told), places=4)
    self.assertEqual(policy.act(adapted, found.observations[:, 0]).shape, (2, 2))

  @parameterized.parameters(
    (("--algorithm=cavia",), "cavia needs examples with targets"),
    (("--num_seeds=2",), "--num_seeds=2 supports only images"),
    (("--environment=cheetah",), "environment"),
    (("--discount=2",), "--discount=2"),
    ((LINE + "Wide",), "Wide.observe returns float32[2], but [1] is needed"),
    (("--outer_update=trpo", "--clip_ratio=0.2"), "clip_ratio"),
    (("--outer_update=trpo", "--max_kl=0"), "--max_kl=0"),
    (("--environment=half_cheetah_dir",), "pip install 'jsharp[brax]'"),
  )
  def test_refuses(self, arguments, message):
    half_cheetah._simulated.cache_clear()
    with mock.patch.dict(sys.modules, {"brax": None}):
      code, _, err = run(self.root, *TINY, "--num_steps=1", *arguments)
    self.assertEqual(code, 2)
    self.assertIn(message, err)


if __name__ == "__main__":
  absltest.main()
