"""The measures of sharpness by name, and their table."""

import jax
import jax.numpy as jnp
from absl.testing import absltest

from jsharp.analysis import Measures, rank_correlations, sharpness_table


def figures(x):
  gap = {f"{split}_loss": 2 * x for split in ("train", "test")}
  gap |= {f"{split}_accuracy": x / 10 for split in ("train", "test")}
  return {
    "gap": {**gap, "loss_gap": -x, "accuracy_gap": float("nan")},
    "trace": {"value": x, "standard_error": 0.25},
    "worst rise": {"value": 3.0, "one_step": 1.0},
  }


class MeasuresTest(absltest.TestCase):
  def test_every_figure(self):
    loss = lambda w: 2 * w[0] ** 2 + w[1] ** 2 / 2
    point, calls = jnp.array([0.0, 1.0]), []
    key = jax.random.fold_in(jax.random.key(0), 2)
    measures = Measures(radii=(0.1, 0.2), trace_samples=2).by_name(key)
    with jax.numpy_dtype_promotion("standard"):
      found = {
        name: measure(loss, point, lambda: calls.append(1))
        for name, measure in measures.items()
      }
    value = {name: figures["value"] for name, figures in found.items()}
    self.assertAlmostEqual(value["largest eigenvalue"], 4, places=4)
    self.assertAlmostEqual(value["trace"], 5, places=4)
    self.assertBetween(value["worst rise, rho 0.1"], 0.105, 0.12)
    self.assertGreater(value["worst rise, rho 0.2"], value["worst rise, rho 0.1"])
    # Relative to (0, 1) only the second coordinate moves.
    adaptive = "adaptive, rho"
    self.assertAlmostEqual(value[f"worst rise, {adaptive} 0.5"], 0.625, places=4)
    average = found["average rise, rho 1"]
    self.assertLess(abs(average["value"] - 1.25), 4 * average["standard_error"])
    average = found[f"average rise, {adaptive} 10"]
    self.assertLess(abs(average["value"] - 25), 4 * average["standard_error"])
    self.assertGreater(len(calls), len(found))

  def test_refuses_radii(self):
    with self.assertRaisesRegex(ValueError, "radii.*must be positive numbers"):
      Measures(radii=(0.0,))
    with self.assertRaisesRegex(ValueError, "trace_samples=1: .*at least 2"):
      Measures(trace_samples=1)


class TableTest(absltest.TestCase):
  def test_correlations_leave_out_what_is_not_finite(self):
    self.assertEqual(rank_correlations([figures(1.0), figures(2.0)]), {})
    found = rank_correlations([figures(x) for x in (1.0, 2.0, 3.0)])
    self.assertEqual(found["trace"]["loss_gap"].value, -1)
    self.assertEqual(found["trace"]["test_accuracy"].num_runs, 3)
    self.assertNotIn("accuracy_gap", found["trace"])
    self.assertNotIn("gap", found)

  def test_a_column_for_each_network_and_a_line_for_each_figure(self):
    networks = {f"seed {x}": figures(float(x)) for x in range(1, 4)}
    correlations = rank_correlations(list(networks.values()))
    further = {"path": ["1 %", "2 %", "not kept"]}
    lines = sharpness_table(networks, correlations, further=further).splitlines()
    for line in (
      "| | seed 1 | seed 2 | seed 3 |",
      "| test accuracy | 10.00 % | 20.00 % | 30.00 % |",
      "| loss gap | -1.0000 | -2.0000 | -3.0000 |",
      "| trace | 1 ± 0.25 | 2 ± 0.25 | 3 ± 0.25 |",
      "| worst rise | 3 | 3 | 3 |",
      "| path | 1 % | 2 % | not kept |",
      "Kendall's tau-b over 3 runs with its 95 % bootstrap interval:",
      "| | test accuracy | accuracy gap | loss gap |",
    ):
      self.assertIn(line, lines)
    (trace,) = [x for x in lines if x.startswith("| trace | 1.00 [")]
    self.assertIn("| too few |", trace)


if __name__ == "__main__":
  absltest.main()
