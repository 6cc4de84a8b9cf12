"""The step of trust-region policy optimisation as an optax link.

    direction = H^-1 gradient            by conjugate gradients on products with H
    step = -sqrt(2 max_divergence / direction' H direction) * direction
    shortened until the loss falls and the divergence is at most max_divergence

H is the Hessian of the divergence at the start of the step, so `v' H v / 2` is the
divergence of a short step v (Schulman et al. 2015, arXiv 1502.05477, appendix C).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count, check_nonnegative, check_positive
from jsharp.core import conjugate_gradients
from jsharp.tree import add_scaled, inner_product
from jsharp.types import Params


def trust_region(
  divergence_fn: Callable[[Params], jax.Array],
  product_fn: Callable[[Params, Params], Params],
  *,
  max_divergence: float = 0.01,
  num_cg_steps: int = 10,
  damping: float = 1e-5,
  shrink: float = 0.8,
  max_backtracks: int = 15,
) -> optax.GradientTransformationExtraArgs:
  """A natural gradient step of bounded divergence, without a learning rate.

  The defaults are those of MAML's code (github.com/cbfinn/maml_rl).

  Args:
    divergence_fn: `divergence_fn(point)`, the divergence of the policy at `point` from
      the policy at the start of the step.
    product_fn: `product_fn(params, v)`, the product of v with the Hessian of the
      divergence at `params`, where the divergence is zero.
    max_divergence: the largest divergence of a step.
    num_cg_steps: products with the Hessian to find the direction.
    damping: added to the diagonal of the Hessian.
    shrink: factor that shortens a step that is too long or goes uphill.
    max_backtracks: the largest number of step lengths to try before no step is taken.

  Returns:
    The last link of a chain: gradient in, step out. Its `update` needs `params`,
    `value` and `value_fn`, which jsharp passes to every optimizer. NaN in is NaN out.

  Raises:
    ValueError: if a number is out of range; from `update`, if something is missing.

  Example:
    >>> loss_fn = lambda w: jnp.sum(w * jnp.array([2.0, 1.0]))
    >>> scale = jnp.array([4.0, 1.0])  # Of a divergence w' diag(scale) w / 2 from 0.
    >>> link = trust_region(
    ...   lambda w: jnp.sum(scale * w**2) / 2, lambda w, v: scale * v,
    ...   max_divergence=0.25, damping=0.0)
    >>> w = jnp.zeros(2)
    >>> step, _ = link.update(jax.grad(loss_fn)(w), link.init(w), w, value=loss_fn(w),
    ...                       value_fn=loss_fn)
    >>> step.round(3).tolist()
    [-0.25, -0.5]
  """
  check_positive("max_divergence", max_divergence, example=0.01)
  check_count("num_cg_steps", num_cg_steps)
  check_nonnegative("damping", damping)
  check_count("max_backtracks", max_backtracks)
  if not 0 < shrink < 1:
    raise ValueError(f"shrink must lie between 0 and 1, got {shrink}; 0.8 is usual")

  def update_fn(
    updates: Any,
    state: optax.EmptyState,
    params: Any = None,
    *,
    value: Any = None,
    value_fn: Any = None,
    **extra: Any,
  ) -> tuple[Any, optax.EmptyState]:
    del extra
    if params is None or value is None or value_fn is None:
      raise ValueError(
        "trust_region needs params, value= and value_fn=; jsharp's outer loop passes "
        "them, in your own loop pass them to update"
      )

    def product(vector: Params) -> Params:
      return add_scaled(product_fn(params, vector), jnp.asarray(damping), vector)

    direction = conjugate_gradients(product, updates, num_steps=num_cg_steps)
    curvature = inner_product(direction, product(direction))
    is_zero = curvature <= 0
    length = jnp.where(
      is_zero, 0, jnp.sqrt(2 * max_divergence / jnp.where(is_zero, 1, curvature))
    )

    def step(number: jax.Array) -> Params:
      size = -length * shrink ** number.astype(length.dtype)
      return jax.tree.map(lambda x: size.astype(x.dtype) * x, direction)

    def is_good(number: jax.Array) -> jax.Array:
      point = optax.apply_updates(params, step(number))
      return (value_fn(point) < value) & (divergence_fn(point) <= max_divergence)

    def look(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      number = carry[0] + 1
      return number, is_good(number)

    number, found = jax.lax.while_loop(
      lambda carry: ~carry[1] & (carry[0] < max_backtracks - 1),
      look,
      (jnp.int32(-1), jnp.bool_(False)),
    )
    moves = found | jnp.isnan(curvature)
    return jax.tree.map(lambda x: jnp.where(moves, x, 0), step(number)), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update_fn
  )
