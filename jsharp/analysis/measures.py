"""Named measures of sharpness, their table, and their correlation with the gap."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from jsharp.analysis._estimates import Loss
from jsharp.analysis.hessian import largest_eigenvalues, trace
from jsharp.analysis.ranks import RankCorrelation, rank_correlation
from jsharp.analysis.rise import average_case_rise, worst_case_rise
from jsharp.options import Check, Options, Role, at_least, option
from jsharp.types import Params

Figures = Mapping[str, Mapping[str, float]]
"""`{measure: {"value": ..., "standard_error": ...}}` of one network.

The key "gap" holds the result of `generalisation_gap`.
"""

Between = Callable[[], None]
Measure = Callable[[Loss, Params, Between], dict[str, float]]
"""`measure(loss, params, between) -> {"value": ..., ...}`."""

OUTCOMES = ("test_accuracy", "accuracy_gap", "loss_gap")
"""The outcomes that measures of sharpness are correlated with."""

_COUNT = at_least(1, "give a number of at least 1.")
_SAMPLES = at_least(2, "a standard error needs at least 2.")
_RADII = Check(
  lambda values: all(0 < value < math.inf for value in values),
  "must be positive numbers separated by commas, such as 0.05,0.5; empty for none.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures(Options):
  """The measures of sharpness to compute, and their numbers of samples and steps.

  Example:
    >>> import jax.numpy as jnp
    >>> measures = Measures(radii=(0.5,), adaptive_radii=(), average_radii=(),
    ...   adaptive_average_radii=()).by_name(jax.random.key(0))
    >>> list(measures)
    ['largest eigenvalue', 'trace', 'worst rise, rho 0.5']
    >>> bowl = lambda w: 2 * w[0] ** 2 + w[1] ** 2 / 2
    >>> rise = measures["worst rise, rho 0.5"](bowl, jnp.zeros(2), lambda: None)
    >>> f"{rise['value']:.3f}"
    '0.500'
  """

  role: ClassVar[Role] = Role.TESTING

  radii: tuple[float, ...] = option(
    (0.05, 0.5),
    "Radii of the worst-case rise of the loss, separated by commas.",
    check=_RADII,
  )
  adaptive_radii: tuple[float, ...] = option(
    (0.5,),
    "Radii of the worst-case rise, relative to the size of each parameter.",
    check=_RADII,
  )
  average_radii: tuple[float, ...] = option(
    (1.0,),
    "Radii of the average rise of the loss, separated by commas. Random vectors are "
    "nearly orthogonal to all sharp directions, so these radii are larger.",
    check=_RADII,
  )
  adaptive_average_radii: tuple[float, ...] = option(
    (10.0,),
    "Radii of the average rise, relative to the size of each parameter.",
    check=_RADII,
  )
  ascent_steps: int = option(
    10, "Steps of the search for the worst case.", check=_COUNT
  )
  trace_samples: int = option(
    20, "Random vectors for the trace of the Hessian.", check=_SAMPLES
  )
  average_samples: int = option(
    20, "Pairs of random perturbations for the average rise.", check=_SAMPLES
  )
  hessian_steps: int = option(
    15, "Lanczos steps for the largest eigenvalue.", check=_COUNT
  )

  def by_name(self, key: jax.Array) -> dict[str, Measure]:
    """The measures by name, for any loss.

    Args:
      key: the random key; it is the same for every loss, so that losses can be
        compared.

    Returns:
      For each name `measure(loss, params, between)`, which returns the figure as
      "value", and its standard error or residual if known. `between` is called every
      few seconds; raise an exception in it to stop.
    """

    def eigenvalue(loss: Loss, params: Params, between: Between) -> dict[str, float]:
      options: Any = {"num_steps": self.hessian_steps, "key": key}
      found = largest_eigenvalues(loss, params, between=between, **options)
      return {"value": float(found.values[0]), "residual": float(found.residuals[0])}

    def hutchinson(loss: Loss, params: Params, between: Between) -> dict[str, float]:
      options: Any = {"num_samples": self.trace_samples, "key": key}
      return trace(loss, params, between=between, **options)._asdict()

    def worst(
      ball: dict[str, Any], loss: Loss, params: Params, between: Between
    ) -> dict[str, float]:
      options = {"num_steps": self.ascent_steps, "key": key, **ball}
      found = worst_case_rise(loss, params, between=between, **options)
      return {"value": found.rise, "one_step": found.one_step}

    def average(
      ball: dict[str, Any], loss: Loss, params: Params, between: Between
    ) -> dict[str, float]:
      options = {"num_samples": self.average_samples, "key": key, **ball}
      return average_case_rise(loss, params, between=between, **options)._asdict()

    named: dict[str, Measure] = {"largest eigenvalue": eigenvalue, "trace": hutchinson}
    for name, rise, is_adaptive, radii in (
      ("worst rise", worst, False, self.radii),
      ("worst rise, adaptive", worst, True, self.adaptive_radii),
      ("average rise", average, False, self.average_radii),
      ("average rise, adaptive", average, True, self.adaptive_average_radii),
    ):
      for rho in radii:
        ball = {"rho": rho, "adaptive": is_adaptive}
        named[f"{name}, rho {rho:g}"] = functools.partial(rise, ball)
    return named


def rank_correlations(
  networks: Sequence[Figures], *, seed: int = 0
) -> dict[str, dict[str, RankCorrelation]]:
  """The rank correlation of every measure of sharpness with the gap, over networks.

  Args:
    networks: the figures of each network, including "gap". Non-finite figures are left
      out.
    seed: the seed of the bootstrap intervals.

  Returns:
    `{measure: {outcome: correlation}}` for every outcome in `OUTCOMES` for which at
    least three networks have figures; empty for fewer networks.

  Example:
    >>> networks = [
    ...   {"trace": {"value": x}, "gap": dict.fromkeys(OUTCOMES, x)} for x in range(3)]
    >>> rank_correlations(networks)["trace"]["loss_gap"].value
    1.0
  """
  found: dict[str, dict[str, RankCorrelation]] = {}
  if len(networks) < 3:
    return found
  for measure in (name for name in networks[0] if name != "gap"):
    for outcome in OUTCOMES:
      x = np.array([figures[measure]["value"] for figures in networks])
      y = np.array([figures["gap"][outcome] for figures in networks])
      finite = np.isfinite(x) & np.isfinite(y)
      if finite.sum() >= 3:
        correlation = rank_correlation(x[finite], y[finite], seed=seed)
        found.setdefault(measure, {})[outcome] = correlation
  return found


def sharpness_table(
  networks: Mapping[str, Figures],
  correlations: Mapping[str, Mapping[str, RankCorrelation]] | None = None,
  *,
  further: Mapping[str, Sequence[str]] | None = None,
) -> str:
  """The figures as Markdown tables: one column per network, then the correlations.

  Args:
    networks: the figures of each network by its name.
    correlations: from `rank_correlations`.
    further: additional rows of the table, with one cell per network.

  Returns:
    The text.

  Example:
    >>> print(sharpness_table({"A": {"trace": {"value": 2.0, "standard_error": 0.1}}}))
    | | A |
    |---|---|
    | trace | 2 ± 0.1 |
    <BLANKLINE>
  """
  rows: dict[str, Sequence[str]] = {}
  each = list(networks.values())
  for measure in each[0]:
    if measure == "gap":
      rows |= _gap_rows([figures["gap"] for figures in each])
    else:
      rows[measure] = [_figure(figures[measure]) for figures in each]
  text = _markdown(list(networks), {**rows, **(further or {})})
  if not correlations:
    return text
  intervals = {
    measure: [_interval(by_outcome.get(outcome)) for outcome in OUTCOMES]
    for measure, by_outcome in correlations.items()
  }
  names = [name.replace("_", " ") for name in OUTCOMES]
  return (
    f"{text}\nKendall's tau-b over {len(each)} runs with its 95 % bootstrap "
    f"interval:\n\n{_markdown(names, intervals)}"
  )


def _gap_rows(gaps: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
  rows = {}
  for name in ("train_accuracy", "test_accuracy", "accuracy_gap"):
    rows[name.replace("_", " ")] = [f"{100 * gap[name]:.2f} %" for gap in gaps]
  for name in ("train_loss", "test_loss", "loss_gap"):
    rows[name.replace("_", " ")] = [f"{gap[name]:.4f}" for gap in gaps]
  return rows


def _markdown(names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
  lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
  lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
  return "\n".join(lines) + "\n"


def _figure(figure: Mapping[str, float]) -> str:
  error = figure.get("standard_error")
  return f"{figure['value']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _interval(found: RankCorrelation | None) -> str:
  if found is None:
    return "too few"
  return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
