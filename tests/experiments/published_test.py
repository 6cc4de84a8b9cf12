"""Published figures beside our runs: what is computed, what is refused, the page."""

import contextlib
import io
import json
import pathlib
import tempfile

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

from experiments import _published_figures, _published_runs, _published_table, published
from jsharp._files import read_table, write_json
from jsharp.evaluation import mean_and_ci95
from jsharp.evaluation.comparison import half_width_over_seeds
from jsharp.evaluation.report import csv_table
from tests.experiments import flags_test

ROOT = flags_test.ROOT
RECORDS = ROOT / "docs" / "results" / "runs"
MAML = "maml_omniglot_5way_1shot.txt"
MAML_SINES = "maml_sinusoid_5shot.txt"
FIGURES = f"""
[benchmarks.omniglot]
title = "Omniglot"
experiment = "omniglot"
measure = "accuracy"

[benchmarks.sinusoid]
title = "Sine waves"
experiment = "sinusoid"
measure = "error"

[sources]
finn = "Finn et al. 2017"
nichol = "Nichol et al. 2018"

[[entries]]
benchmark = "omniglot"
method = "MAML"
source = "finn"
where = "table 1"
evaluation = "transductive"
figures = [
  {{ way = 5, shot = 1, value = 98.70, interval = 0.4, flagfile = "{MAML}" }},
  {{ way = 20, shot = 1, value = 95.8 }},
]

[[entries]]
benchmark = "omniglot"
method = "Reptile"
source = "nichol"
beside = "inductive"
figures = [
  {{ way = 5, shot = 1, value = 95.39, flagfile = "reptile_omniglot_5way_1shot.txt" }},
]

[[entries]]
benchmark = "sinusoid"
method = "MAML"
source = "finn"
figures = [
  {{ shot = 5, steps = 1, value = 0.67, flagfile = "{MAML_SINES}" }},
]
"""


def settings(experiment, *arguments):
  """The settings that a run with these flags records."""
  return flags_test.identity(experiment, *arguments)


def flagfile(name):
  return f"--flagfile={_published_figures.FLAGFILES / name}"


def result(experiment, *arguments, num_steps, **figures):
  """What a finished run writes to result.json."""
  return {
    "experiment": experiment,
    "num_eval_tasks": 600,
    "num_steps": num_steps,
    "settings": settings(experiment, *arguments),
    "protocol": {
      "git_commit": "0123456789abcdef+changes",
      "versions": {"python": "3.11.2", "jax": "0.10.0"},
    },
    **figures,
  }


def accuracy(value, half, name="test_accuracy"):
  return {name: value, f"{name}_ci95": half}


class PublishedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.figures = self.dir / "figures.toml"
    self.figures.write_text(FIGURES)
    self.runs = self.dir / "runs"
    self.out = self.dir / "out.md"

  def write(self, name, content, file="result.json"):
    path = self.runs / name
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / file, content)
    return path

  def write_maml(self, name, *flags_of_run, num_steps=3000, **figures):
    figures = figures or accuracy(0.98, 0.005)
    content = result(
      "omniglot", flagfile(MAML), *flags_of_run, num_steps=num_steps, **figures
    )
    return self.write(name, content)

  def write_unfinished(self, name, *flags_of_run, records, description=True):
    path = self.runs / name
    path.mkdir(parents=True)
    identity = settings("omniglot", flagfile(MAML), *flags_of_run)
    write_json(path / "run.json", {"format": 1, "identity": identity})
    if description:
      run = {"training": {"num_steps": 60000}, "testing": {"eval_tasks": 600}}
      write_json(path / "description.json", {"experiment": "omniglot", "run": run})
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (path / "metrics.jsonl").write_text(lines)
    return path

  def call(self, *arguments, code=0):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      found = published.start(
        [
          f"--published={self.figures}",
          f"--out={self.out}",
          f"--runs={self.runs}",
          *arguments,
        ],
        flags.FlagValues(),
      )
    self.assertEqual(found, code, err.getvalue())
    return err.getvalue()

  def table(self):
    """The text that the command writes for the runs."""
    self.call()
    return self.out.read_text()

  def row(self, method):
    """The cells of our row of a method."""
    (line,) = [
      line
      for line in self.table().splitlines()
      if line.startswith("| 1 |") and f"| {method} |" in line
    ]
    return [cell.strip() for cell in line.strip("|").split("|")]

  def load(self):
    """The settings by flagfile, and our runs."""
    known = _published_figures.load(self.figures)
    return known.settings, _published_runs.read_all([self.runs])

  def test_a_figure_beside_ours(self):
    self.write_maml(
      "a",
      **accuracy(0.9803, 0.0028),
      **accuracy(0.9683, 0.0035, "test_accuracy_inductive"),
    )
    self.assertEqual(
      "|".join(self.row("MAML")),
      "1|Omniglot, 5-way 1-shot|MAML|98.70 ± 0.4|**98.03 ± 0.28**|96.83 ± 0.35|1|5 %",
    )
    text = " ".join(self.table().split())
    self.assertIn("Finn et al. 2017, table 1 (transductive)", text)
    self.assertIn("commit 0123456 with changes, Python 3.11.2, jax 0.10.0", text)
    self.assertIn("Differs: `num_steps` 3,000 (60,000).", text)

  def test_the_budget_is_the_tasks_seen_as_a_share(self):
    self.write_maml("a", "--num_tasks=16", num_steps=6000)
    known, (run,) = self.load()
    self.assertEqual(run.tasks_seen, 96_000)
    self.assertAlmostEqual(_published_table.share(run, known[MAML]), 0.05)
    self.assertEqual(self.row("MAML")[-1], "5 %")

  def test_differences_are_flags_with_both_values(self):
    self.write_maml(
      "a",
      "--inner_lr=1.0",
      "--norotate_test",
      "--query_shot=5",
      "--outer_schedule=cosine",
      "--outer_schedule_steps=9",
      "--seed=3",
      "--data_dir=elsewhere",
      "--task_chunk=2",
      num_steps=60_000,
    )
    known, (run,) = self.load()
    self.assertCountEqual(
      _published_table.differences(run, known[MAML]),
      [
        "`inner_lr` 1 (2)",
        "`rotate_test` false (true)",
        "`query_shot` 5 (1)",
        "`eval_query_shot` 5 (1)",
        "`outer_schedule` cosine (constant)",
        "`outer_schedule_steps` 9 (none)",
      ],
    )

  def test_the_same_setting_differs_in_nothing(self):
    self.write_maml("a", num_steps=60_000)
    known, (run,) = self.load()
    self.assertEqual(_published_table.differences(run, known[MAML]), [])
    self.assertEqual(_published_table.share(run, known[MAML]), 1)

  def test_a_flag_that_was_not_recorded_is_listed_if_the_flagfile_sets_it(self):
    path = self.write_maml("a", num_steps=60_000)
    content = read_table(path / "result.json")
    for name in ("tasks.val_query_shot", "network.norm"):  # The file sets the first.
      content["settings"].pop(name, None)
    write_json(path / "result.json", content)
    known, (run,) = self.load()
    self.assertEqual(
      _published_table.differences(run, known[MAML]), ["`val_query_shot` not set (15)"]
    )

  def test_a_run_in_the_format_of_earlier_versions(self):
    (run,) = _published_runs.read_all([RECORDS / "maml_miniimagenet_5way_1shot"])
    setting = _published_figures.load(published.FIGURES).settings[
      "maml_miniimagenet_5way_1shot.txt"
    ]
    self.assertEqual((run.seed, run.num_steps), (0, 60_000))
    self.assertEqual(
      _published_table.differences(run, setting),
      [
        "`eval_every` 1,000 (500)",
        "`val_tasks` 300 (600)",
        "`eval_query_shot` 15 (1)",
        "`val_query_shot` not set (15)",
      ],
    )

  def test_an_unfinished_run_says_how_far_it_is(self):
    validation = {"step": 1000, "val_accuracy": 0.95, "val_accuracy_ci95": 0.004}
    path = self.write_unfinished(
      "a",
      records=[
        {**validation, "step": 500, "val_accuracy": 0.96},
        {"step": 900, "loss": 1.0},
        validation,
        {"step": 1200, "loss": 0.9},
      ],
    )
    ours, *_, share = self.row("MAML")[4:]
    self.assertEqual(
      ours,
      "unfinished: meta-step 1,200 of 60,000; validation 95.00 ± 0.40 % at 1,000",
    )
    self.assertEqual(share, "2 %")
    with (path / "metrics.jsonl").open("a") as file:
      file.write('{"step": 5000, "los')  # It is being written.
    self.assertEqual(self.row("MAML")[4], ours)

  def test_an_unfinished_run_without_interval_length_or_validation(self):
    self.write_unfinished(
      "a", records=[{"step": 9, "val_accuracy": 0.5}], description=False
    )
    self.assertEqual(
      self.row("MAML")[4],
      "unfinished: meta-step 9; validation 50.00 % at 9, interval not recorded",
    )
    (self.runs / "a" / "flags.txt").write_text("--way=5\n--num_steps=700\n")
    (self.runs / "a" / "metrics.jsonl").unlink()
    self.assertEqual(
      self.row("MAML")[4], "unfinished: meta-step 0 of 700; not yet validated"
    )

  def test_several_seeds_have_both_intervals(self):
    by_seed = np.array([[0.8, 1.0, 0.9], [0.6, 1.0, 0.5]])
    for seed, values in enumerate(by_seed):
      mean, half = mean_and_ci95(values)
      path = self.write_maml(f"seed{seed}", f"--seed={seed}", **accuracy(mean, half))
      (path / "test_tasks.csv").write_text(csv_table({"accuracy": values}))
    mean, tasks = mean_and_ci95(by_seed.mean(axis=0))
    seeds = half_width_over_seeds(by_seed.mean(axis=1))
    shown = f"{100 * mean:.2f} ± {100 * tasks:.2f} (tasks) ± {100 * seeds:.2f} (seeds)"
    self.assertEqual(self.row("MAML")[4], f"**{shown}**")
    self.assertEqual(self.row("MAML")[-2], "2")
    for seed in range(2):
      (self.runs / f"seed{seed}" / "test_tasks.csv").unlink()
    shown = f"{100 * mean:.2f} ± {100 * seeds:.2f} (seeds)"
    self.assertEqual(self.row("MAML")[4], f"**{shown}**")

  def test_runs_with_other_settings_have_rows_of_their_own(self):
    self.write_maml("a")
    self.write_maml("b", "--seed=1", "--inner_lr=1.0")
    self.write_maml("c", "--seed=1", num_steps=4000)
    _, runs = self.load()
    self.assertLen(_published_runs.grouped(runs), 3)

  def test_seeds_of_one_run(self):
    path = self.write_maml(
      "a", "--num_seeds=2", **accuracy(0.7, 0.1), test_accuracy_by_seed=[0.6, 0.8]
    )
    values = np.array([[0.5, 0.7], [0.7, 0.9]])
    (path / "test_tasks.csv").write_text(csv_table({"accuracy": values}))
    _, runs = self.load()
    value = _published_runs.measured(runs, "test_accuracy", "accuracy")
    self.assertAlmostEqual(value.over_seeds, half_width_over_seeds([0.6, 0.8]))
    self.assertEqual(self.row("MAML")[-2], "2")

  def test_the_figure_to_compare_with_is_bold(self):
    content = result(
      "omniglot",
      flagfile("reptile_omniglot_5way_1shot.txt"),
      num_steps=100_000,
      **accuracy(0.97, 0.01),
      **accuracy(0.95, 0.02, "test_accuracy_inductive"),
      **accuracy(0.98, 0.03, "test_ensemble_accuracy"),
    )
    self.write("a", content)
    self.assertEqual(
      self.row("Reptile")[4:7], ["97.00 ± 1.00", "**95.00 ± 2.00**", "98.00 ± 3.00"]
    )

  def test_errors_after_inner_steps(self):
    content = result(
      "sinusoid",
      flagfile(MAML_SINES),
      num_steps=70_000,
      test_mse_by_step=[3.1, 0.5909, None],
      test_mse_by_step_ci95=[0.3, 0.067, None],
    )
    self.write("a", content)
    cells = self.row("MAML")
    self.assertEqual(cells[1], "Sine waves, 5-shot, 1 step")
    self.assertEqual((cells[4], cells[-1]), ("**0.591 ± 0.067**", "100 %"))

  def test_a_run_without_a_published_figure_is_named_and_listed(self):
    self.write_maml("a")
    self.write_maml("b", "--way=7", **accuracy(0.9, 0.01))
    self.write_maml("c", "--dataset=characters")
    self.write_maml("d", "--sharpness=up")
    err = self.call()
    self.assertIn(
      "b belongs to no published figure: omniglot, maml, 7-way, 1-shot", err
    )
    self.assertIn("characters, maml, 5-way, 1-shot", err)
    self.assertIn("omniglot, maml, with sharpness up, 5-way, 1-shot", err)
    text = self.out.read_text()
    alone = text.partition("### Runs without a published figure")[2]
    self.assertIn("| `b` | omniglot, maml, 7-way, 1-shot | 90.00 ± 1.00 |", alone)
    self.assertIn("| `c` |", alone)
    self.assertNotIn("| `a` |", alone)

  def test_every_published_figure_is_listed(self):
    self.write_maml("a")
    figures = self.table().partition("begin figures")[2]
    self.assertIn("| MAML | 98.70 ± 0.4 † | 95.8 | 1 | transductive |", figures)
    self.assertIn("| Reptile | 95.39 † | | | | Nichol et al. 2018 |", figures)

  def test_a_page_keeps_what_is_outside_the_markers(self):
    self.write_maml("a")
    self.out.write_text("")
    self.call(code=2)
    marked = [published.marked(part, "stale") for part in published.PARTS]
    self.out.write_text(f"before\n{marked[0]}between\n{marked[1]}after\n")
    text = self.table()
    self.assertStartsWith(text, "before\n")
    self.assertEndsWith(text, "after\n")
    self.assertIn("\nbetween\n", text)
    self.assertNotIn("stale", text)
    self.assertEqual(self.table(), text)

  @parameterized.named_parameters(
    ("missing", ""),
    ("swapped", f"{published.END}\n{published.BEGIN}\n"),
    ("begun_twice", f"{published.BEGIN}\n{published.BEGIN}\n{published.END}\n"),
    ("ended_twice", f"{published.BEGIN}\n{published.END}\n{published.END}\n"),
  )
  def test_a_page_without_its_markers_is_refused(self, page):
    self.write_maml("a")
    page = page.format(*["runs"] * page.count("{}"))
    self.out.write_text(page + published.marked("figures", ""))
    err = self.call(code=2)
    self.assertIn("does not have these two lines once each", err)
    self.assertIn(published.BEGIN.format("runs"), err)
    self.assertEqual(self.out.read_text(), page + published.marked("figures", ""))

  @parameterized.named_parameters(
    ("no_toml", "[[entries]]", "[[entries", "is not a TOML file"),
    (
      "key",
      "measure =",
      "mesure =",
      "benchmarks.omniglot.mesure is unknown; use title",
    ),
    ("measure", '"accuracy"', '"loss"', "measure is 'loss'; choose one of accuracy"),
    (
      "experiment",
      '= "omniglot"\nmea',
      '= "omni"\nmea',
      "there is no experiment 'omni'",
    ),
    ("source", '"finn"', '"fin"', r"entries\[0\] \(MAML, omniglot\).source is 'fin'"),
    (
      "benchmark",
      '"omniglot"\nmethod',
      '"mini"\nmethod',
      "benchmark is 'mini'; choose",
    ),
    ("value", "98.70", '"98.70"', r"figures\[0\].value is '98.70'; write a number"),
    ("percent", "98.70", "9870", "write an accuracy in percent"),
    ("nan", "98.70", "nan", "write a number"),
    ("interval", "interval = 0.4", "interval = -1", r"interval is -1; write a number"),
    ("way", "way = 5, ", "", r"figures\[0\].way is missing; write an integer"),
    ("shot", "shot = 1,", "shot = 1.0,", "shot is Decimal.*; write an integer"),
    ("steps", "steps = 1, ", "", "steps is missing; write an integer"),
    ("flagfile", MAML, "maml.txt", "flagfile is 'maml.txt'; write the name of a file"),
    ("foreign", MAML_SINES, MAML, "is not one of experiments.sinusoid"),
    ("beside", '"inductive"', '"best"', "beside is 'best'; choose one of transductive"),
    ("twice", "{ way = 20,", "{ way = 5,", "has already given; drop one"),
  )
  def test_bad_figures_are_named(self, old, new, message):
    self.write_maml("a")
    self.assertIn(old, FIGURES)
    self.figures.write_text(FIGURES.replace(old, new, 1))
    err = self.call(code=2)
    self.assertIn(f"published: {self.figures}", err)
    self.assertRegex(err, message)
    self.assertFalse(self.out.exists())

  @parameterized.named_parameters(
    ("settings", "settings", 3, "settings must be a table"),
    ("experiment", "experiment", "omni", "experiment: there is no experiment 'omni'"),
    ("num_steps", "num_steps", "many", "num_steps is 'many'; it must be an integer"),
    ("tested", "num_eval_tasks", None, "num_eval_tasks is None; it must be an integer"),
    ("figure", "test_accuracy", "high", "test_accuracy_ci95 must be numbers"),
    ("interval", "test_accuracy_ci95", None, "test_accuracy_ci95 must be numbers"),
    ("errors", "test_mse_by_step", 3, "test_mse_by_step_ci95 must be numbers"),
    ("protocol", "protocol", [], "protocol and its versions must be tables"),
  )
  def test_bad_results_are_named(self, key, value, message):
    path = self.write_maml("a")
    content = read_table(path / "result.json") | {key: value}
    write_json(path / "result.json", content)
    err = self.call(code=2)
    self.assertIn(str(path / "result.json"), err)
    self.assertIn(message, err)

  @parameterized.named_parameters(
    ("result.json", "result.json", "{}", "experiment is missing"),
    ("no_json", "result.json", "[", "is damaged"),
    ("record.json", "record.json", "{}", "transcribed is None; write where"),
    ("run.json", "run.json", "{}", "identity.experiment is missing; name directories"),
  )
  def test_bad_files_are_named(self, name, content, message):
    path = self.runs / "a"
    path.mkdir(parents=True)
    (path / name).write_text(content)
    err = self.call(code=2)
    self.assertIn(f"{path / name}", err)
    self.assertIn(message, err)

  def test_damaged_records_of_an_unfinished_run_are_named(self):
    path = self.write_unfinished("a", records=[{"step": 1}, {"loss": 3.0}])
    self.assertIn(f"line 2 of {path / 'metrics.jsonl'} is damaged", self.call(code=2))

  def test_directories_without_runs_are_refused(self):
    self.assertIn("is not a directory", self.call(code=2))
    (self.runs / "learner").mkdir(parents=True)
    self.assertIn("contains no run", self.call(code=2))

  def test_a_damaged_table_of_tasks_is_refused(self):
    path = self.write_maml("a", **accuracy(0.9, 0.1), test_tasks_sha256="0" * 64)
    (path / "test_tasks.csv").write_text(csv_table({"accuracy": np.array([0.8, 1.0])}))
    self.assertIn("test_tasks.csv is damaged", self.call(code=2))


