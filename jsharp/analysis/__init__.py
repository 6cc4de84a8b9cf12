"""Measurements of a trained model's loss surface."""

from jsharp.analysis.hessian import (
  Eigenvalues,
  hessian_vector_product,
  lanczos,
  largest_eigenvalues,
)

__all__ = ["Eigenvalues", "hessian_vector_product", "lanczos", "largest_eigenvalues"]
