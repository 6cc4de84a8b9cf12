"""Links that change the direction of an ascent: running means, device means, repeats.

They are optax links to put in front of `scale_to_ball` or around an ascent;
`optax.centralize`, `optax.add_noise` and `optax.scale_by_adam` work in the same place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp._checks import check_count
from jsharp.perturbations.link import check_update_arguments, sharp_gradient


class RunningMeanState(NamedTuple):
  """State of `follow_running_mean` and `leave_running_mean`.

  Attributes:
    started: bool, whether a gradient has been seen.
    mean: the running mean of the gradients, like the parameters.
  """

  started: jax.Array
  mean: Any


def follow_running_mean(decay: Any) -> optax.GradientTransformation:
  """Replaces the gradient by its running mean, VaSSO's direction.

  `d_t = decay * d_{t-1} + (1 - decay) * g_t` with `d_0 = g_0` (Li and Giannakis 2023,
  arXiv 2309.15639, whose theta is `1 - decay`).

  Args:
    decay: weight of the past, in `[0, 1)`; 0 changes nothing.

  Returns:
    A link to put in front of the ball.

  Raises:
    ValueError: if `decay` is a number outside `[0, 1)`.

  Example:
    >>> link = follow_running_mean(0.5)
    >>> first, state = link.update(jnp.array(4.0), link.init(jnp.array(0.0)))
    >>> second, state = link.update(jnp.array(0.0), state)
    >>> float(first), float(second)
    (4.0, 2.0)
  """
  return _with_running_mean(decay, lambda gradient, past, mean: mean)


def leave_running_mean(decay: Any, *, sigma: Any = 1.0) -> optax.GradientTransformation:
  """Subtracts the running mean from the gradient, F-SAM's direction.

  `d_t = g_t - sigma * m_{t-1}`, `m_t = decay * m_{t-1} + (1 - decay) * g_t`. The mean
  estimates the full-batch gradient, so the difference is the batch's own noise (Li et
  al. 2024, arXiv 2403.12350). As in the authors' code, the first direction is `g_0`
  itself and `m_0 = g_0`.

  Args:
    decay: weight of the past, in `[0, 1)`.
    sigma: the fraction of the mean that is subtracted; 0 changes nothing.

  Returns:
    A link to put in front of the ball.

  Raises:
    ValueError: if `decay` is a number outside `[0, 1)`.

  Example:
    >>> link = leave_running_mean(0.5)
    >>> first, state = link.update(jnp.array(4.0), link.init(jnp.array(0.0)))
    >>> second, state = link.update(jnp.array(5.0), state)
    >>> float(first), float(second)
    (4.0, 1.0)
  """
  return _with_running_mean(
    decay, lambda gradient, past, mean: gradient - _like(sigma, gradient) * past
  )


def _with_running_mean(
  decay: Any, direction: Callable[..., jax.Array]
) -> optax.GradientTransformation:
  """A link that returns `direction(gradient, past, mean)`; `past` starts at zero."""
  if isinstance(decay, int | float) and not 0 <= decay < 1:
    raise ValueError(
      f"decay must lie in [0, 1), got {decay!r}; pass for example decay=0.9"
    )

  def init_fn(params: Any) -> RunningMeanState:
    return RunningMeanState(jnp.bool_(False), jax.tree.map(jnp.zeros_like, params))

  def update_fn(
    updates: Any, state: RunningMeanState, params: Any = None
  ) -> tuple[Any, RunningMeanState]:
    del params

    def average(g: jax.Array, past: jax.Array) -> jax.Array:
      keep = _like(decay, g)
      return jnp.where(state.started, keep * past + (1 - keep) * g, g)

    mean = jax.tree.map(average, updates, state.mean)
    directions = jax.tree.map(direction, updates, state.mean, mean)
    return directions, RunningMeanState(jnp.bool_(True), mean)

  return optax.GradientTransformation(init_fn, update_fn)


def _like(value: Any, x: jax.Array) -> jax.Array:
  return jnp.asarray(value, x.dtype)


def pmean(axis_name: Any) -> optax.GradientTransformation:
  """Averages over a named axis of `jax.shard_map`, `jax.vmap` or `jax.pmap`.

  As the first link of an ascent it decides which examples determine SAM's perturbation.
  Without it, every device perturbs by its own batch (m-sharpness, where m is the batch
  per device). With one axis of a mesh, the devices along it share a perturbation; with
  all axes, the full batch does. Inside `jax.shard_map` a gradient with respect to
  replicated parameters is
  already the sum over the devices; `jax.lax.pcast(params, axes, to="varying")` gives
  each device its own.

  Args:
    axis_name: the name of the axis, or a tuple of names.

  Returns:
    A stateless link.

  Example:
    >>> ascent = optax.chain(pmean("data"), optax.scale(1.0))
    >>> mean = lambda g: ascent.update(g, ascent.init(None))[0]
    >>> jax.vmap(mean, axis_name="data")(jnp.array([1.0, 3.0])).tolist()
    [2.0, 2.0]
  """

  def mean(g: jax.Array) -> jax.Array:
    # In half precision the sum may overflow or stop growing although the mean fits.
    wide = g.astype(trees.at_least_float32(g.dtype))
    return jax.lax.pmean(wide, axis_name).astype(g.dtype)

  return optax.stateless(lambda updates, params: jax.tree.map(mean, updates))


def repeat(
  ascent: optax.GradientTransformation, num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Repeats an ascent: each step starts where the last one ended, with a new gradient.

  The perturbation is the sum of the steps, so with radius `rho` per step its norm is at
  most `num_steps * rho` (Foret et al. 2021, arXiv 2010.01412, appendix C.5, found no
  gain). It costs `num_steps - 1` gradients more than `ascent`.

  Args:
    ascent: the ascent of one step.
    num_steps: the number of steps; 1 changes nothing.

  Returns:
    The ascent; its `update` needs `params` and `grad_fn`.

  Raises:
    ValueError: if `num_steps` is not positive; from `update`, if `params` or `grad_fn`
      is missing.

  Example:
    >>> from jsharp import sam_ascent
    >>> ascent = repeat(sam_ascent(0.5), 3)
    >>> w = jnp.array([1.0])
    >>> e, _ = ascent.update(2 * w, ascent.init(w), w, grad_fn=lambda w: 2 * w)
    >>> e.tolist()
    [1.5]
  """
  check_count("num_steps", num_steps)
  one = optax.with_extra_args_support(ascent)

  def update_fn(
    updates: Any, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any
  ) -> tuple[Any, Any]:
    if num_steps > 1:
      check_update_arguments(params, grad_fn)
    total, point = None, params
    for step in range(num_steps):
      if step:
        updates = sharp_gradient(grad_fn, params, total, like=updates)
        point = optax.apply_updates(params, total)
      e, state = one.update(updates, state, point, grad_fn=grad_fn, **extra)
      total = e if total is None else jax.tree.map(jnp.add, total, e)
    return total, state

  return optax.GradientTransformationExtraArgs(one.init, update_fn)
