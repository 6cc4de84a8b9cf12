"""Comparisons: plans and their refusals, budgets, a grid that resumes."""

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

from experiments import _compare_plan, _compare_runs, _program, compare, sinusoid
from jsharp._files import read_table
from jsharp.evaluation import read_column
from jsharp.training import RunDirectory
from jsharp.training.programs import Runner
from tests import toy_runs

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
dataset = "{dataset}"
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


def images(budget, other, dataset="characters"):
  return IMAGES.format(budget=budget, other=other, dataset=dataset)


def load(text, **overrides):
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "plan.toml"
    path.write_text(text)
    return _compare_plan.load(path, overrides)


def in_process(program, name, arguments):
  """Runs a run here, for a compiler that is already warm."""
  assert program == "experiments.sinusoid"
  words = ["--compilation_cache_dir=", *arguments]
  with contextlib.redirect_stdout(io.StringIO()), toy_runs.suites_cache():
    return _program.start(sinusoid.EXPERIMENT, words, flags.FlagValues())


class PlanTest(parameterized.TestCase):
  @parameterized.named_parameters((path.stem, path) for path in PLANS)
  def test_shipped_plans_are_sound(self, path):
    self.assertIn("python -m experiments.compare --plan", path.read_text())
    if 'experiment = "navigation"' in path.read_text():  # It reads no files.
      self.assertGreater(len(_compare_plan.load(path, {}).methods), 2)
      return
    plan = _compare_plan.load(path, {"data_dir": "somewhere"})
    for method in plan.methods.values():
      files = getattr(method.run, "placement", None) or method.run.files
      self.assertEqual(files.data_dir, "somewhere")
      self.assertEqual(method.flags["data_dir"], "somewhere")

  @parameterized.parameters(
    ("steps = 0", "budget.steps must be a positive number, got 0"),
    ("steps = 10\nminutes = 1", "exactly one of steps, gradients, minutes"),
    ("epochs = 10", "exactly one of"),
    ("gradients = 3", "methods.maml: the budget of 3 gradients does not pay for one"),
  )
  def test_bad_budgets_are_named(self, budget, message):
    with self.assertRaisesRegex(ValueError, message):
      load(SINES.format(budget=budget))

  @parameterized.parameters(
    ('experiment = "sinusoid"', 'experiment = "sin"', "experiment is 'sin'; choose"),
    ("seeds = [0, 1]", "seeds = [1, 1]", r"seeds=\(1, 1\): must be different numbers"),
    ("seeds = [0, 1]", "seed = 1", r"unknown keys \['seed'\]"),
    ("seeds = [0, 1]", 'baseline = "anil"', "baseline is 'anil'; choose one of maml"),
    ('outer_optimizer = "sgd"', "num_steps = 3", "sets .'num_steps'., which"),
    ('outer_optimizer = "sgd"', "rho = 3", "methods.reptile: Unknown.*rho"),
    ('outer_optimizer = "sgd"', "inner_lr = -1", "methods.reptile: .*inner_lr=-1"),
    ('outer_optimizer = "sgd"', "num_cg_steps = 3", "num_cg_steps has no effect"),
    ('outer_optimizer = "sgd"', "eval_tasks = 9", "methods.reptile is tested on"),
    ("validations = 1", "seeds_side_by_side = true", "supports only images"),
    ("validations = 1", "validations = 0", "validations=0: must .* at least 1"),
    ("validations = 1", "validations = ", "is not a TOML file"),
    ("validations = 1", "validations = true", "validations=True: must be an int"),
    ("validations = 1", "seeds_side_by_side = 1", "side=1: must be true or false"),
    ("seeds = [0, 1]", "seeds = 3", "seeds=3: must be a list of int"),
    ("seeds = [0, 1]", 'seeds = "012"', "seeds='012': must be a list of int"),
    ("seeds = [0, 1]", "seeds = [0.5]", "seeds=0.5: must be an integer"),
    ("seeds = [0, 1]", "seeds = [-1]", r"seeds=\(-1,\): must be .* from 0 to 21474"),
    (
      "seeds = [0, 1]",
      f"seeds = {[*range(1001)]}",
      r"seeds=.*\.\.\.: must .* at most 100",
    ),
    ("seeds = [0, 1]", "seeds = " + "[" * 9999, "is not a TOML file"),
    ("seeds = [0, 1]", "seeds = []", r"seeds=\(\): must be different numbers"),
    ("seeds = [0, 1]", "seeds = [true]", "seeds=True: must be an integer, got a"),
    ('outer_optimizer = "sgd"', "seeds = 1", "methods.reptile.seeds=1: must be a list"),
    ('outer_optimizer = "sgd"', "seeds = [2]", r"baseline has no runs of \[2\]; add"),
    ("[budget]\nsteps = 4", "budget = 3", "budget must .*, got 3; write for example"),
    ('"sinusoid"', "[]", r"experiment=\[\]: must be a string"),
    ('"sinusoid"', '"compare"', "experiment is 'compare'; choose .*EXPERIMENT"),
    ('"sinusoid"', '"supervised"', "exactly one of epochs, gradient_epochs, got {'st"),
    ("seeds = [0, 1]", "baseline = []", r"baseline=\[\]: must be a string"),
    ("[common]", "[common]\nnum_cg_steps = 3", "common: --num_cg_steps has no effect"),
    ("[common]", "[common]\ninner_rho = 3", "common: --inner_rho=3.0 has no effect"),
    ("[common]", "[common]\nseed = 3", "common sets .'seed'., which the comparison"),
    (
      '[methods.reptile]\nalgorithm = "reptile"\nouter_optimizer = "sgd"',
      '[methods]\nreptile = "reptile"',
      "methods.reptile must be a table, got 'rep",
    ),
    ('outer_optimizer = "sgd"', "budget_factor = 0", "factor must be .*, got 0"),
    ('outer_optimizer = "sgd"', "budget_factor = true", "at most 1000, got True"),
    ('"reptile"', '"reptile"\nrelabel = "reptile"', "which must come before it"),
    ("[common]", "[common.num_tasks]", "common.num_tasks must be a number.*--num_tas"),
    ("[budget]", "common = 3\n[budget]", "common must be a table, got 3; write"),
    ('outer_optimizer = "sgd"', "max_phase = 1", "tasks of max_phase = 1.0, but"),
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

  def test_a_method_may_spend_more_and_take_its_labels_from_another(self):
    text = (
      'experiment = "supervised"\nseeds = [0, 4]\n[budget]\nepochs = 3\n'
      '[methods.sgd]\nalgorithm = "sgd"\nbudget_factor = 2\n'
      '[methods.taught]\nrelabel = "sgd"\n[methods.sam]\n'
      '[methods.again]\nrelabel = "taught"\nseeds = [4]\n'
    )
    plan = load(text)
    self.assertEqual([plan.amount(name) for name in plan.methods], [6, 3, 3, 3])
    self.assertEqual(plan.stages(), [["sgd", "sam"], ["taught"], ["again"]])
    record = plan.record()
    self.assertEqual(record["methods.sgd.budget_factor"], 2.0)
    self.assertEqual(record["methods.again.relabel"], "taught")
    self.assertNotIn("methods.sam.budget_factor", record)
    with self.assertRaisesRegex(ValueError, r"relabel: taught .* seeds \[4\]; add"):
      load(text.replace('relabel = "sgd"', 'relabel = "sgd"\nseeds = [0]'))
    directory = load(text.replace('relabel = "sgd"', 'relabel = "elsewhere"'))
    self.assertIsNone(directory.methods["taught"].teacher)

  @parameterized.parameters(
    ("epochs = 7", "", 7),
    ("gradient_epochs = 20", 'algorithm = "sgd"', 20),
    ("gradient_epochs = 21", "", 10),
    # Two epochs of one gradient, then three gradients in every two steps.
    ("gradient_epochs = 20", "sam_start = 2.0\nsam_every = 2", 14),
    ("gradient_epochs = 20", "second_order = true", 5),
    ("gradient_epochs = 1", "", "does not pay for one epoch"),
    ("epochs = 0.5", "", "does not pay for one epoch"),
  )
  def test_epochs_of_ordinary_training_by_their_gradients(self, budget, flag, expected):
    algorithm = "" if "algorithm" in flag else 'algorithm = "sam"'
    text = (
      f'experiment = "supervised"\n[budget]\n{budget}\n'
      f"[methods.one]\n{algorithm}\n{flag}\n"
    )
    if isinstance(expected, str):
      with self.assertRaisesRegex(ValueError, f"methods.one: .*{expected}"):
        load(text)
      return
    plan = load(text)
    self.assertEqual(plan.amount("one"), expected)
    self.assertEqual(
      plan.kind.flags(expected, 4, (3,)),
      {"num_epochs": expected, "eval_every": max(1, expected // 4)},
    )

  @parameterized.parameters(
    # support 5, query 5, 3 inner steps
    ({"algorithm": "maml"}, 3 * 3 * 5 + 5),
    ({"algorithm": "maml", "sharpness": "both"}, 2 * (3 * 6 * 5 + 5)),
    (
      {"algorithm": "sharp_maml_low", "differentiate_perturbation": False},
      3 * 4 * 5 + 5,
    ),
    ({"algorithm": "reptile", "inner_batch_size": 2}, 3 * 2),
    ({"algorithm": "imaml", "num_cg_steps": 4}, (3 + 8 + 2) * 5 + 5),
    ({"algorithm": "maml_plus_plus"}, 3 * 3 * 5 + 3 * 5),
  )
  def test_gradients_pay_for_steps_at_the_cost_by_hand(self, own, expected):
    lines = [
      f"{k} = {str(v).lower() if v is False else repr(v)}" for k, v in own.items()
    ]
    plan = load(
      SINES.format(budget="gradients = 10000").replace(
        'algorithm = "maml"', "\n".join([*lines, "num_inner_steps = 3"])
      )
    )
    self.assertEqual(plan.amount("maml"), 10000 // (2 * expected))

  def test_flags_of_common_that_a_method_does_not_read_are_left_out(self):
    text = images("steps = 1", 'algorithm = "protonet"').replace(
      "[methods.maml]", "inner_lr = 0.5\ninner_rho = 0.1\n[methods.maml]"
    )
    sharp = '[methods.sharp]\nalgorithm = "sharp_maml_low"\n'
    plan = load(text + sharp, num_inner_steps="3")
    expected = {
      "maml": {"inner_lr", "num_inner_steps"},
      "other": set(),
      "sharp": {"inner_lr", "inner_rho", "num_inner_steps"},
    }
    for name, read in expected.items():
      method = plan.methods[name]
      self.assertEqual(set(method.flags), read | {"algorithm", "dataset"})
      algorithm = method.run.algorithm
      words = [f"--{flag}={value}" for flag, value in method.flags.items()]
      # Typed by hand they are all read, and describe the same run.
      given = plan.experiment.program.parse(words, flags.FlagValues())
      run, left_out = _program.describe(plan.experiment, given)
      self.assertEqual((run.algorithm, left_out), (algorithm, []))
    self.assertEqual(plan.methods["sharp"].run.sharpness.inner_rho, 0.1)
    self.assertEqual(plan.methods["maml"].run.algorithm.num_inner_steps, 3)
    with self.assertRaisesRegex(ValueError, "methods.other: --inner_lr has no effect"):
      load(images("steps = 1", 'algorithm = "protonet"\ninner_lr = 0.5'))
    only = "[methods.protonet]\nnum_heads = 4\n"  # Its default.
    text = images("steps = 1", "").partition("[methods.maml]")[0] + only
    plan = load(text.replace("4\n", '4\nalgorithm = "protonet"\n'))
    self.assertNotIn("num_heads", plan.methods["protonet"].flags)
    with self.assertRaisesRegex(ValueError, "common: --num_heads has no effect"):
      load(images("steps = 1", 'algorithm = "protonet"'), num_heads="2")

  def test_a_plan_is_read_without_a_device(self):
    # The runs need the memory of the accelerator.
    code = (
      "import pathlib; from experiments import _compare_plan; import jax\n"
      f"_compare_plan.load(pathlib.Path({str(PLANS[-1])!r}), {{}})\n"
      "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    ended = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    self.assertEqual(ended.stdout, "False\n")

  @parameterized.parameters(
    'dataset = "image_folder"',
    'data_dir = "elsewhere"',
    'test_dataset = "omniglot"',
    'test_data_dir = "elsewhere"',
    "image_size = 20",
    "support_label_noise = 0.4",
    'rotation = "-20,20"',
    'shear = "0,1"',
    'scale = "1,2"',
    "way = 6",
    "eval_seed = 1",
  )
  def test_other_test_tasks_are_refused(self, other):
    text = images("steps = 1", other)
    with self.assertRaisesRegex(
      ValueError, f"is tested on tasks of {other.split()[0]} "
    ):
      load(text)

  @parameterized.parameters('omniglot_split = "mixed"', "rotate_test = true")
  def test_other_characters_of_omniglot_are_refused(self, other):
    flag = other.split()[0]
    with self.assertRaisesRegex(ValueError, f"is tested on tasks of {flag} "):
      load(images("steps = 1", other, dataset="omniglot"))
    with self.assertRaisesRegex(
      ValueError, f"methods.other: .'{flag}'. have no effect"
    ):
      load(images("steps = 1", other))

  def test_other_training_tasks_and_the_same_distortion_are_not(self):
    load(
      images(
        "steps = 1",
        "train_way = 6\nquery_label_noise = 1"
        "\neval_query_shot = 1\nscale = [1.0, 1]\neval_way = 9",
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
    runner = Runner(
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
    self.assertIn("stopping: the runs are saving", stopping)
    self.assertIn("the same command resumes it", interrupted)

  def test_a_run_that_cannot_start_is_an_error(self):
    runner = Runner(self.out / "logs", command=lambda _: ["/nowhere"])
    code, _, err = self.compare("steps = 2", runner)
    self.assertEqual(code, 2)
    self.assertIn("No such file", err)

  @parameterized.parameters(1, 2)
  def test_a_teacher_ends_before_its_pupil_of_the_same_seed_begins(self, jobs):
    plan = self.out / "plan.toml"
    plan.write_text(
      'experiment = "supervised"\nseeds = [0, 1]\n[budget]\nepochs = 1\n'
      '[methods.sgd]\nalgorithm = "sgd"\n[methods.taught]\nrelabel = "sgd"\n'
    )
    values = flags.FlagValues()
    compare.define_flags(values)
    values(["compare", f"--plan={plan}", f"--out={self.out / 'out'}", f"--jobs={jobs}"])
    ended, relabels = [], {}

    def start(program, name, arguments):
      del program
      if name.startswith("taught"):
        self.assertContainsSubset({"sgd-seed0", "sgd-seed1"}, ended)
        (relabels[name],) = (a[10:] for a in arguments if a.startswith("--relabel="))
      ended.append(name)
      return 1  # No tables of runs that never were.

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
      self.assertEqual(compare.run(values, start), 1)
    runs = self.out / "out" / "runs"
    expected = {f"taught-seed{seed}": str(runs / f"sgd-seed{seed}") for seed in (0, 1)}
    self.assertEqual(relabels, expected)
    self.assertIn("4/4: ", out.getvalue())

  def test_further_methods_and_seeds_train_what_is_new(self):
    def claim(text):
      return _compare_runs.claim(load(text), self.out)

    few = SINES.format(budget="steps = 2")
    seeds = few.replace("[0, 1]", "[0, 1, 4]")
    method = seeds + '[methods.fomaml]\nalgorithm = "fomaml"\n'
    for text in (few, seeds, method):
      self.assertEqual(claim(text), [])
    kept = read_table(self.out / "plan.json")
    self.assertEqual(kept["seeds.fomaml"], [0, 1, 4])
    self.assertEqual(kept["methods.fomaml.algorithm"], "fomaml")
    self.assertNotEmpty(claim(few))  # Fewer of either is another comparison.
    other = [f"seeds.{name}" for name in ("fomaml", "maml", "reptile")]
    self.assertEqual(claim(method.replace("[0, 1, 4]", "[4, 0, 1]")), other)

  def test_seeds_of_one_run_stay_as_they_are(self):
    few = images("steps = 2", "")
    few = "seeds_side_by_side = true\n" + few
    self.assertEqual(_compare_runs.claim(load(few), self.out), [])
    more = load(few.replace("[0, 1]", "[0, 1, 2]"))
    self.assertNotEmpty(_compare_runs.claim(more, self.out))

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
        _compare_runs.claim(load(quick, data_dir=data_dir), self.out), []
      )
    other_seeds = load(quick.replace("seeds = [0, 1]", "seeds = [0, 2]"))
    differing = _compare_runs.claim(other_seeds, self.out)
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

    text = images(
      "minutes = 2",
      'algorithm = "maml_plus_plus"\nnum_tasks = 8\nmulti_step_loss_steps = 100\n'
      "num_inner_steps = 2\nfirst_order_steps = 10\nnum_eval_inner_steps = 2",
    ).replace("[budget]", "seeds_side_by_side = true\n[budget]")
    steps = _compare_runs.amounts(load(text), self.out, measuring)
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
    again = _compare_runs.amounts(longer, self.out, self.fail)
    self.assertEqual(again["maml"], 120)
    with self.assertRaisesRegex(ValueError, "a speed of maml with other flags"):
      _compare_runs.amounts(load(text, inner_lr=1.0), self.out, self.fail)

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
        read_column(directory / f"runs/maml-seed{seed}" / "test_tasks.csv", "loss_2")
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
    self.assertIn("The baseline maml has no results, so no differences.", out)
    rows = (directory / "comparison.csv").read_text().splitlines()
    self.assertEndsWith(rows[1], ",,,")

  def test_seeds_side_by_side_are_one_run(self):
    quick = (ROOT / "experiments" / "plans" / "quick.toml").read_text()
    plan = load(quick.replace("validations", "seeds_side_by_side = true\nvalidations"))
    self.assertEqual(plan.runs("maml"), [("maml-seeds0to1", (0, 1))])
    self.assertEqual(plan.methods["maml"].run.training.num_seeds, 2)

  def test_a_run_that_was_left_alive_is_known(self):
    path = self.out / "run"
    self.assertFalse(compare._is_held(str(path)))
    err = io.StringIO()
    with RunDirectory.open(path, identity={}), contextlib.redirect_stderr(err):
      for _ in range(2):
        self.assertTrue(compare._is_held(str(path)))
    self.assertFalse(compare._is_held(str(path)))
    line = f"{path} is run by process {os.getpid()}; waiting for its end\n"
    self.assertEqual(err.getvalue(), f"compare: {line}")

  def test_bad_command_lines_are_named(self):
    for more, message in (
      ({"plan": self.out / "nothing.toml"}, "--plan=/.*nothing.toml: No such file"),
      ({"plan": "/dev/zero"}, "/dev/zero is not a regular file"),
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
    overrides = {"compilation_cache_dir": "a=b,c"}
    plan = _compare_plan.load(self.out / "plan.toml", overrides)
    self.assertContainsSubset(overrides, plan.methods["maml"].flags)
    self.assertEqual(plan.methods["maml"].run.run.compilation_cache_dir, "a=b,c")

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
