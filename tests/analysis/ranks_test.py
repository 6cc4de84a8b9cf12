"""Rank correlations against SciPy."""

import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from jsharp.analysis import kendall_tau, rank_correlation, spearman_rho


class RankCorrelationTest(parameterized.TestCase):
  @parameterized.parameters(range(6))
  def test_equals_scipy_with_ties(self, seed):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 2 + 3 * seed, size=12)
    y = x + generator.integers(0, 8, size=12)
    expected = scipy.stats.kendalltau(x, y, variant="b").statistic
    self.assertAlmostEqual(kendall_tau(x, y), expected, places=12)
    self.assertAlmostEqual(
      spearman_rho(x, y), scipy.stats.spearmanr(x, y).statistic, places=12
    )

  def test_interval(self):
    generator = np.random.default_rng(0)
    x = generator.normal(size=30)
    y = x + generator.normal(size=30)
    found = rank_correlation(x, y, num_resamples=1000, seed=1)
    draws = np.random.default_rng(1).integers(30, size=(1000, 30))
    values = [scipy.stats.kendalltau(x[d], y[d]).statistic for d in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-12)
    self.assertBetween(found.value, found.low, found.high)
    self.assertEqual(found.num_runs, 30)
    same = rank_correlation(x, y, num_resamples=1000, seed=1)
    self.assertEqual(found, same)

  def test_perfect_order_and_a_constant_side(self):
    self.assertEqual(rank_correlation([1, 2, 3], [4, 5, 9])[:3], (1, 1, 1))
    found = rank_correlation([1, 2, 3], [4, 4, 4])
    self.assertTrue(np.isnan(found[:3]).all())

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, "x has 2 runs; .* at least 3"):
      rank_correlation([1, 2], [1, 2])
    with self.assertRaisesRegex(ValueError, "must be finite; leave out"):
      rank_correlation([1, 2, np.nan], [1, 2, 3])
    with self.assertRaisesRegex(ValueError, r"shapes \(3,\) and \(2,\)"):
      rank_correlation([1, 2, 3], [1, 2])


if __name__ == "__main__":
  absltest.main()
