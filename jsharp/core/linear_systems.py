"""Linear systems of which only products with the matrix are known."""

from typing import Any

import jax
import jax.numpy as jnp

from jsharp.tree import add_scaled, inner_product, length, unit
from jsharp.types import Params


def conjugate_gradients(matrix: Any, vector: Params, *, num_steps: int) -> Params:
  """Solves `matrix(x) = vector` approximately, from zero.

  A fixed number of steps, so that tasks side by side cost the same. Unlike
  `jax.scipy.sparse.linalg.cg`, which reads a NaN residual as a reason to stop and
  returns the finite start, NaN in is NaN out. A zero vector gives zero. A zero
  residual or a direction of no positive curvature ends the solution where it is: the
  steps that are left change nothing. The vector's length does not matter, since it is
  divided by it first.

  Args:
    matrix: `x -> matrix times x`, symmetric and positive definite.
    vector: the right side, any pytree.
    num_steps: products with the matrix; as many as there are unknowns solve the
      system, up to rounding.

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
    # Written so that a NaN goes on, and what is infinite becomes one.
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
    # Nothing changes at a stop, so the next step comes to the same end.
    return jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), new, carry)

  zero = jax.tree.map(jnp.zeros_like, vector)
  carry = zero, start, start, inner_product(start, start)
  x, *_ = jax.lax.fori_loop(0, num_steps, step, carry)

  def scaled(a: jax.Array) -> jax.Array:
    wide = a.dtype if jnp.iscomplexobj(a) else scale.dtype
    return (a.astype(wide) * scale.astype(wide)).astype(a.dtype)

  return jax.tree.map(scaled, x)
