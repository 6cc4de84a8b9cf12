"""Combinations of the clean gradient `g` and the sharp gradient `s`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsharp.tree import length, orthogonal_part, unit

Combine = Callable[[Any, Any], Any]
"""`combine(clean, sharp) -> gradient`, three pytrees of the same structure."""


def interpolate(weight: Any) -> Combine:
  """`g + weight * (s - g)`: 0 is the clean gradient, 1 is SAM.

  A weight between them penalises the gradient's norm (Zhao et al. 2022, arXiv
  2202.03599); `weight = gamma / (1 - gamma)` is WSAM (Yue et al. 2023, arXiv
  2305.15817).

  Args:
    weight: a number or a traced scalar.

  Returns:
    A function for `sharpness_aware(ascent, combine)`.

  Example:
    >>> float(interpolate(0.25)(jnp.array(0.0), jnp.array(4.0)))
    1.0
  """

  def combine(clean: Any, sharp: Any) -> Any:
    return jax.tree.map(
      lambda g, s: g + jnp.asarray(weight, g.dtype) * (s - g), clean, sharp
    )

  return combine


def oppose(alpha: Any) -> Combine:
  """GSAM: `s - alpha * (the part of g that is orthogonal to s)`.

  The step along `s` lowers the perturbed loss. The orthogonal part raises the clean
  loss without changing the perturbed loss to first order, which narrows the surrogate
  gap between the two (Zhuang et al. 2022, arXiv 2203.08065).

  Args:
    alpha: a number or a traced scalar; 0 is SAM.

  Returns:
    A function for `sharpness_aware(ascent, combine)`.

  Example:
    >>> oppose(0.5)(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])).tolist()
    [2.0, -0.5]
  """

  def combine(clean: Any, sharp: Any) -> Any:
    rest = orthogonal_part(clean, sharp)
    return jax.tree.map(lambda s, r: s - jnp.asarray(alpha, s.dtype) * r, sharp, rest)

  return combine


def renormalize() -> Combine:
  """`s * |g| / |s|`: the sharp gradient rescaled to the norm of the clean gradient.

  The rescaling keeps SAM stable in ill-conditioned valleys (Tan et al. 2024, arXiv
  2401.07250).

  Returns:
    A function for `sharpness_aware(ascent, combine)`.

  Example:
    >>> renormalize()(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])).tolist()
    [0.0, 5.0]
  """

  def combine(clean: Any, sharp: Any) -> Any:
    size = length(clean)
    return jax.tree.map(lambda u: u * size.astype(u.dtype), unit(sharp))

  return combine
