"""What becomes of the clean gradient `g` and the sharp one `s`: `combine(g, s)`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsharp.sam.ascent import scale_to_ball

Combine = Callable[[Any, Any], Any]
"""`combine(clean, sharp) -> gradient`, three pytrees of one structure."""


def interpolate(weight: Any) -> Combine:
  """`g + weight * (s - g)`: 0 is the clean gradient, 1 is SAM.

  Between them it penalises the gradient's norm (Zhao et al. 2022, arXiv 2202.03599);
  `weight = gamma / (1 - gamma)` is WSAM (Yue et al. 2023, arXiv 2305.15817).

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

  The sharp loss falls by `s`; the step against the orthogonal part lets the clean loss
  rise towards it, so the surrogate gap between the two closes (Zhuang et al. 2022,
  arXiv 2203.08065).

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
  """`s * |g| / |s|`: the sharp direction with the clean length.

  The rescaling keeps SAM stable in an ill-conditioned valley (Tan et al. 2024, arXiv
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


def unit(tree: Any) -> Any:
  """A tree divided by its Euclidean norm, whatever its scale; zero stays zero.

  Example:
    >>> unit(jnp.array([3e-30, 4e-30])).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
  """
  return scale_to_ball().update(tree, None)[0]


def length(tree: Any) -> jax.Array:
  """The Euclidean norm of a tree; no square in it under- or overflows.

  Example:
    >>> float(length(jnp.array([3.0, 4.0])))
    5.0
  """
  return inner_product(tree, unit(tree))


def inner_product(a: Any, b: Any) -> jax.Array:
  """The inner product of two trees, in single precision at least.

  Example:
    >>> float(inner_product({"w": jnp.ones(3)}, {"w": jnp.ones(3)}))
    3.0
  """
  wide = [
    (x.astype(jnp.float32), y.astype(jnp.float32)) if x.dtype.itemsize < 4 else (x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  ]
  products = [jnp.sum((x * jnp.conj(y)).real) for x, y in wide]
  dtype = jnp.result_type(*[p.dtype for p in products]) if products else jnp.float32
  return sum((p.astype(dtype) for p in products), jnp.zeros((), dtype))


def orthogonal_part(of: Any, to: Any) -> Any:
  """What is left of the tree `of` without its projection on `to`.

  Example:
    >>> orthogonal_part(jnp.array([1.0, 2.0]), to=jnp.array([0.0, 5.0])).tolist()
    [1.0, 0.0]
  """
  direction = unit(to)
  size = inner_product(of, direction)
  return jax.tree.map(lambda x, u: x - size.astype(x.dtype) * u, of, direction)
