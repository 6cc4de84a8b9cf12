"""Losses whose gradients store less for second derivatives.

A meta-gradient differentiates through inner gradients. By default, JAX stores
everything that the forward and backward pass of each inner gradient compute until the
meta-gradient needs it: memory grows with the number of inner steps and with the largest
layer. Two loss transforms store only the parameters and the batch instead. They work
with every algorithm that differentiates through inner gradients:

- `recomputed`: the backward pass recomputes the gradient, one inner step at a time.
- `forward_over_reverse`: the derivative of a gradient, applied to a cotangent, is a
  Hessian-vector product. The Hessian is symmetric, so the product is the directional
  derivative of the gradient, in forward mode. Nothing is propagated backwards through a
  backward pass, and only one gradient with its tangents is held at a time (arXiv
  2505.00793).

What remains in memory are the inner loop's iterates: one copy of the adapted parameters
and of the optimizer's state per step. (On a CPU, jax 0.10 merges the second computation
with the first if inner steps are unrolled, up to ten of them, and stores what both
share.) ANIL, which analyses how the loss depends on the head, and iMAML, which
multiplies by Hessians itself, need the plain loss.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jsharp import tree as trees
from jsharp.core.traced import Traced
from jsharp.types import LossFn, Metrics, Params


def recomputed(loss_fn: LossFn) -> LossFn:
  """The same loss; differentiating its gradient recomputes that gradient.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.

  Returns:
    A loss function of the same kind. A meta-gradient costs one more gradient per inner
    step. Metrics are constants to derivatives.

  Raises:
    ValueError: when differentiated with respect to the batch.

  Example:
    >>> loss_fn = recomputed(lambda w, batch: (w**3, {}))
    >>> slope = jax.grad(lambda w: loss_fn(w, None)[0])
    >>> float(slope(2.0)), float(jax.grad(slope)(2.0))
    (12.0, 12.0)
  """

  def transformed(loss_fn: LossFn) -> LossFn:
    value_and_grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    return _with_gradient(loss_fn, jax.checkpoint(value_and_grad_fn))

  return _of_variables(loss_fn, transformed)


def forward_over_reverse(loss_fn: LossFn) -> LossFn:
  """The same loss; differentiating its gradient takes Hessian-vector products.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`, twice differentiable in
      forward-over-reverse mode. If a `jax.custom_vjp` in it has no such derivative, the
      product is computed reverse over reverse, as with `recomputed`.

  Returns:
    A loss function of the same kind, for inner loops: its gradient has a reverse-mode
    derivative, but no forward-mode derivative. If the meta-objective itself is
    differentiated in forward mode, pass the plain loss as `query_loss_fn`. Metrics are
    constants to derivatives.

  Raises:
    ValueError: when differentiated with respect to the batch.

  Source:
    Kemaev et al. 2025, arXiv 2505.00793.

  Example:
    >>> loss_fn = forward_over_reverse(lambda w, batch: (w**3, {}))
    >>> slope = jax.grad(lambda w: loss_fn(w, None)[0])
    >>> float(slope(2.0)), float(jax.grad(slope)(2.0))
    (12.0, 12.0)
  """
  return _of_variables(loss_fn, _forward_over_reverse)


def _of_variables(loss_fn: LossFn, transform: Callable[[LossFn], LossFn]) -> LossFn:
  """`transform(loss_fn)`, which treats leaves without a derivative as constants."""
  of_all = transform(loss_fn)

  def transformed(params: Params, batch: Any) -> tuple[jax.Array, Metrics]:
    variables, constants = trees.inexact(params)
    if not jax.tree.leaves(constants):
      return of_all(params, batch)
    of_some = transform(
      lambda variables, batch: loss_fn(trees.join(variables, constants), batch)
    )
    return of_some(variables, batch)

  return functools.wraps(loss_fn)(transformed)


def _forward_over_reverse(loss_fn: LossFn) -> LossFn:
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
    # Without the barrier the compiler would merge the forward pass below with the one
    # above, and store its intermediate results.
    leaves, batch, along = jax.lax.optimization_barrier(
      (leaves, batch, [directions[i] for i in moved])
    )

    grads_at = Traced(
      lambda leaves: value_and_grad_fn(structure.unflatten(leaves), batch)[1], leaves
    )

    def where_moved(point: list[Any]) -> Any:
      every = dict(enumerate(leaves)) | dict(zip(moved, point, strict=True))
      return grads_at(list(every.values()))

    if grads_at.has_forward_mode:
      start = [leaves[i] for i in moved]
      grads, products = jax.jvp(where_moved, (start,), (along,))
    else:
      zeros = dict(enumerate(map(jnp.zeros_like, leaves)))
      every = zeros | dict(zip(moved, along, strict=True))
      grads, pull_back = jax.vjp(grads_at, leaves)
      (columns,) = pull_back(structure.unflatten(every.values()))
      products = structure.unflatten(columns)
    return jax.tree.map(jnp.add, _scaled(grads, loss), products), None

  gradient.defvjp(forward, backward, symbolic_zeros=True)
  return _with_gradient(loss_fn, gradient)


def symmetric_product(
  gradient_fn: Callable[[Any], Any], point: Any, vector: Any
) -> Any:
  """The Hessian-vector product of the function whose gradient is given.

  Args:
    gradient_fn: `point -> gradient`, the direction of ascent.
    point: where the Hessian is taken.
    vector: like `point`.

  Returns:
    The product, forward over reverse, or reverse over reverse if a `jax.custom_vjp`
    has no forward mode; the two are equal because a Hessian is symmetric.

  Example:
    >>> float(symmetric_product(jax.grad(lambda w: w**3), 2.0, 1.0))
    12.0
  """
  replay = Traced(gradient_fn, point)
  if not replay.has_forward_mode:
    return _by_reverse(replay, point)(vector)
  return jax.jvp(replay, (point,), (vector,))[1]


def symmetric_map(
  gradient_fn: Callable[[Any], Any], point: Any
) -> Callable[[Any], Any]:
  """`symmetric_product` for many vectors: the gradient is computed once.

  Args:
    gradient_fn: as for `symmetric_product`.
    point: where the Hessian is taken.

  Returns:
    `vector -> product`.

  Example:
    >>> float(symmetric_map(jax.grad(lambda w: w**3), 2.0)(1.0))
    12.0
  """
  replay = Traced(gradient_fn, point)
  if not replay.has_forward_mode:
    return _by_reverse(replay, point)
  return jax.linearize(replay, point)[1]


def _by_reverse(gradient_fn: Callable[[Any], Any], point: Any) -> Callable[[Any], Any]:
  _, pull_back = jax.vjp(gradient_fn, point)
  return lambda vector: trees.conjugate(pull_back(trees.conjugate(vector))[0])


def _with_gradient(loss_fn: LossFn, gradient: Callable[..., Any]) -> LossFn:
  """`loss_fn` with its gradient computed by `gradient -> ((loss, metrics), grads)`."""

  @jax.custom_vjp
  def with_gradient(params: Params, batch: Any) -> tuple[jax.Array, Metrics]:
    return loss_fn(params, batch)

  def forward(params: Any, batch: Any) -> Any:
    return gradient(_values(params), _constants(batch, "this loss"))

  def backward(grads: Any, cotangents: Any) -> Any:
    return _scaled(grads, cotangents[0]), None

  with_gradient.defvjp(forward, backward, symbolic_zeros=True)
  return with_gradient


def _values(args: Any) -> Any:
  return jax.tree.map(lambda x: x.value, args)


def _constants(batch: Any, name: str) -> Any:
  if any(leaf.perturbed for leaf in jax.tree.leaves(batch)):
    raise ValueError(
      f"{name} has no derivative with respect to the batch; pass jax.lax.stop_gradient("
      "batch), or use the original loss function"
    )
  return _values(batch)


def _scaled(grads: Any, loss: Any) -> Any:
  if isinstance(loss, SymbolicZero):
    return jax.tree.map(jnp.zeros_like, grads)
  return jax.tree.map(lambda g: g * loss.astype(g.dtype), grads)
