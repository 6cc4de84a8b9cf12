"""Comparisons: plans and their refusals, costs by hand, a grid that resumes."""

import contextlib
import io
import pathlib
import tempfile

import jax
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

from experiments import compare, compare_plan, compare_report, program, sinusoid

ROOT = pathlib.Path(__file__).parents[2]
PLANS = sorted((ROOT / "experiments" / "plans").glob("*.toml"))
SINES = """
experiment = "sinusoid"
seeds = [0, 1]
validations = 1
[budget]
{budget}
[common]
num_tasks = 2
val_tasks = 2
eval_tasks = 5
num_eval_inner_steps = 2
hidden_width = 4
[methods.maml]
algorithm = "maml"
[methods.reptile]
algorithm = "reptile"
outer_optimizer = "sgd"
"""


def load(text, **overrides):
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "plan.toml"
    path.write_text(text)
    return compare_plan.load(path, overrides)


def in_process(experiment, name, arguments):
  """Runs a run here, for a compiler that is already warm."""
  assert experiment == "sinusoid"
  values = flags.FlagValues()
  sinusoid.define_flags(values)
  values([name, "--compilation_cache_dir=", *arguments])
  with contextlib.redirect_stdout(io.StringIO()):
    return program.run(experiment, sinusoid.define_flags, sinusoid.build, values)


