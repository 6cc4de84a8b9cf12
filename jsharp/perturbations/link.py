"""SAM as a link of an optax chain: gradient in, sharp gradient out."""

from typing import Any, NamedTuple

import jax
import optax

from jsharp.perturbations.combine import Combine


class SharpnessAwareState(NamedTuple):
  """State of `sharpness_aware`.

  Attributes:
    ascent: state of the ascent; zero bytes for plain SAM.
  """

  ascent: Any


def sharpness_aware(
  ascent: optax.GradientTransformation, combine: Combine | None = None
) -> optax.GradientTransformationExtraArgs:
  """Replaces the gradient by the gradient at the perturbed parameters.

  `s = grad_fn(params + e)` with `e` from `ascent`. Links before it change the
  direction of the perturbation, links after it see the sharp gradient. It is
  exact under `jit`, `vmap` and `grad`: derivatives of any order flow through
  the perturbation, unless the ascent ends in `jsharp.stop_gradient()`.

  Args:
    ascent: gradient in, perturbation to add out, for example `sam_ascent(0.05)`.
    combine: `combine(clean, sharp) -> gradient`; the clean gradient is what reached
      the link. None hands on the sharp gradient alone.

  Returns:
    A link whose `update` needs `params` and
    `grad_fn: params -> grads` of the same batch. One more gradient per step.

  Raises:
    ValueError: from `update`, if `params` or `grad_fn` is missing.

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
    return SharpnessAwareState(ascent.init(params))

  def update_fn(
    updates: Any,
    state: SharpnessAwareState,
    params: Any = None,
    *,
    grad_fn: Any = None,
    **extra: Any,
  ) -> tuple[Any, SharpnessAwareState]:
    check_update_arguments(params, grad_fn)
    perturbation, ascent_state = ascent.update(
      updates, state.ascent, params, grad_fn=grad_fn, **extra
    )
    sharp = grad_fn(optax.apply_updates(params, perturbation))
    gradient = sharp if combine is None else combine(updates, sharp)
    return gradient, SharpnessAwareState(ascent_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_update_arguments(params: Any, grad_fn: Any) -> None:
  """Refuses an `update` without what a second gradient needs.

  Args:
    params: the parameters, or None.
    grad_fn: `params -> grads`, or None.

  Raises:
    ValueError: if one of them is None, or if `params` is a part only, inside of
      `optax.masked` or `optax.partition`; it says what to do.

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
      "batch; for a trainer that cannot, see jsharp.sharpen"
    )
  if any(
    isinstance(node, optax.MaskedNode)
    for node in jax.tree.leaves(
      params, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
    )
  ):
    raise ValueError(
      "SAM stands inside optax.masked or optax.partition, where it sees a part of the "
      "parameters and grad_fn needs them all; put the mask into the ascent: "
      "jsharp.sharpness_aware(jsharp.perturbations.restrict(jsharp.sam_ascent(rho), "
      "to=mask)), or optax.partition of ascents"
    )
