"""Measurements of a trained model's loss surface."""

from jsharp.analysis._estimates import Estimate
from jsharp.analysis.drawing import plot_contours, plot_lines, plot_surfaces
from jsharp.analysis.hessian import (
  Eigenvalues,
  hessian_vector_product,
  lanczos,
  largest_eigenvalues,
)
from jsharp.analysis.landscape import direction, filter_normalise, line, surface
from jsharp.analysis.meta_loss import meta_objective, per_task
from jsharp.analysis.ranks import (
  RankCorrelation,
  kendall_tau,
  rank_correlation,
  spearman_rho,
)
from jsharp.analysis.rise import WorstCase, average_case_rise, worst_case_rise
from jsharp.analysis.sharpness import eigenvalues, trace
from jsharp.analysis.trajectory import (
  PrincipalDirections,
  Projection,
  principal_directions,
  project,
)

__all__ = [
  "Eigenvalues",
  "Estimate",
  "PrincipalDirections",
  "Projection",
  "RankCorrelation",
  "WorstCase",
  "average_case_rise",
  "direction",
  "eigenvalues",
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
  "spearman_rho",
  "surface",
  "trace",
  "worst_case_rise",
]
