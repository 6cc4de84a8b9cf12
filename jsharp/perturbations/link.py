"""SAM as a link of an optax chain: gradient in, sharp gradient out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp.perturbations.combine import Combine


class SharpnessAwareState(NamedTuple):
  """State of `sharpness_aware`.

  Attributes:
    ascent: state of the ascent; zero bytes for plain SAM.
  """

  ascent: Any


def sharpness_aware(
  ascent: optax.GradientTransformation,
  combine: Combine | None = None,
  *,
  second_order: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Replaces the gradient by the gradient at the perturbed parameters.

  `s = grad_fn(params + e)` with `e` from `ascent`. Links before it change the direction
  of the perturbation; links after it receive the sharp gradient. It is exact under
  `jit`, `vmap` and `grad`: derivatives of any order flow through the perturbation,
  unless the ascent ends in `jsharp.stop_gradient()`.

  Args:
    ascent: gradient in, perturbation to add out, for example `sam_ascent(0.05)`.
    combine: `combine(clean, sharp) -> gradient`, where the clean gradient is the link's
      input. None returns the sharp gradient.
    second_order: whether to return the gradient of `w -> loss(w + e(w))`, which is `s +
      (de / dw)^T s`, instead of `s` alone. Foret et al. (2021, appendix C.4) leave the
      second term out and found the test error to be lower without it. It costs a
      Hessian-vector product, about two gradients more.

  Returns:
    A link whose `update` needs `params` and `grad_fn: params -> grads` of the same
    batch. It costs one more gradient per step. Put it in front of the optimizer: it
    returns a gradient.

  Raises:
    ValueError: from `update`, if `params` or `grad_fn` is missing, or if the result of
      `grad_fn` differs from the link's input in structure, shapes or dtypes.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jsharp import sam_ascent
    >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2))
    >>> link = sharpness_aware(sam_ascent(0.5))
    >>> w = jnp.array([1.0])
    >>> link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0].tolist()
    [3.0]
  """
  ascent = optax.with_extra_args_support(ascent)

  def init_fn(params: Any) -> SharpnessAwareState:
    return SharpnessAwareState(ascent.init(trees.inexact(own_params(params))[0]))

  def update_fn(
    updates: Any,
    state: SharpnessAwareState,
    params: Any = None,
    *,
    grad_fn: Any = None,
    **extra: Any,
  ) -> tuple[Any, SharpnessAwareState]:
    params = own_params(params)
    check_update_arguments(params, grad_fn)
    params, grad_fn = where_updated(updates, params, grad_fn)

    def ascend(direction: Any) -> tuple[Any, Any]:
      return ascent.update(direction, state.ascent, params, grad_fn=grad_fn, **extra)

    if second_order:
      # The change that earlier links made to the gradient is treated as a constant.
      change = jax.tree.map(jnp.subtract, updates, grad_fn(params))

      def ascend_from(point: Any) -> tuple[Any, Any]:
        return ascend(jax.tree.map(jnp.add, grad_fn(point), change))

      perturbation, pullback, ascent_state = jax.vjp(ascend_from, params, has_aux=True)
    else:
      perturbation, ascent_state = ascend(updates)
    sharp = sharp_gradient(grad_fn, params, perturbation, like=updates)
    if second_order:
      # JAX's cotangents are conjugates of optax's gradients.
      term = trees.conjugate(pullback(trees.conjugate(sharp))[0])
      sharp = jax.tree.map(jnp.add, sharp, term)
    gradient = sharp if combine is None else combine(updates, sharp)
    return gradient, SharpnessAwareState(ascent_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def own_params(params: Any) -> Any:
  """The parameters that gradients are taken at; `optax.lookahead` has two sets of them.

  Example:
    >>> own_params(optax.LookaheadParams(fast=1.0, slow=2.0)), own_params(3.0)
    (1.0, 3.0)
  """
  return params.fast if isinstance(params, optax.LookaheadParams) else params


def where_updated(updates: Any, params: Any, grad_fn: Any) -> tuple[Any, Any]:
  """The parameters that have a gradient, and `grad_fn` as a function of only these.

  Libraries whose models are pytrees with other leaves (Equinox) return None as the
  gradient of a counter or an activation function.

  Example:
    >>> grad_fn = lambda model: [model[1](model[0]), None]
    >>> w, grad_fn = where_updated([0.0, None], [-2.0, abs], grad_fn)
    >>> w, grad_fn(w)
    ([-2.0, None], [2.0, None])
  """

  def is_none(node: Any) -> bool:
    return node is None

  structure: Any = jax.tree.structure(updates)
  if structure == jax.tree.structure(params):
    return params, grad_fn
  try:
    there, rest = (
      jax.tree.map(
        lambda g, w, has=has: w if (g is not None) == has else None,
        updates,
        params,
        is_leaf=is_none,
      )
      for has in (True, False)
    )
  except ValueError:
    return params, grad_fn  # The structures differ: JAX will report where.
  return there, lambda point: grad_fn(trees.join(point, rest))


def sharp_gradient(
  grad_fn: Callable[[Any], Any], params: Any, perturbation: Any, *, like: Any
) -> Any:
  """The gradient at the perturbed parameters, checked against the link's input.

  Args:
    grad_fn: `params -> grads`.
    params: the parameters.
    perturbation: what to add to the parameters.
    like: the gradient that the link received.

  Returns:
    `grad_fn(params + perturbation)`.

  Raises:
    ValueError: if it differs from `like` in structure, shapes or dtypes; it would then
      be added to the wrong leaves, or broadcast.

  Example:
    >>> float(sharp_gradient(lambda w: 2 * w, jnp.array(1.0), 0.5, like=jnp.array(2.0)))
    3.0
  """
  try:
    sharp = grad_fn(optax.apply_updates(params, perturbation))
  except Exception as error:
    if isinstance(params, jax.Array) and params.ndim == 1:
      error.add_note(
        "SAM got all parameters as one vector; if optax.flatten is wrapped around SAM, "
        "put SAM in front of it: optax.chain(jsharp.sam(rho), optax.flatten(optimizer))"
      )
    raise
  wanted, found = _leaves(like), _leaves(sharp)
  if wanted != found:
    only = dict(wanted.items() - found.items()), dict(found.items() - wanted.items())
    raise ValueError(
      "grad_fn must return a gradient like the one passed to update, got "
      f"{_words(only[1])} where {_words(only[0])} is expected; return only the "
      "gradient, in its dtype, as jax.grad(loss) does, without a value or aux: "
      "jax.value_and_grad(loss)(w)[1], jax.grad(loss, has_aux=True)(w)[0]"
    )
  return sharp


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
  return {
    jax.tree_util.keystr(path): (jnp.shape(leaf), jnp.result_type(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _words(leaves: dict[str, Any]) -> str:
  shown = [
    f"{dtype}{list(shape)}{path and ' at ' + path}"
    for path, (shape, dtype) in sorted(leaves.items())[:3]
  ]
  rest = [f"{len(leaves) - 3} more"] if len(leaves) > 3 else []
  return ", ".join(shown + rest) or "nothing"


def check_update_arguments(params: Any, grad_fn: Any) -> None:
  """Checks that `update` was given what a second gradient needs.

  Args:
    params: the parameters, or None.
    grad_fn: `params -> grads`, or None.

  Raises:
    ValueError: if one of them is None, or if `params` is incomplete, inside
      `optax.masked` or `optax.partition`; the message says what to do.

  Example:
    >>> check_update_arguments(1.0, lambda w: 2 * w)
    >>> check_update_arguments(1.0, None)
    Traceback (most recent call last):
    ...
    ValueError: SAM needs a gradient at the perturbed parameters, got grad_fn=None; ...
  """
  if params is None or grad_fn is None:
    missing = "params" if params is None else "grad_fn"
    raise ValueError(
      f"SAM needs a gradient at the perturbed parameters, got {missing}=None; call "
      "tx.update(grads, state, params, grad_fn=jax.grad(loss)), with the loss of this "
      "batch. If you already do, a wrapper around SAM drops it (optax.lookahead, "
      "MultiSteps, split_real_and_imaginary): put SAM in front, "
      "optax.chain(jsharp.sam(rho), wrapper(optimizer)). For a trainer that cannot "
      "pass grad_fn, see jsharp.sharpen"
    )
  if any(
    isinstance(node, optax.MaskedNode)
    for node in jax.tree.leaves(
      params, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
    )
  ):
    raise ValueError(
      "SAM is inside optax.masked or optax.partition, where it gets only a part of the "
      "parameters, but grad_fn needs all of them; put the mask into the ascent: "
      "jsharp.sharpness_aware(jsharp.perturbations.restrict(jsharp.sam_ascent(rho), "
      "to=mask)), or optax.partition of ascents"
    )