class PlanTest(parameterized.TestCase):
  @parameterized.named_parameters((path.stem, path) for path in PLANS)
  def test_shipped_plans_are_sound(self, path):
    plan = compare_plan.load(path, {"data_dir": "somewhere"})
    self.assertIn("python -m experiments.compare --plan", path.read_text())
    for method in plan.methods:
      self.assertEqual(plan.settings(method).data_dir, "somewhere")

  @parameterized.parameters(
    ("steps = 0", "budget.steps must be a positive number, got 0"),
    ("steps = 10\nminutes = 1", "exactly one of steps, gradients, minutes"),
    ("epochs = 10", "exactly one of"),
    ("gradients = 3", "does not pay for one meta-step of maml"),
  )
  def test_bad_budgets_are_named(self, budget, message):
    with self.assertRaisesRegex(ValueError, message):
      load(SINES.format(budget=budget))

  @parameterized.parameters(
    ('experiment = "sinusoid"', 'experiment = "sin"', "experiment is 'sin'; choose"),
    ("seeds = [0, 1]", "seeds = [1, 1]", "different numbers"),
    ("seeds = [0, 1]", "seed = 1", r"unknown keys \['seed'\]"),
    ("seeds = [0, 1]", 'baseline = "anil"', "baseline is 'anil'; choose one of maml"),
    ('outer_optimizer = "sgd"', "num_steps = 3", "sets .'num_steps'., which"),
    ('outer_optimizer = "sgd"', "rho = 3", "methods.reptile: Unknown.*rho"),
    ('outer_optimizer = "sgd"', "inner_lr = -1", "methods.reptile: .*inner_lr=-1"),
    ('outer_optimizer = "sgd"', "num_cg_steps = 3", "num_cg_steps has no effect"),
    ('outer_optimizer = "sgd"', "eval_tasks = 9", "methods.reptile is tested on"),
    ("validations = 1", "seeds_side_by_side = true", "is for images"),
    ("validations = 1", "validations = 0", "validations must be at least 1"),
    ("validations = 1", "validations = ", "is no TOML file"),
  )
  def test_bad_plans_are_named(self, old, new, message):
    text = SINES.format(budget="steps = 4")
    self.assertIn(old, text)
    with self.assertRaisesRegex(ValueError, message):
      load(text.replace(old, new, 1))

  @parameterized.parameters(
    # support 5, query 5, 3 inner steps
    ({"algorithm": "maml"}, 3 * 3 * 5 + 5),
    ({"algorithm": "fomaml"}, 3 * 5 + 5),
    ({"algorithm": "sharp_maml_low"}, 3 * 6 * 5 + 5),
    ({"algorithm": "sharp_maml_up"}, 2 * (3 * 3 * 5 + 5)),
    ({"algorithm": "sharp_maml_both"}, 2 * (3 * 6 * 5 + 5)),
    ({"algorithm": "maml", "sharpness": "both"}, 2 * (3 * 6 * 5 + 5)),
    (
      {"algorithm": "sharp_maml_low", "differentiate_perturbation": False},
      3 * 4 * 5 + 5,
    ),
    ({"algorithm": "anil"}, 5 + 5),
    ({"algorithm": "reptile", "inner_batch_size": 2}, 3 * 2),
    ({"algorithm": "reptile"}, 3 * 5),
    ({"algorithm": "imaml", "num_cg_steps": 4}, (3 + 8 + 2) * 5 + 5),
    ({"algorithm": "maml_plus_plus"}, 3 * 3 * 5 + 3 * 5),
  )
  def test_costs_by_hand(self, own, expected):
    lines = [
      f"{k} = {str(v).lower() if v is False else repr(v)}" for k, v in own.items()
    ]
    plan = load(
      SINES.format(budget="gradients = 10000").replace(
        'algorithm = "maml"', "\n".join([*lines, "num_inner_steps = 3"])
      )
    )
    cost = compare_plan.gradients_per_task(plan.settings("maml"))
    self.assertEqual(cost, expected)
    self.assertEqual(compare_plan.num_steps(plan, "maml"), 10000 // (2 * expected))


class CompareTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))
    self.out = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def compare(self, budget, runner, **more):
    plan = self.out / "plan.toml"
    plan.write_text(SINES.format(budget=budget))
    values = flags.FlagValues()
    compare.define_flags(values)
    more = {"plan": plan, "out": self.out / "out", **more}
    values(["compare", *(f"--{name}={value}" for name, value in more.items())])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = compare.run(values, runner)
    return code, out.getvalue(), err.getvalue()

  def test_a_grid_with_a_failure_goes_on_and_ends_with_the_tables(self):
    calls = []

    def failing_once(experiment, name, arguments):
      calls.append(name)
      if calls.count(name) == 1 and name == "reptile-seed1":
        return 1
      return in_process(experiment, name, arguments)

    code, out, err = self.compare("steps = 2", failing_once)
    self.assertEqual(code, 1)
    self.assertIn("reptile-seed1.txt", err)
    self.assertIn("| maml | 2 |", out)
    self.assertNotIn("| reptile | 2 |", out)
    directory = self.out / "out"
    before = (directory / "runs/maml-seed0/result.json").stat().st_mtime_ns
    code, out, err = self.compare("steps = 2", failing_once)
    self.assertEqual(code, 0, err)
    after = (directory / "runs/maml-seed0/result.json").stat().st_mtime_ns
    self.assertEqual(before, after)  # trained nothing twice
    text = (directory / "comparison.md").read_text()
    self.assertIn("| reptile | 2 |", text)
    self.assertEqual((directory / "comparison.png").read_bytes()[1:4], b"PNG")
    values = np.concatenate(
      [
        compare_report.read_column(
          directory / f"runs/maml-seed{seed}" / "test_tasks.csv", "loss_2"
        )
        for seed in (0, 1)
      ]
    )
    self.assertEqual(values.shape, (2, 5))
    self.assertIn(f"| maml | 2 | {values.mean():.2f} |", text)
    row = (directory / "comparison.csv").read_text().splitlines()[1].split(",")
    self.assertEqual(row[:3], ["maml", "2", "5"])
    np.testing.assert_allclose(float(row[3]), values.mean(), rtol=1e-12)

  def test_seeds_side_by_side_are_one_run_with_a_column_each(self):
    path = self.out / "test_tasks.csv"
    path.write_text("task,loss,accuracy_0,accuracy_1\n0,9,0.25,0.5\n1,9,0.5,1.0\n")
    columns = compare_report.read_column(path, "accuracy")
    np.testing.assert_array_equal(columns, [[0.25, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(compare_report.read_column(path, "loss"), [[9, 9]])
    with self.assertRaisesRegex(ValueError, "no column 'mse', it has task, loss"):
      compare_report.read_column(path, "mse")
    quick = (ROOT / "experiments" / "plans" / "quick.toml").read_text()
    plan = load(quick.replace("validations", "seeds_side_by_side = true\nvalidations"))
    self.assertEqual(plan.runs("maml"), [("maml-seeds0to1", (0, 1))])

  def test_bad_command_lines_are_named(self):
    for more, message in (
      ({"plan": self.out / "nothing.toml"}, "No such file"),
      ({"set": "num_tasks"}, "--set=num_tasks must look like flag=value"),
      ({"set": "num_tasks=0"}, "methods.maml: .*num_tasks=0"),
    ):
      code, _, err = self.compare("steps = 2", in_process, **more)
      self.assertEqual(code, 2)
      self.assertRegex(err, message)


if __name__ == "__main__":
  absltest.main()
