"""Optax links that are useful in both loops."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp._checks import check_positive


def stop_gradient() -> optax.GradientTransformation:
  """Treats the updates as constants in derivatives; their values do not change.

  In front of an inner optimizer it makes MAML first-order (FOMAML). After an ascent it
  excludes the perturbation from the meta-gradient:
  `optax.chain(jsharp.sam_ascent(0.05), jsharp.stop_gradient())`.

  Returns:
    A stateless link.

  Example:
    >>> first_order = optax.chain(stop_gradient(), optax.sgd(0.1))
    >>> def after_one_step(w):
    ...   update, _ = first_order.update(2 * w, first_order.init(w))
    ...   return w + update
    >>> float(jax.grad(after_one_step)(1.0))
    1.0
  """

  def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    return jax.lax.stop_gradient(updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def clip_by_global_norm(max_norm: Any) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm` with a derivative at a zero gradient.

  At zero its derivative is the identity. The derivative of optax's link is NaN there,
  which makes the meta-gradient through an inner step NaN.

  Args:
    max_norm: the largest norm of all leaves together.

  Returns:
    A stateless link.

  Raises:
    ValueError: if `max_norm` is a number of at most zero or not finite.

  Example:
    >>> link = clip_by_global_norm(1.0)
    >>> clip = lambda g: link.update(g, link.init(None))[0]
    >>> clip(jnp.array([3.0, 4.0])).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    >>> jax.jacobian(clip)(jnp.zeros(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  check_positive("max_norm", max_norm, example=1.0)

  def clip(updates: Any, params: Any) -> Any:
    del params
    size = trees.length(updates)
    return jax.tree.map(lambda g: _shortened(g, size, max_norm), updates)

  return optax.stateless(clip)


def clip_by_block_rms(threshold: Any) -> optax.GradientTransformation:
  """`optax.clip_by_block_rms` with a derivative at a zero gradient.

  Args:
    threshold: the largest root mean square of the entries of a leaf.

  Returns:
    A stateless link.

  Raises:
    ValueError: if `threshold` is a number of at most zero or not finite.

  Example:
    >>> link = clip_by_block_rms(1.0)
    >>> clip = lambda g: link.update(g, link.init(None))[0]
    >>> clip(jnp.array([3.0, -3.0])).tolist(), clip(jnp.array([0.5])).tolist()
    ([1.0, -1.0], [0.5])
  """
  check_positive("threshold", threshold, example=1.0)

  def clip(updates: Any, params: Any) -> Any:
    del params
    return jax.tree.map(
      lambda g: _shortened(g, trees.length(g), threshold * g.size**0.5), updates
    )

  return optax.stateless(clip)


def adaptive_grad_clip(clipping: Any, eps: Any = 1e-3) -> optax.GradientTransformation:
  """`optax.adaptive_grad_clip` with a derivative at a zero gradient or parameter.

  Args:
    clipping: the largest ratio between the norm of a unit's gradient and the norm of
      its parameters. A unit is a vector, a column of a matrix or of `[in, heads, out]`,
      or the kernel of one output channel of a convolution.
    eps: lower bound on the norm of the parameters.

  Returns:
    A stateless link; its `update` needs `params`.

  Raises:
    ValueError: if `clipping` is a number of at most zero or not finite; from `update`,
      if `params` is missing.

  Example:
    >>> link = adaptive_grad_clip(0.5)
    >>> g, w = jnp.array([[3.0, 0.1], [4.0, 0.0]]), jnp.ones((2, 2))
    >>> [[f"{x:.2f}" for x in row] for row in link.update(g, link.init(w), w)[0]]
    [['0.42', '0.10'], ['0.57', '0.00']]
  """
  check_positive("clipping", clipping, example=0.01)

  def clip(updates: Any, params: Any) -> Any:
    if params is None:
      raise ValueError(
        "adaptive_grad_clip needs the parameters, got params=None; call "
        "update(grads, state, params)"
      )

    def one(g: jax.Array, w: jax.Array) -> jax.Array:
      return _shortened(g, _of_units(g), clipping * jnp.maximum(_of_units(w), eps))

    return jax.tree.map(one, updates, params)

  return optax.stateless(clip)


def _shortened(g: jax.Array, size: jax.Array, limit: Any) -> jax.Array:
  """`g * limit / size` if the size is above the limit, otherwise `g`."""
  above = size > limit
  factor = jnp.where(above, limit / jnp.where(above, size, 1), 1)
  return g * factor.astype(g.dtype)


def _of_units(x: jax.Array) -> jax.Array:
  """The norm of each unit, as optax defines units, with a derivative at zero."""
  axes = (
    None if jnp.squeeze(x).ndim <= 1 else 0 if x.ndim < 4 else tuple(range(x.ndim))[:-1]
  )
  wide = x.astype(trees.at_least_float32(x.dtype))
  square = jnp.sum((wide * wide.conj()).real, axis=axes, keepdims=True)
  is_zero = square == 0
  return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))


def learned_rates(rates: Any) -> optax.GradientTransformation:
  """Multiplies every update by its own rate, which may be meta-learned.

  After `optax.sgd(1.0)` the rates are step sizes: one per leaf, or one per entry as in
  Meta-SGD. Derivatives flow into `rates`, so build the link inside the function that is
  differentiated with respect to them.

  Args:
    rates: a pytree like the updates; each leaf broadcasts to its update's shape. None
      where the updates have None.

  Returns:
    A stateless link.

  Example:
    >>> def after_one_step(rates):
    ...   link = optax.chain(optax.sgd(1.0), learned_rates(rates))
    ...   return 1.0 + link.update(jnp.array([2.0, 3.0]), link.init(None))[0]
    >>> after_one_step(jnp.array([0.5, -1.0])).tolist()
    [0.0, 4.0]
    >>> jax.jacrev(after_one_step)(jnp.float32(0.1)).tolist()
    [-2.0, -3.0]
  """

  def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    return jax.tree.map(_scaled, updates, rates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


class LearnedStepRatesState(NamedTuple):
  """State of `learned_step_rates`.

  Attributes:
    step: int32 scalar, the steps taken.
  """

  step: jax.Array


def learned_step_rates(rates: Any) -> optax.GradientTransformation:
  """Multiplies every update by the rate of its leaf and of the step (MAML++'s LSLR).

  Args:
    rates: a pytree like the updates with a leading axis `[num_steps, ...]` on every
      leaf; row i broadcasts to the update of step i, counted from 0. None where the
      updates have None.

  Returns:
    A link that counts its steps. Beyond the last row the updates are NaN, since a
    traced function cannot raise an error; the caller should check the number of steps.

  Example:
    >>> link = learned_step_rates(jnp.array([0.5, 2.0]))
    >>> first, state = link.update(jnp.array([1.0, 3.0]), link.init(None))
    >>> second, _ = link.update(jnp.array([1.0, 3.0]), state)
    >>> first.tolist(), second.tolist()
    ([0.5, 1.5], [2.0, 6.0])
  """

  def init_fn(params: Any) -> LearnedStepRatesState:
    del params
    return LearnedStepRatesState(jnp.zeros((), jnp.int32))

  def update_fn(
    updates: Any, state: LearnedStepRatesState, params: Any = None
  ) -> tuple[Any, LearnedStepRatesState]:
    del params
    row = jax.tree.map(
      lambda r: jnp.asarray(r).at[state.step].get(mode="fill", fill_value=jnp.nan),
      rates,
    )
    updates = jax.tree.map(_scaled, updates, row)
    return updates, LearnedStepRatesState(state.step + 1)

  return optax.GradientTransformation(init_fn, update_fn)


def _scaled(update: jax.Array, rate: Any) -> jax.Array:
  rate = jnp.asarray(rate).astype(update.dtype)
  return jnp.broadcast_to(rate, update.shape) * update
