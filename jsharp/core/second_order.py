"""Losses whose gradient keeps less for a derivative of its own.

A meta-gradient goes back through inner gradients. Left to JAX, each of them keeps all
that its forward and its backward pass computed until then: memory grows with the number
of inner steps, and with the largest layer. Two loss transforms keep the parameters and
the batch instead, for every algorithm that goes back through inner gradients:

- `recomputed`: the gradient is computed anew on the way back, one inner step at a time.
- `forward_over_reverse`: what goes back through a gradient is a Hessian-vector product,
  and the Hessian is symmetric, so it is the directional derivative of the gradient: no
  pass goes back through a backward pass, and one gradient with its tangents is all that
  is ever held (arXiv 2505.00793).

The inner loop's iterates are what remains, one copy of the adapted parameters and of
the optimizer's state per step. (On a CPU, jax 0.10 finds the second computation to be
the first where inner steps are unrolled, up to ten of them, and keeps what both share.)
ANIL, which looks into the loss for what depends on the head alone, and iMAML, which
differentiates inner gradients forwards, need the plain loss.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jsharp.types import LossFn, Metrics, Params


def recomputed(loss_fn: LossFn) -> LossFn:
  """The same loss; a derivative of its gradient computes that gradient anew.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.

  Returns:
    A loss function of the same kind. A meta-gradient costs one more gradient per inner
    step. Metrics are constants to derivatives.

  Raises:
    ValueError: by the loss's derivative with respect to the batch, which it has not.

  Example:
    >>> loss_fn = recomputed(lambda w, batch: (w**3, {}))
    >>> slope = jax.grad(lambda w: loss_fn(w, None)[0])
    >>> float(slope(2.0)), float(jax.grad(slope)(2.0))
    (12.0, 12.0)
  """
  return _with_gradient(
    loss_fn, jax.checkpoint(jax.value_and_grad(loss_fn, has_aux=True))
  )


def forward_over_reverse(loss_fn: LossFn) -> LossFn:
  """The same loss; a derivative of its gradient is a Hessian-vector product.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`, twice differentiable in
      forward over reverse mode.

  Returns:
    A loss function of the same kind, for inner loops: its gradient has a reverse-mode
    derivative, and no forward-mode one. Where the meta-objective itself is
    differentiated in forward mode, pass the plain loss as `query_loss_fn`. Metrics are
    constants to derivatives.

  Raises:
    ValueError: by derivatives with respect to the batch, which it has not.

  Source:
    Kemaev et al. 2025, arXiv 2505.00793.

  Example:
    >>> loss_fn = forward_over_reverse(lambda w, batch: (w**3, {}))
    >>> slope = jax.grad(lambda w: loss_fn(w, None)[0])
    >>> float(slope(2.0)), float(jax.grad(slope)(2.0))
    (12.0, 12.0)
  """
  value_and_grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  @jax.custom_vjp
  def gradient(params: Params, batch: Any) -> Any:
    return value_and_grad_fn(params, batch)

  def forward(params: Any, batch: Any) -> Any:
    params, batch = _values(params), _constants(batch, "forward_over_reverse")
    return value_and_grad_fn(params, batch), (params, batch)

  def backward(saved: Any, cotangents: Any) -> Any:
    (loss, _), direction = cotangents
    params, batch = saved
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)
    directions = structure.flatten_up_to(direction)
    moved = [i for i, v in enumerate(directions) if not isinstance(v, SymbolicZero)]
    # Without it the compiler would find the forward pass below to be the one above,
    # and keep what that computed.
    leaves, batch, along = jax.lax.optimization_barrier(
      (leaves, batch, [directions[i] for i in moved])
    )

    def grads_at(point: list[Any]) -> Any:
      every = dict(enumerate(leaves)) | dict(zip(moved, point, strict=True))
      return value_and_grad_fn(structure.unflatten(every.values()), batch)[1]

    grads, products = jax.jvp(grads_at, ([leaves[i] for i in moved],), (along,))
    return jax.tree.map(jnp.add, _scaled(grads, loss), products), None

  gradient.defvjp(forward, backward, symbolic_zeros=True)
  return _with_gradient(loss_fn, gradient)


def _with_gradient(loss_fn: LossFn, gradient: Callable[..., Any]) -> LossFn:
  """`loss_fn` whose gradient `gradient` computes, `-> ((loss, metrics), grads)`."""

  @jax.custom_vjp
  def with_gradient(params: Params, batch: Any) -> tuple[jax.Array, Metrics]:
    return loss_fn(params, batch)

  def forward(params: Any, batch: Any) -> Any:
    return gradient(_values(params), _constants(batch, "this loss"))

  def backward(grads: Any, cotangents: Any) -> Any:
    return _scaled(grads, cotangents[0]), None

  with_gradient.defvjp(forward, backward, symbolic_zeros=True)
  return functools.wraps(loss_fn)(lambda params, batch: with_gradient(params, batch))


def _values(args: Any) -> Any:
  return jax.tree.map(lambda x: x.value, args)


def _constants(batch: Any, name: str) -> Any:
  if any(leaf.perturbed for leaf in jax.tree.leaves(batch)):
    raise ValueError(
      f"{name} has no derivative with respect to the batch; pass jax.lax.stop_gradient("
      "batch), or use the loss function as it was"
    )
  return _values(batch)


def _scaled(grads: Any, loss: Any) -> Any:
  if isinstance(loss, SymbolicZero):
    return jax.tree.map(jnp.zeros_like, grads)
  return jax.tree.map(lambda g: g * loss.astype(g.dtype), grads)
