"""Small optax links that both loops use."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def stop_gradient() -> optax.GradientTransformation:
  """Treats what arrives as a constant in every derivative taken later.

  In front of an inner optimizer it makes MAML first-order (FOMAML); behind an
  ascent it keeps the perturbation out of the meta-gradient:
  `optax.chain(jsharp.sam_ascent(0.05), jsharp.stop_gradient())`. Values do not
  change.

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


def learned_rates(rates: Any) -> optax.GradientTransformation:
  """Multiplies every update by a rate of its own, which may be meta-learned.

  Behind `optax.sgd(1.0)` the rates are step sizes: one per leaf, or one per entry as
  in Meta-SGD. Derivatives flow into `rates`, so build the link where the rates are
  arguments of what is differentiated.

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
    A link that counts its steps. Past the last row the updates are NaN: a trace
    cannot refuse them, so whoever knows the number of steps checks it.

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
