"""The inner loop: from meta-parameters and a support set to adapted parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count
from jsharp._cores import one_core_each
from jsharp.core.descent import ValueAndGradFn, descend
from jsharp.types import AdaptFn, Batch, LossFn, Mask, Params

_MAX_UNROLLED = 10
"""Beyond it compile time costs more than unrolling saves."""


def split(
  params: Params, mask: Mask | None, *, name: str = "adapted_mask"
) -> tuple[Params, Params]:
  """Splits parameters into those that the inner loop changes and the others.

  Args:
    params: any pytree.
    mask: `mask(params) -> pytree of bool`, or None for all leaves.
    name: what the caller's argument is called, for the error.

  Returns:
    `(adapted, others)`, both like `params` with None in place of each leaf that is
    in the other one; None counts as no leaf, so any optimizer takes the first.

  Raises:
    ValueError: if the mask selects no leaf.

  Example:
    >>> split({"body": 1.0, "head": 2.0}, lambda params: {"body": False, "head": True})
    ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})
  """
  if mask is None:
    return params, jax.tree.map(lambda _: None, params)
  selected = mask(params)
  if not any(jax.tree.leaves(selected)):
    raise ValueError(
      f"{name} selects no leaf, so the inner loop would change nothing; "
      "return True for at least one leaf of params"
    )
  adapted = jax.tree.map(lambda keep, x: x if keep else None, selected, params)
  others = jax.tree.map(lambda keep, x: None if keep else x, selected, params)
  return adapted, others


def join(adapted: Params, others: Params) -> Params:
  """Puts together what `split` took apart.

  Args:
    adapted: a pytree with None for some leaves.
    others: a pytree of the same structure with those leaves.

  Returns:
    The pytree with all leaves.

  Example:
    >>> join({"body": None, "head": 3.0}, {"body": 1.0, "head": None})
    {'body': 1.0, 'head': 3.0}
  """
  return jax.tree.map(
    lambda a, b: b if a is None else a, adapted, others, is_leaf=lambda x: x is None
  )


def adapted_value_and_grad(loss_fn: LossFn, others: Params, batch: Any) -> Any:
  """The gradient of a batch's loss with respect to the adapted leaves alone.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.
    others: the leaves that stay, as from `split`.
    batch: the data.

  Returns:
    `adapted -> ((loss, metrics), grads)`.

  Example:
    >>> loss_fn = lambda params, batch: (params["a"] * params["b"] * batch, {})
    >>> fn = adapted_value_and_grad(loss_fn, {"a": None, "b": 3.0}, 5.0)
    >>> fn({"a": 2.0, "b": None})[1]
    {'a': Array(15., dtype=float32, weak_type=True), 'b': None}
  """
  return jax.value_and_grad(
    lambda adapted: loss_fn(join(adapted, others), batch), has_aux=True
  )


def repeated(
  step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, *, length: int
) -> tuple[Any, Any]:
  """Takes steps one after another, unrolled where that pays.

  Args:
    step: `step(carry, i) -> (carry, seen)`; `i` is an integer while unrolled, and
      traced where the steps are too many for that.
    carry: what the first step gets.
    length: the number of steps.

  Returns:
    The last carry, and what every step saw, stacked; None if there is no step.

  Example:
    >>> carry, seen = repeated(lambda w, i: (w + i, 2 * w), jnp.float32(1), length=3)
    >>> float(carry), seen.tolist()
    (4.0, [2.0, 2.0, 4.0])
  """
  if length > 1 and one_core_each():
    # One core computes nothing side by side, so unrolling saves nothing. To compute a
    # step anew on the way back takes less time than to write and read what it computed.
    step = jax.checkpoint(step, prevent_cse=False)
    return jax.lax.scan(step, carry, jnp.arange(length))
  if length > _MAX_UNROLLED:
    return jax.lax.scan(step, carry, jnp.arange(length))
  if length == 0:
    return carry, None
  each = []
  for i in range(length):
    carry, seen = step(carry, i)
    each.append(seen)
  return carry, jax.tree.map(lambda *rows: jnp.stack(rows), *each)


def chosen_steps(num_steps: int | None, usual: int) -> int:
  """The number of inner steps of one call of `adapt`.

  Args:
    num_steps: what the caller of `adapt` passed.
    usual: the number to take if that is None.

  Returns:
    One of the two.

  Raises:
    ValueError: if `num_steps` is neither None nor an integer of at least 0.

  Example:
    >>> chosen_steps(None, 5), chosen_steps(0, 5)
    (5, 0)
  """
  return usual if num_steps is None else check_count("num_steps", num_steps, minimum=0)


def inner_loop(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  num_steps: int,
  adapted_mask: Mask | None = None,
) -> AdaptFn:
  """Builds `adapt(params, support)`: `num_steps` optimizer steps on the support set.

  It is a pure function, differentiable to any order; what a derivative sees of
  each step is decided by the links of `optimizer`.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    optimizer: any optax optimizer. Adam needs `eps_root > 0`, or the
      meta-gradient is NaN at a zero gradient. Its state starts anew per task.
    num_steps: the number of steps; 0 returns the parameters unchanged.
    adapted_mask: which leaves are changed. The others are constants here: no
      gradient is computed for them, and neither optimizer nor SAM link sees them
      (they see None in their place).

  Returns:
    `adapt(params, support, *, num_steps=None, optimizer=None) -> adapted`. The
    keywords, both static, replace this function's arguments for one call.

  Raises:
    ValueError: if `num_steps` is no integer of at least 0.

  Example:
    >>> loss_fn = lambda w, x: ((w - x) ** 2, {})
    >>> adapt = inner_loop(loss_fn, optax.sgd(0.25), num_steps=2)
    >>> float(adapt(1.0, 0.0)), float(adapt(1.0, 0.0, num_steps=3))
    (0.25, 0.125)
  """
  usual_steps = check_count("num_steps", num_steps, minimum=0)
  usual_optimizer = optimizer

  def adapt(
    params: Params,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
  ) -> Params:
    length = chosen_steps(num_steps, usual_steps)
    chain = optax.with_extra_args_support(optimizer or usual_optimizer)
    params = jax.tree.map(jnp.asarray, params)
    adapted, others = split(params, adapted_mask)
    value_and_grad_fn: ValueAndGradFn = adapted_value_and_grad(loss_fn, others, support)

    def step(carry: tuple[Params, Any], _: Any) -> tuple[tuple[Params, Any], None]:
      adapted, opt_state, _ = descend(chain, value_and_grad_fn, *carry)
      return (adapted, opt_state), None

    carry, _ = repeated(step, (adapted, chain.init(adapted)), length=length)
    return join(carry[0], others)

  return adapt