class RecordsTest(parameterized.TestCase):
  def test_the_page_is_what_the_command_makes(self):
    """Otherwise run: python -m experiments.published --runs=... --out=..."""
    page = ROOT / "docs" / "results.md"
    found = page.read_text()
    made = found
    for part, text in published.render(published.FIGURES, [str(RECORDS)])[0].items():
      made = published.replaced(made, part, text, page)
    self.assertEqual(made, found)

  def test_flagfiles_say_the_figures_that_they_reproduce(self):
    by_file = {}
    for entry in _published_figures.load(published.FIGURES).entries:
      for figure in entry.figures:
        if figure.flagfile is not None:
          by_file.setdefault(figure.flagfile, []).append(str(figure.value))
    self.assertGreater(len(by_file), 40)
    for name, values in by_file.items():
      text = (_published_figures.FLAGFILES / name).read_text()
      with self.subTest(name):
        self.assertTrue(any(value in text for value in values), values)

  def test_transcribed_records_have_their_command_and_commit(self):
    paths = sorted(RECORDS.glob("*/record.json"))
    self.assertNotEmpty(paths)
    for path in paths:
      record = read_table(path)
      with self.subTest(path.parent.name):
        self.assertRegex(record["protocol"]["git_commit"], "^[0-9a-f]{40}$")
        command = record["protocol"]["command"]
        self.assertStartsWith(command, f"python -m experiments.{record['experiment']} ")


if __name__ == "__main__":
  absltest.main()
