"""SAM as a transformation of the loss, for trainers that accept only a loss."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jsharp import tree as trees
from jsharp.perturbations._passes import passes
from jsharp.types import Params


def sharpen(
  loss_fn: Callable[..., Any],
  ascent: optax.GradientTransformation,
  *,
  has_aux: bool = False,
  second_order: bool = False,
) -> Callable[..., Any]:
  """Gives a loss SAM's gradient: same value and aux, sharp derivative.

  `sharpen(loss_fn, ascent)(params, *args)` equals `loss_fn(params, *args)`, but its
  derivative is the derivative of `loss_fn` at `params + e`, where `ascent` computes `e`
  from the clean gradient. So `jax.value_and_grad`, flax's `TrainState`, `nnx`,
  `optax.microbatching` and any other trainer take SAM steps unchanged, and metrics and
  batch statistics (in `aux`) come from the clean pass. Higher derivatives are exact,
  including those through the perturbation, unless the ascent ends in
  `jsharp.stop_gradient()`; so it can be the inner loss of meta-learning.

  Leaves of `params` without a derivative, such as an activation function of an Equinox
  model, are constants. A Flax NNX model and its arguments, including random generators,
  are in the same state at the start of both passes, so both draw the same dropout mask.
  What the clean pass writes into them (averages of batch normalisation, counts) is
  kept, but only if `params` is an NNX model.

  Value and derivative deliberately disagree, so do not use it with a line search. With
  respect to `*args` and everything that `loss_fn` closes over, the derivative of the
  value is taken at the perturbed parameters, with the perturbation as a constant; the
  derivative of `aux` is the clean one.

  Args:
    loss_fn: `loss_fn(params, *args, **kwargs) -> loss`, or `(loss, aux)`.
    ascent: a stateless ascent, gradient in, perturbation to add out:
      `sam_ascent(0.05)`. Its radius may be traced, and therefore meta-learned.
    has_aux: whether `loss_fn` returns `(loss, aux)`, as in `jax.grad`.
    second_order: whether to differentiate `w -> loss(w + e(w))` through the
      perturbation too, see `sharpness_aware`; about two gradients more.

  Returns:
    A function like `loss_fn`. Its gradient costs two gradients and follows JAX's
    convention: conjugate it for an optimizer if it is complex.

  Raises:
    ValueError: when it is called, if `ascent` has state, such as a schedule's count or
      a running mean; these need the link `sharpness_aware` in an optimizer.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp import sam_ascent
    >>> sharp_loss_fn = sharpen(lambda w: jnp.sum(w**2), sam_ascent(0.5))
    >>> value, grads = jax.value_and_grad(sharp_loss_fn)(jnp.ones(1))
    >>> float(value), grads.tolist()
    (1.0, [3.0])
  """
  ascent = optax.with_extra_args_support(ascent)

  def sharpened(params: Params, *args: Any, **kwargs: Any) -> Any:
    variables, run, keep = passes(loss_fn, params, args, kwargs)
    state = _empty_state(ascent, variables)

    def with_aux(point: Params) -> tuple[Any, Any]:
      found, written = run(point)
      loss, aux = found if has_aux else (found, None)
      return loss, (aux, written)

    # Closed-over values that may be differentiated become arguments: a custom
    # derivative must not close over them.
    closed, hoisted = jax.closure_convert(with_aux, variables)
    loss, (aux, written) = _with_sharp_derivative(closed, ascent, state, second_order)(
      variables, *hoisted
    )
    keep(written)
    return (loss, aux) if has_aux else loss

  return sharpened


def _empty_state(ascent: optax.GradientTransformation, params: Params) -> Any:
  """The empty state of an ascent; raises an error if the ascent has state."""
  state = ascent.init(params)
  if jax.tree.leaves(state):
    raise ValueError(
      "ascent keeps state from step to step, but sharpen returns a function of the "
      "parameters; pass a fixed radius, or use the ascent in an optimizer: "
      "optax.chain(jsharp.sharpness_aware(ascent), optimizer)"
    )
  return state


def _with_sharp_derivative(
  closed: Callable[..., Any], ascent: Any, state: Any, second_order: bool
) -> Callable[..., Any]:
  @jax.custom_jvp
  def evaluate(params: Params, *hoisted: Any) -> Any:
    return closed(params, *hoisted)

  @evaluate.defjvp
  def evaluate_jvp(primals: Any, tangents: Any) -> Any:
    params, *hoisted = primals

    def grad_fn(point: Params) -> Any:
      return trees.value_and_grad(lambda w: closed(w, *hoisted)[0])(point)[1]

    def above(point: Params) -> Params:
      e, _ = ascent.update(grad_fn(point), state, params, grad_fn=grad_fn)
      return optax.apply_updates(point, e)

    moved, *others = tangents
    if second_order:
      sharp_point, moved = jax.jvp(above, (params,), (moved,))
    else:
      sharp_point = above(params)
    sharp_primals, sharp_tangents = (sharp_point, *hoisted), (moved, *others)
    _, slope = jax.jvp(lambda *at: closed(*at)[0], sharp_primals, sharp_tangents)
    _, aux_slope = jax.jvp(lambda *at: closed(*at)[1], tuple(primals), tuple(tangents))
    loss, aux = evaluate(*primals)
    return (loss, aux), (slope, aux_slope)

  return evaluate


def functional_sam(
  net_fn: Callable[[Params], Any],
  output_loss_fn: Callable[[Any], jax.Array],
  ascent: optax.GradientTransformation,
) -> Callable[[Params], tuple[jax.Array, Any]]:
  """Functional-SAM: perturbs the network's Jacobian but not the loss's gradient.

  With `F` the network and `l` the loss of its outputs, the gradient is `J_F(w + e)^T
  l'(F(w))`, where SAM has `J_F(w + e)^T l'(F(w + e))` (Singh et al. 2025, "Avoiding
  spurious sharpness minimization broadens applicability of SAM"). It costs two
  gradients.

  Args:
    net_fn: `net_fn(params) -> outputs`, for this batch.
    output_loss_fn: `output_loss_fn(outputs) -> loss`.
    ascent: as for `sharpen`, without state.

  Returns:
    `value_and_grad(params) -> (loss, gradient)`; a complex gradient is conjugated, as
    optax expects it.

  Raises:
    ValueError: when it is called, if `ascent` has state.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp import sam_ascent
    >>> step = functional_sam(lambda w: w**2, lambda out: 3 * out, sam_ascent(0.5))
    >>> value, gradient = step(jnp.array(1.0))
    >>> float(value), float(gradient)
    (3.0, 9.0)
  """
  ascent = optax.with_extra_args_support(ascent)

  def value_and_grad(params: Params) -> tuple[jax.Array, Any]:
    variables, run, keep = passes(net_fn, params, (), {})
    state = _empty_state(ascent, variables)
    outputs, pullback, written = jax.vjp(run, variables, has_aux=True)
    loss, slope = jax.value_and_grad(output_loss_fn)(outputs)
    grads = trees.conjugate(pullback(slope)[0])
    e, _ = ascent.update(grads, state, variables)
    _, sharp_pullback, _ = jax.vjp(run, optax.apply_updates(variables, e), has_aux=True)
    keep(written)
    return loss, trees.conjugate(sharp_pullback(slope)[0])

  return value_and_grad
