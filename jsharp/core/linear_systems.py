"""Matrix-free solution of linear systems."""

from typing import Any

import jax
import jax.numpy as jnp

from jsharp.tree import add_scaled, inner_product, length, unit
from jsharp.types import Params


def conjugate_gradients(matrix: Any, vector: Params, *, num_steps: int) -> Params:
  """Solves `matrix(x) = vector` approximately, from zero.

  The number of steps is fixed, so that tasks in a batch cost the same. NaN in is NaN
  out, unlike `jax.scipy.sparse.linalg.cg`, which stops at a NaN residual and returns
  the finite start. A zero vector gives zero. At a zero residual, or a direction without
  positive curvature, the solution is final: the remaining steps change nothing. The
  vector's length does not matter, since the vector is normalised first.

  Args:
    matrix: `x -> matrix times x`, symmetric and positive definite.
    vector: the right-hand side, any pytree.
    num_steps: the number of products with the matrix; as many as there are unknowns
      solve the system, up to rounding.

  Returns:
    The solution, like `vector`.

  Example:
    >>> halve = lambda x: jax.tree.map(lambda leaf: 2 * leaf, x)
    >>> x = conjugate_gradients(halve, {"a": jnp.array([2.0, 6.0])}, num_steps=1)
    >>> x["a"].tolist()
    [1.0, 3.0]
  """
  scale = length(vector)
  start = unit(vector)

  def step(_: Any, carry: Any) -> Any:
    x, residual, direction, square = carry
    product = matrix(direction)
    curvature = inner_product(direction, product)
    # NaN propagates, and infinity becomes NaN.
    curvature = jnp.where(jnp.isinf(curvature), jnp.nan, curvature)
    goes_on = ~((curvature <= 0) | (square == 0))
    size = square / jnp.where(goes_on, curvature, 1)
    residual = add_scaled(residual, -size, product)
    new_square = inner_product(residual, residual)
    ratio = new_square / jnp.where(goes_on, square, 1)
    new = (
      add_scaled(x, size, direction),
      residual,
      add_scaled(residual, ratio, direction),
      new_square,
    )
    # After a stop nothing changes, so the next step stops too.
    return jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), new, carry)

  zero = jax.tree.map(jnp.zeros_like, vector)
  carry = zero, start, start, inner_product(start, start)
  x, *_ = jax.lax.fori_loop(0, num_steps, step, carry)

  def scaled(a: jax.Array) -> jax.Array:
    wide = a.dtype if jnp.iscomplexobj(a) else scale.dtype
    return (a.astype(wide) * scale.astype(wide)).astype(a.dtype)

  return jax.tree.map(scaled, x)
