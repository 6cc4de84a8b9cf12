"""The inner loop: from meta-parameters and a support set to adapted parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp._checks import check_count
from jsharp.core.descent import ValueAndGradFn, descend
from jsharp.core.execution import Execution
from jsharp.tree import join
from jsharp.types import AdaptFn, Batch, LossFn, Mask, Params


def split(
  params: Params, mask: Mask | None, *, name: str = "adapted_mask"
) -> tuple[Params, Params]:
  """Splits parameters into those that the inner loop changes and the others.

  Args:
    params: any pytree.
    mask: `mask(params) -> pytree of bool`, or None for all leaves. A leaf without a
      derivative (an integer, a key, an activation function) is never adapted.
    name: the name of the caller's argument, for the error.

  Returns:
    `(adapted, others)`, both like `params`, with None in place of each leaf that the
    other one holds; JAX does not count None as a leaf, so any optimizer accepts the
    first.

  Raises:
    ValueError: if the mask selects no leaf, or no selected leaf has a derivative.

  Example:
    >>> split({"body": 1.0, "head": 2.0}, lambda params: {"body": False, "head": True})
    ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})
  """
  selected = jax.tree.map(lambda _: True, params) if mask is None else mask(params)
  if mask is not None and not any(jax.tree.leaves(selected)):
    raise ValueError(
      f"{name} selects no leaf, so the inner loop would change nothing; "
      "return True for at least one leaf of params"
    )
  wanted = selected
  selected = jax.tree.map(
    lambda keep, x: bool(keep) and trees.is_inexact(x), selected, params
  )
  if any(jax.tree.leaves(wanted)) and not any(jax.tree.leaves(selected)):
    kinds = {
      str(getattr(x, "dtype", type(x).__name__)) for x in jax.tree.leaves(params)
    }
    raise ValueError(
      f"there is nothing to adapt: only floating-point leaves can be, and params has "
      f"{', '.join(sorted(kinds))}; pass them as floats"
    )
  adapted = jax.tree.map(lambda keep, x: x if keep else None, selected, params)
  others = jax.tree.map(lambda keep, x: None if keep else x, selected, params)
  return adapted, others


def adapted_value_and_grad(loss_fn: LossFn, others: Params, batch: Any) -> Any:
  """The gradient of a batch's loss with respect to only the adapted leaves.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.
    others: the leaves that do not change, as from `split`.
    batch: the data.

  Returns:
    `adapted -> ((loss, metrics), grads)`.

  Example:
    >>> loss_fn = lambda params, batch: (params["a"] * params["b"] * batch, {})
    >>> fn = adapted_value_and_grad(loss_fn, {"a": None, "b": 3.0}, 5.0)
    >>> fn({"a": 2.0, "b": None})[1]
    {'a': Array(15., dtype=float32, weak_type=True), 'b': None}
  """
  return trees.value_and_grad(
    lambda adapted: loss_fn(join(adapted, others), batch), has_aux=True
  )


def repeated(
  step: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  *,
  num_steps: int,
  execution: Execution = Execution(),
) -> tuple[Any, Any]:
  """Takes inner steps one after another: the loop that all algorithms share.

  Args:
    step: `step(carry, i) -> (carry, seen)`; `i` is an integer if steps are unrolled,
      and traced if they are a loop.
    carry: the carry of the first step.
    num_steps: the number of steps.
    execution: whether steps are unrolled, scanned or recomputed in the backward pass.

  Returns:
    The last carry, and the `seen` of all steps, stacked; None if there is no step.

  Example:
    >>> carry, seen = repeated(lambda w, i: (w + i, 2 * w), jnp.float32(1), num_steps=3)
    >>> float(carry), seen.tolist()
    (4.0, [2.0, 2.0, 4.0])
  """
  if num_steps == 0:
    return carry, None
  if num_steps > 1:
    if execution.inner_steps == "recomputed":
      return jax.lax.scan(_computed_again(step), carry, jnp.arange(num_steps))
    if execution.inner_steps == "scanned" or num_steps > execution.max_unrolled:
      return jax.lax.scan(step, carry, jnp.arange(num_steps))
  each = []
  for i in range(num_steps):
    carry, seen = step(carry, i)
    each.append(seen)
  return carry, jax.tree.map(lambda *rows: jnp.stack(rows), *each)


def _computed_again(step: Any) -> Any:
  return jax.checkpoint(step, prevent_cse=False)


def optimised(
  optimizer: optax.GradientTransformation,
  loss_at: Callable[[Any, Params], tuple[jax.Array, Any]],
  params: Params,
  opt_state: Any = None,
  *,
  num_steps: int,
  see: Callable[[Any, Params, Any], Any] | None = None,
  execution: Execution = Execution(),
) -> tuple[Params, Any, Any]:
  """Takes optimizer steps on a loss that may depend on the step.

  Args:
    optimizer: any optax optimizer.
    loss_at: `loss_at(i, params) -> (loss, aux)` for step i = 0, 1, ...
    params: where to start.
    opt_state: the optimizer's state to start from; a new one if None.
    num_steps: the number of steps.
    see: `see(i, params, aux)`, what to record at step i, given the parameters after it
      and the `aux` of its loss. None records nothing.
    execution: how the steps are repeated.

  Returns:
    The parameters and the optimizer's state at the end, and the records, stacked along
    an axis `[num_steps, ...]`; None if there is no step.

  Example:
    >>> w, _, seen = optimised(
    ...   optax.sgd(1.0), lambda i, w: (w * (i + 1), w), jnp.float32(0), num_steps=2,
    ...   see=lambda i, w, before: (before, 10 * i + w))
    >>> float(w), seen[0].tolist(), seen[1].tolist()
    (-3.0, [0.0, -1.0], [-1.0, 7.0])
  """
  optimizer = optax.with_extra_args_support(optimizer)
  if opt_state is None:
    opt_state = optimizer.init(params)

  def step(carry: tuple[Params, Any], i: Any) -> tuple[tuple[Params, Any], Any]:
    value_and_grad_fn: ValueAndGradFn = trees.value_and_grad(
      functools.partial(loss_at, i), has_aux=True
    )
    params, opt_state, aux = descend(optimizer, value_and_grad_fn, *carry)
    return (params, opt_state), None if see is None else see(i, params, aux)

  carry = params, opt_state
  carry, seen = repeated(step, carry, num_steps=num_steps, execution=execution)
  return *carry, seen


def chosen_steps(num_steps: int | None, usual: int) -> int:
  """The number of inner steps for one call of `adapt`.

  Args:
    num_steps: the argument of `adapt`.
    usual: the number to use if that is None.

  Returns:
    The number of steps.

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
  execution: Execution = Execution(),
) -> AdaptFn:
  """Builds `adapt(params, support)`: `num_steps` optimizer steps on the support set.

  It is a pure function, differentiable to any order. The links of `optimizer` decide
  what derivatives flow through: see `jsharp.stop_gradient`.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    optimizer: any optax optimizer. Its state starts anew for every task. An optimizer
      that divides by the size of a gradient needs a form with a derivative at zero;
      otherwise the meta-gradient is NaN there. For Adam and similar ones set
      `eps_root > 0`; for clipping by norm use the links of `jsharp.core`. See
      docs/methods.md for all cases.
    num_steps: the number of steps; 0 returns the parameters unchanged.
    adapted_mask: which leaves are changed. The others are constants here: no gradient
      is computed for them, and the optimizer and SAM links get None in their place.
    execution: how the steps are repeated.

  Returns:
    `adapt(params, support, *, num_steps=None, optimizer=None) -> adapted`. The
    keywords, both static, replace this function's arguments for one call.

  Raises:
    ValueError: if `num_steps` is not an integer of at least 0.

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
    params = trees.as_arrays(params)
    adapted, others = split(params, adapted_mask)
    adapted, _, _ = optimised(
      optimizer or usual_optimizer,
      lambda _, adapted: loss_fn(join(adapted, others), support),
      adapted,
      num_steps=chosen_steps(num_steps, usual_steps),
      execution=execution,
    )
    return join(adapted, others)

  return adapt
