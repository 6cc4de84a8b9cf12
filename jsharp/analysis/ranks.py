"""Rank correlation over runs: do sharper runs generalise worse?

A few runs are weak evidence, so the correlation comes with an interval over runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jsharp._checks import check_count


class RankCorrelation(NamedTuple):
  """A rank correlation with its interval.

  Attributes:
    value: in [-1, 1]; NaN if one side is constant.
    low: the lower end of the 95 % interval.
    high: the upper end.
    num_runs: the number of pairs.
  """

  value: float
  low: float
  high: float
  num_runs: int


def kendall_tau(x: Any, y: Any) -> float:
  """Kendall's tau-b: concordant minus discordant pairs, over pairs without ties.

      tau_b = sum_ij sign(x_i - x_j) sign(y_i - y_j)
              / sqrt(sum_ij sign(x_i - x_j)^2 * sum_ij sign(y_i - y_j)^2)

  Args:
    x: `[num]`.
    y: `[num]`.

  Returns:
    A number in [-1, 1]; NaN where one side is constant.

  Example:
    >>> kendall_tau([1, 2, 3], [10, 30, 20])
    0.3333333333333333
  """
  return _cosine(*(np.sign(v[:, None] - v[None, :]) for v in _vectors(x, y)))


def spearman_rho(x: Any, y: Any) -> float:
  """Spearman's rho: the correlation of the ranks, where ties share their mean rank.

  Args:
    x: `[num]`.
    y: `[num]`.

  Returns:
    A number in [-1, 1]; NaN where one side is constant.

  Example:
    >>> spearman_rho([1, 2, 3], [10, 30, 20])
    0.5
  """
  # A rank is the number of smaller values plus half the number of equal ones: up to a
  # constant, the sum of the signs of all differences.
  return _cosine(*(np.sign(v[:, None] - v[None, :]).sum(1) for v in _vectors(x, y)))


def rank_correlation(
  x: Any,
  y: Any,
  *,
  num_resamples: int = 2000,
  seed: int = 0,
  statistic: Callable[[Any, Any], float] = kendall_tau,
) -> RankCorrelation:
  """A rank correlation over runs with its 95 % percentile-bootstrap interval.

  Runs are resampled with replacement, as pairs. Samples in which one side is constant
  have no correlation and are left out. With fewer than about ten runs the interval is
  rough, and usually too short.

  Args:
    x: `[num_runs]` finite numbers, such as the sharpness of each run.
    y: `[num_runs]`, such as the generalisation gap of each run.
    num_resamples: the number of bootstrap samples.
    seed: the seed of the bootstrap.
    statistic: `kendall_tau` or `spearman_rho`.

  Returns:
    The correlation and its interval; all NaN if one side is constant.

  Raises:
    ValueError: if there are fewer than 3 runs, the lengths differ, or a number is not
      finite.

  Example:
    >>> found = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    >>> found.value, found.low < found.value <= found.high
    (0.8, True)
  """
  check_count("num_resamples", num_resamples)
  x, y = _vectors(x, y)
  if len(x) < 3:
    raise ValueError(
      f"x has {len(x)} runs; a rank correlation needs at least 3, and 10 or more to be "
      "meaningful"
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError(
      f"x={x.tolist()} and y={y.tolist()} must be finite; leave out the runs that "
      "diverged"
    )
  generator = np.random.default_rng(seed)
  draws = generator.integers(len(x), size=(num_resamples, len(x)))
  values = np.array([statistic(x[draw], y[draw]) for draw in draws])
  values = values[np.isfinite(values)]
  low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (np.nan, np.nan)
  return RankCorrelation(float(statistic(x, y)), float(low), float(high), len(x))


def _vectors(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.ndim != 1 or x.shape != y.shape:
    raise ValueError(
      f"x and y must be vectors of the same length, got shapes {x.shape} and "
      f"{y.shape}; pass one number per run in each"
    )
  return x, y


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
  squares = float((a * a).sum() * (b * b).sum())
  return float((a * b).sum()) / squares**0.5 if squares else float("nan")
