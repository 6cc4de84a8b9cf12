"""Comparisons: plans and their refusals, costs by hand, a grid that resumes."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import jax
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

from experiments import (
  compare,
  compare_cost,
  compare_plan,
  compare_records,
  compare_report,
  compare_runner,
  program,
  sinusoid,
)

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

IMAGES = """
experiment = "omniglot"
seeds = [0, 1]
[budget]
{budget}
[common]
dataset = "characters"
[methods.maml]
algorithm = "maml"
[methods.other]
{other}
"""
# Notes the signals it gets and takes a while to save, as a run does.
CHILD = """
import os, pathlib, signal, sys, time
directory = pathlib.Path(next(a for a in sys.argv if "--run_dir=" in a)[10:])
directory.mkdir(parents=True)
seen = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, lambda number, frame: seen.append(number.real))
(directory / "ready").write_text(f"{os.getsid(0) == os.getpid()}")
deadline = time.monotonic() + 20
while not seen and time.monotonic() < deadline:
  time.sleep(0.01)
time.sleep(0.2)
(directory / "seen").write_text(f"{seen}")
sys.exit(143)
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
    ("validations = 1", "validations = true", "at least 1, got True; give a whole"),
    ("validations = 1", "seeds_side_by_side = 1", "is 1; give true or false"),
    ("seeds = [0, 1]", "seeds = 3", r"seeds must be a list .*, got 3; for example"),
    ("seeds = [0, 1]", 'seeds = "012"', "seeds must be a list .*, got '012'"),
    ("seeds = [0, 1]", "seeds = [0.5]", r"seeds must be .*, got \[0.5\]"),
    ("seeds = [0, 1]", "seeds = [-1]", r"seeds must be .*, got \[-1\]"),
    ("seeds = [0, 1]", "seeds = [true]", r"seeds must be .*, got \[True\]"),
    ('outer_optimizer = "sgd"', "seeds = 1", "methods.reptile.seeds must be .* got 1"),
    ("[budget]\nsteps = 4", "budget = 3", "budget must .*, got 3; for example"),
    ('"sinusoid"', "[]", r"experiment is \[\]; choose"),
    ("seeds = [0, 1]", "baseline = []", r"baseline is \[\]; choose"),
    (
      '[methods.reptile]\nalgorithm = "reptile"\nouter_optimizer = "sgd"',
      '[methods]\nreptile = "reptile"',
      "methods.reptile must be a table, got 'rep",
    ),
    ("[common]", "[common.num_tasks]", "common.num_tasks must be a number.*--num_tas"),
    ("[budget]", "common = 3\n[budget]", "common must be a table, got 3; write"),
    ('outer_optimizer = "sgd"', "max_phase = 1", "tasks of max_phase = 1.0, the"),
  )
  def test_bad_plans_are_named(self, old, new, message):
    text = SINES.format(budget="steps = 4")
    self.assertIn(old, text)
    if new.startswith("common ="):
      text = text[: text.index("[common]")] + text[text.index("[methods.maml]") :]
    if new.startswith("[methods]"):
      text = text.replace('[methods.maml]\nalgorithm = "maml"', "")
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
    cost = compare_cost.gradients_per_task(plan.settings("maml"), 5)
    self.assertEqual(cost, expected)
    self.assertEqual(compare_plan.num_steps(plan, "maml"), 10000 // (2 * expected))

  @parameterized.parameters(
    # 5-way 1-shot, query_shot 1
    (
      'algorithm = "reptile"\ntrain_shot = 10\ninner_batch_size = 10\n'
      "num_inner_steps = 5",
      5 * 10,
    ),
    (
      'algorithm = "protonet"\ntrain_way = 60\nquery_shot = 5\neval_query_shot = 1',
      60 + 300,
    ),
    (
      'algorithm = "protonet"\ntrain_way = [5, 15]\ntrain_shot = [1, 3]',
      (5 + 15 + 15 + 45) / 4 + (5 + 15) / 2,
    ),
    ('algorithm = "cavia"\nnum_inner_steps = 2', 2 * 3 * 5 + 5),
    ('algorithm = "anil"\nnum_inner_steps = 2', 5 + 5),
    ('algorithm = "ridge"\nsharpness = "up"', 2 * (5 + 5)),
  )
  def test_costs_of_images_by_hand(self, other, expected):
    text = IMAGES.format(budget="gradients = 1e6", other=other)
    settings = load(text).settings("other")
    self.assertEqual(compare_cost.gradients_per_task(settings, 7), expected)
    paid = compare_cost.steps_paid(settings, 6 * settings.num_tasks * expected)
    self.assertAlmostEqual(paid, 6)

  @parameterized.parameters((4, 10), (10, 4))
  def test_phases_of_maml_plus_plus_by_hand(self, first_order, all_losses):
    text = IMAGES.format(
      budget="gradients = 1e6",
      other='algorithm = "maml_plus_plus"\nnum_inner_steps = 3\nquery_shot = 2\n'
      f"eval_query_shot = 1\nnum_tasks = 2\nfirst_order_steps = {first_order}\n"
      f"multi_step_loss_steps = {all_losses}",
    )
    settings = load(text).settings("other")
    # Support 5, query 10; exact 3 gradients per inner step, first order 1.
    costs = [
      3 * 5 * (1 if step < first_order else 3) + 10 * (3 if step < all_losses else 1)
      for step in range(20)
    ]
    for steps in (1, 4, 7, 10, 20):
      total = sum(costs[:steps])
      mean = compare_cost.gradients_per_task(settings, steps)
      self.assertAlmostEqual(mean, total / steps)
      self.assertAlmostEqual(compare_cost.steps_paid(settings, 2 * total), steps)
    half = 2 * (sum(costs[:12]) + costs[12] / 2)
    self.assertAlmostEqual(compare_cost.steps_paid(settings, half), 12.5)

  def test_an_algorithm_without_a_price_is_named(self):
    settings = load(SINES.format(budget="steps = 1")).settings("maml")
    settings.algorithm = "new"
    with self.assertRaisesRegex(ValueError, "--algorithm=new has no price"):
      compare_cost.phases(settings)

  @parameterized.parameters(
    'dataset = "image_folder"',
    'data_dir = "elsewhere"',
    'test_dataset = "omniglot"',
    'test_data_dir = "elsewhere"',
    'omniglot_split = "mixed"',
    "rotate_test = true",
    "image_size = 20",
    "support_label_noise = 0.4",
    'rotation = "-20,20"',
    'shear = "0,1"',
    'scale = "1,2"',
    "way = 6",
    "eval_seed = 1",
  )
  def test_other_test_tasks_are_refused(self, other):
    text = IMAGES.format(budget="steps = 1", other=other)
    with self.assertRaisesRegex(
      ValueError, f"is tested on tasks of {other.split()[0]} "
    ):
      load(text)

  def test_other_training_tasks_and_the_same_distortion_are_not(self):
    load(
      IMAGES.format(
        budget="steps = 1",
        other="train_way = 6\nquery_label_noise = 1"
        "\neval_query_shot = 1\nscale = [1.0, 1]",
      )
    )


class CompareTest(parameterized.TestCase):
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

  @parameterized.product(jobs=(1, 2), number=(signal.SIGINT, signal.SIGTERM))
  def test_a_stop_reaches_every_run_once_and_is_waited_for(self, jobs, number):
    child = self.out / "child.py"
    child.write_text(CHILD)
    runs = self.out / "out" / "runs"
    runner = compare_runner.Runner(
      self.out / "logs", command=lambda _: [sys.executable, "-S", str(child)]
    )

    def ask():
      deadline = time.monotonic() + 20
      while len(list(runs.glob("*/ready"))) < jobs and time.monotonic() < deadline:
        time.sleep(0.01)
      os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    asking = threading.Thread(target=ask)
    asking.start()
    code, _, err = self.compare("steps = 2", runner, jobs=jobs)
    asking.join()
    self.assertEqual(code, 128 + number)
    self.assertIs(signal.getsignal(number), before)
    seen = sorted(runs.glob("*/seen"))
    self.assertLen(seen, jobs)  # All have ended, and no further one was started.
    self.assertLen(list(runs.iterdir()), jobs)
    for path in seen:
      self.assertEqual(path.read_text(), f"[{signal.SIGTERM.real}]")
      self.assertEqual((path.parent / "ready").read_text(), "True")  # Own session.
    stopping, interrupted = err.splitlines()
    self.assertIn("stopping: the runs save what they have", stopping)
    self.assertIn("the same command goes on", interrupted)

  def test_nothing_starts_after_a_stop(self):
    started = self.out / "started"
    runner = compare_runner.Runner(self.out, command=lambda _: ["touch", str(started)])
    runner.stop()
    self.assertEqual(runner("sinusoid", "late", []), 143)
    self.assertFalse(started.exists())

  def test_a_run_that_cannot_start_is_an_error(self):
    runner = compare_runner.Runner(self.out / "logs", command=lambda _: ["/nowhere"])
    code, _, err = self.compare("steps = 2", runner)
    self.assertEqual(code, 2)
    self.assertIn("No such file", err)

  def test_further_methods_and_seeds_train_what_is_new(self):
    def claim(text):
      return compare_records.claim(load(text), self.out)

    few = SINES.format(budget="steps = 2")
    seeds = few.replace("[0, 1]", "[0, 1, 4]")
    method = seeds + '[methods.fomaml]\nalgorithm = "fomaml"\n'
    for text in (few, seeds, method):
      self.assertEqual(claim(text), [])
    kept = compare_records.read_json(self.out / "plan.json")
    self.assertEqual(kept["seeds"]["fomaml"], [0, 1, 4])
    self.assertNotEmpty(claim(few))  # Fewer of either is another comparison.
    other = [f"seeds.{name}" for name in ("fomaml", "maml", "reptile")]
    self.assertEqual(claim(method.replace("[0, 1, 4]", "[4, 0, 1]")), other)

  def test_seeds_of_one_run_stay_as_they_are(self):
    few = IMAGES.format(budget="steps = 2", other="")
    few = "seeds_side_by_side = true\n" + few
    self.assertEqual(compare_records.claim(load(few), self.out), [])
    more = load(few.replace("[0, 1]", "[0, 1, 2]"))
    self.assertNotEmpty(compare_records.claim(more, self.out))

  def test_another_plan_in_the_same_directory_is_refused(self):
    never = self.fail
    code, _, _ = self.compare("steps = 2", lambda *_: 1)
    self.assertEqual(code, 1)
    for budget, more, keys in (
      ("steps = 3", {}, "budget"),
      ("steps = 2", {"set": "eval_tasks=6"}, "methods.maml.eval_tasks, methods.rep"),
    ):
      code, _, err = self.compare(budget, never, **more)
      self.assertEqual(code, 2)
      self.assertIn(f"it differs in {keys}", err)
    code, _, _ = self.compare("steps = 2", lambda *_: 1, set="num_tasks=2")
    self.assertEqual(code, 1)  # The same, said twice.
    quick = (ROOT / "experiments" / "plans" / "quick.toml").read_text()
    for data_dir in ("here", "there"):
      self.assertEqual(
        compare_records.claim(load(quick, data_dir=data_dir), self.out), []
      )
    other_seeds = load(quick.replace("seeds = [0, 1]", "seeds = [0, 2]"))
    differing = compare_records.claim(other_seeds, self.out)
    self.assertIn("seeds.maml", differing)

  def test_minutes_are_turned_into_steps_by_a_speed_measured_once(self):
    calls = {}

    def measuring(experiment, name, arguments):
      calls[name] = arguments
      directory = pathlib.Path(
        arguments[[a[:9] for a in arguments].index("--run_dir")][10:]
      )
      directory.mkdir(parents=True)
      (directory / "result.json").write_text('{"tasks_per_second": 32.0}')
      return 0

    text = IMAGES.format(
      budget="minutes = 2",
      other='algorithm = "maml_plus_plus"\nnum_tasks = 8\nmulti_step_loss_steps = 100\n'
      "num_inner_steps = 2\nfirst_order_steps = 10\nnum_eval_inner_steps = 2",
    ).replace("[budget]", "seeds_side_by_side = true\n[budget]")
    steps = compare_records.num_steps(load(text), self.out, measuring)
    # 32 tasks a second are 16 of either seed.
    self.assertEqual(steps["maml"], 120 * 16 // 32)
    # Support 5, query 5: 20 per task, 40, then 35; 16 tasks a second of the last.
    units = 120 * 16 * 35 / 8
    self.assertEqual(steps["other"], int(100 + (units - 10 * 20 - 90 * 40) / 35))
    for arguments in calls.values():
      self.assertIn("--num_seeds=2", arguments)
    self.assertContainsSubsequence(
      calls["pilot-other"], ["--multi_step_loss_steps=0", "--first_order_steps=0"]
    )
    self.assertNotIn("--multi_step_loss_steps=0", calls["pilot-maml"])
    kept = json.loads((self.out / "steps.json").read_text())["maml"]
    self.assertEqual(kept["tasks_per_second"], 32)
    self.assertEqual(kept["budget"], ["minutes", 2])
    self.assertEqual(kept["flags"]["inner_lr"], 2.0)
    longer = load(text.replace("minutes = 2", "minutes = 4"))
    again = compare_records.num_steps(longer, self.out, self.fail)
    self.assertEqual(again["maml"], 120)
    with self.assertRaisesRegex(ValueError, "a speed of maml with other flags"):
      compare_records.num_steps(load(text, inner_lr=1.0), self.out, self.fail)

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

    def failing(experiment, name, arguments):
      if name == "maml-seed1":
        return 1
      return in_process(experiment, name, arguments)

    code, out, err = self.compare("steps = 2", failing)
    self.assertEqual(code, 1)
    self.assertIn("maml-seed1.txt", err)
    self.assertNotIn("| maml |", out)  # Though its result.json lies there.
    self.assertIn("| reptile | 2 |", out)
    self.assertIn("| method | seeds | mean squared error | ± tasks | ± seeds |\n", out)
    self.assertIn("The baseline maml has no results: no differences.", out)
    rows = (directory / "comparison.csv").read_text().splitlines()
    self.assertEndsWith(rows[1], ",,,")

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
      ({"plan": self.out / "nothing.toml"}, "--plan=/.*nothing.toml: No such file"),
      ({"plan": "~/no/plan.toml"}, f"--plan={pathlib.Path.home()}/no/plan.toml: No s"),
      ({"set": "num_tasks"}, "--set=num_tasks must look like flag=value"),
      ({"set": "num_tasks=0"}, "methods.maml: .*num_tasks=0"),
      ({"set": "compilation_cache_dir=a=b,c"}, "--out=/.*plan.toml: .*exist"),
    ):
      if "=b,c" in str(more):
        more["out"] = self.out / "plan.toml"
      code, _, err = self.compare("steps = 2", in_process, **more)
      self.assertEqual(code, 2)
      self.assertRegex(err, message)
    plan = compare_plan.load(self.out / "plan.toml", {"compilation_cache_dir": "a=b,c"})
    self.assertIn("--compilation_cache_dir=a=b,c", plan.arguments("maml"))

  def test_bad_flags_end_with_2(self):
    for flag in ("--plam=x", "--jobs=0"):
      ended = subprocess.run(
        [sys.executable, "-m", "experiments.compare", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
      )
      self.assertEqual(ended.returncode, 2)
      self.assertRegex(ended.stderr, f"^compare: .*{flag[2:6]}")


if __name__ == "__main__":
  absltest.main()
