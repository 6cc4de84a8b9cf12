"""LE-SAM: a perturbation that raises the loss by a given amount."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_nonnegative
from jsharp.perturbations.ascent import scale_to_ball
from jsharp.perturbations.link import sharpness_aware
from jsharp.tree import inner_product


def le_sam(
  sigma: Any, *, max_rho: Any = 1.0, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """LE-SAM: a radius that raises the loss by `sigma` to first order (two gradients).

  `rho = min(sigma / |g|_q, max_rho)`, so the radius is large where the loss is flat and
  small where it is steep (arXiv 2605.10183).

  Args:
    sigma: the increase of the loss, in units of the loss.
    max_rho: the largest radius.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = le_sam(0.5)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [2.5]
  """
  check_nonnegative("sigma", sigma)
  check_nonnegative("max_rho", max_rho)
  ball = scale_to_ball(p)

  def ascend(updates: Any, params: Any = None) -> Any:
    del params
    points, _ = ball.update(updates, ball.init(None))
    slope = inner_product(updates, points)  # |g|_q
    flat = slope * max_rho <= sigma
    rho = jnp.where(flat, max_rho, sigma / jnp.where(flat, 1, slope))
    return jax.tree.map(lambda e: e * rho.astype(e.dtype), points)

  return sharpness_aware(optax.stateless(ascend))
