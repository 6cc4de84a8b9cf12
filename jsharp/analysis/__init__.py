"""Measurements of a trained model's loss surface.

With `L` the loss, `w` the parameters, `H` the Hessian of `L` at `w` and `dim` the
number of parameters:

    trace         E v' H v, v of random signs (Hutchinson 1989)
    worst case    max of L(w + e) - L(w) over |e|_p <= rho       (what SAM minimises)
    average case  E L(w + e) - L(w), e Gaussian with E |e|^2 = rho^2

To second order the average case is `rho^2 / (2 dim) * trace` and, at a stationary
point, the worst case with `p = 2` is `rho^2 / 2` times the largest eigenvalue. All of
them change when layers are rescaled without changing the network's function; the
adaptive forms, with `e` relative to `|w|` entry by entry, do not (Kwon et al. 2021,
arXiv 2102.11600). None of them is known to predict generalisation in general
(Andriushchenko et al. 2023, arXiv 2302.07011).

A loss is any deterministic `loss(params) -> scalar`. Every function is compiled once
per function object. Arrays that the loss needs in addition to `params` are compiled in
as constants, unless the loss is a `jax.tree_util.Partial`, as from
`jsharp.analysis.meta_objective`.
"""

from jsharp.analysis._estimates import Estimate
from jsharp.analysis.drawing import plot_contours, plot_lines, plot_surfaces
from jsharp.analysis.hessian import (
  Eigenvalues,
  hessian_vector_product,
  lanczos,
  largest_eigenvalues,
  trace,
)
from jsharp.analysis.landscape import direction, filter_normalise, line, surface
from jsharp.analysis.measures import Measures, rank_correlations, sharpness_table
from jsharp.analysis.meta_loss import meta_objective, per_task
from jsharp.analysis.plane import Plane
from jsharp.analysis.ranks import (
  RankCorrelation,
  kendall_tau,
  rank_correlation,
  spearman_rho,
)
from jsharp.analysis.rise import WorstCase, average_case_rise, worst_case_rise
from jsharp.analysis.trajectory import (
  PrincipalDirections,
  Projection,
  principal_directions,
  project,
  square_axes,
)

__all__ = [
  "Eigenvalues",
  "Estimate",
  "Measures",
  "Plane",
  "PrincipalDirections",
  "Projection",
  "RankCorrelation",
  "WorstCase",
  "average_case_rise",
  "direction",
  "filter_normalise",
  "hessian_vector_product",
  "kendall_tau",
  "lanczos",
  "largest_eigenvalues",
  "line",
  "meta_objective",
  "per_task",
  "plot_contours",
  "plot_lines",
  "plot_surfaces",
  "principal_directions",
  "project",
  "rank_correlation",
  "rank_correlations",
  "sharpness_table",
  "spearman_rho",
  "square_axes",
  "surface",
  "trace",
  "worst_case_rise",
]
