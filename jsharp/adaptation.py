"""The inner loop: from meta-parameters and a support set to adapted parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp.checks import check_count
from jsharp.descent import ValueAndGradFn, descend
from jsharp.types import AdaptFn, Batch, LossFn, Mask, Params

_MAX_UNROLLED = 10  # Beyond it compile time costs more than the loop saves.


def masked_value_and_grad(loss_fn: LossFn, mask: Mask | None, batch: Any) -> Any:
  """The gradient of a batch's loss, zero on the leaves that the mask leaves out.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.
    mask: `mask(params) -> pytree of bool`, or None for all leaves.
    batch: the data.

  Returns:
    `params -> ((loss, metrics), grads)`.

  Raises:
    ValueError: when called, if the mask selects no leaf.

  Example:
    >>> loss_fn = lambda params, batch: (params["a"] * params["b"], {})
    >>> only_a = lambda params: {"a": True, "b": False}
    >>> _, grads = masked_value_and_grad(loss_fn, only_a, None)({"a": 2.0, "b": 3.0})
    >>> float(grads["a"]), float(grads["b"])
    (3.0, 0.0)
  """
  value_and_grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def masked(params: Params) -> tuple[tuple[Any, Any], Any]:
    aux, grads = value_and_grad_fn(params, batch)
    if mask is not None:
      selected = mask(params)
      if not any(jax.tree.leaves(selected)):
        raise ValueError(
          "adapted_mask selects no leaf, so the inner loop would change nothing; "
          "return True for at least one leaf of params"
        )
      grads = jax.tree.map(lambda keep, g: g if keep else g * 0, selected, grads)
    return aux, grads

  return masked


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
    adapted_mask: which leaves have a gradient here. The others stay as they are
      under any optimizer that maps a zero gradient to a zero update, and SAM
      links do not perturb them.

  Returns:
    `adapt(params, support) -> adapted`.

  Raises:
    ValueError: if `num_steps` is no integer of at least 0.

  Example:
    >>> loss_fn = lambda w, x: ((w - x) ** 2, {})
    >>> adapt = inner_loop(loss_fn, optax.sgd(0.25), num_steps=2)
    >>> float(adapt(1.0, 0.0))
    0.25
  """
  num_steps = check_count("num_steps", num_steps, minimum=0)
  optimizer = optax.with_extra_args_support(optimizer)

  def adapt(params: Params, support: Batch) -> Params:
    value_and_grad_fn: ValueAndGradFn = masked_value_and_grad(
      loss_fn, adapted_mask, support
    )

    def step(carry: tuple[Params, Any], _: Any) -> tuple[tuple[Params, Any], None]:
      params, opt_state, _ = descend(optimizer, value_and_grad_fn, *carry)
      return (params, opt_state), None

    carry = jax.tree.map(jnp.asarray, params), optimizer.init(params)
    if num_steps > _MAX_UNROLLED:
      return jax.lax.scan(step, carry, length=num_steps)[0][0]
    for _ in range(num_steps):
      carry, _ = step(carry, None)
    return carry[0]

  return adapt
