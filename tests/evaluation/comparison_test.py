"""Comparisons: intervals against their definitions, coverage, pairing."""

import csv
import math
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest
from scipy import stats

from jsharp.evaluation.comparison import (
  compare,
  comparison_csv,
  interval,
  markdown,
  plot_comparison,
)


class ComparisonTest(absltest.TestCase):
  def test_interval_is_its_definition(self):
    values = np.random.default_rng(0).uniform(size=(4, 50))
    mean, over_tasks, over_seeds = interval(values)
    self.assertAlmostEqual(mean, values.mean())
    by_task = values.mean(axis=0)
    self.assertAlmostEqual(over_tasks, 1.96 * stats.sem(by_task))
    low, high = stats.t.interval(
      0.95, 3, loc=mean, scale=stats.sem(values.mean(axis=1))
    )
    self.assertAlmostEqual(over_seeds, (high - low) / 2)
    self.assertTrue(math.isnan(interval(values[:1]).over_seeds))

  def test_three_seeds_cover_the_truth_as_often_as_promised(self):
    values = np.random.default_rng(1).normal(size=(4000, 3, 2))
    covered = [abs(one.mean) <= one.over_seeds for one in map(interval, values)]
    self.assertAlmostEqual(np.mean(covered), 0.95, delta=0.015)

  def test_pairing_takes_out_what_the_methods_share(self):
    generator = np.random.default_rng(2)
    hardness = generator.uniform(size=(1, 200)) + generator.normal(size=(3, 1))
    better = hardness + 0.01 + 0.001 * generator.normal(size=(3, 200))
    rows = compare({"a": hardness, "b": better}, baseline="a")
    self.assertIsNone(rows[0].difference)
    difference = rows[1].difference
    self.assertAlmostEqual(difference.mean, 0.01, delta=0.001)
    self.assertLess(difference.over_tasks, 0.001)
    self.assertLess(difference.over_seeds, 0.001)
    self.assertGreater(rows[1].value.over_tasks, 0.03)
    self.assertIn("**+", markdown(rows))

  def test_fewer_seeds_are_paired_with_the_same_ones(self):
    baseline = np.array([[0.0, 1.0], [5.0, 6.0], [9.0, 9.0]])
    seeds = {"a": (3, 4, 5), "b": (4,), "c": (5, 3)}
    results = {"a": baseline, "b": baseline[1:2] + 1, "c": baseline[[2, 0]] - 2}
    rows = compare(results, baseline="a", seeds=seeds)
    self.assertEqual([row.num_seeds for row in rows], [3, 1, 2])
    self.assertEqual(rows[1].difference[:2], (1.0, 0.0))
    self.assertEqual(rows[2].difference, (-2.0, 0.0, 0.0))
    with self.assertRaisesRegex(ValueError, r"'b' has seeds \[7\], the baseline"):
      compare(results, baseline="a", seeds={**seeds, "b": (7,)})

  def test_one_seed_is_never_bold(self):
    rows = compare({"a": [[0.0, 0.1]], "b": [[0.5, 0.6]]}, baseline="a")
    self.assertNotIn("**", markdown(rows))

  def test_without_a_baseline_there_are_no_differences(self):
    rows = compare({"a": [[0.5, 0.7]], "b": [[0.6, 0.9]]}, baseline=None)
    self.assertEqual([row.difference for row in rows], [None, None])
    self.assertEqual(
      markdown(rows, measure="mse", scale=1).splitlines(),
      [
        "| method | seeds | mse | ± tasks | ± seeds |",
        "|---|---|---|---|---|",
        "| a | 1 | 0.60 | 0.20 | |",
        "| b | 1 | 0.75 | 0.29 | |",
      ],
    )
    lines = comparison_csv(rows).splitlines()
    self.assertEndsWith(lines[1], ",,,")

  def test_the_csv_reads_back_exactly(self):
    generator = np.random.default_rng(3)
    results = {name: generator.normal(size=(2, 9)) for name in ("a", "b")}
    rows = compare(results, baseline="a")
    names, first, second = csv.reader(comparison_csv(rows).splitlines())
    self.assertEqual(names[:5], ["method", "seeds", "tasks", "mean", "over_tasks"])
    self.assertEqual(names[-1], "difference_over_seeds")
    self.assertEqual(first[:3], ["a", "2", "9"])
    self.assertEqual(tuple(map(float, second[3:6])), rows[1].value)
    self.assertEqual(tuple(map(float, second[6:])), rows[1].difference)

  def test_the_figure_is_drawn_with_and_without_differences(self):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "a.png"
    for baseline in ("a", None):
      rows = compare({"a": [[0.5, 0.7]], "b": [[0.6, 0.9]]}, baseline=baseline)
      plot_comparison(rows, path)
      self.assertEqual(path.read_bytes()[1:4], b"PNG")
      path.unlink()

  def test_bad_arguments_are_named(self):
    with self.assertRaisesRegex(ValueError, "baseline 'c' is not among.*a, b"):
      compare({"a": [[1, 2]], "b": [[1, 2]]}, baseline="c")
    with self.assertRaisesRegex(ValueError, r"'b' has \(1, 3\).*\(1, 2\)"):
      compare({"a": [[1, 2]], "b": [[1, 2, 3]]}, baseline="a")
    with self.assertRaisesRegex(ValueError, r"\(3,\)"):
      interval([1, 2, 3])


if __name__ == "__main__":
  absltest.main()
