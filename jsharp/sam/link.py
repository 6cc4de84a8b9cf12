"""SAM as a link of an optax chain: gradient in, sharp gradient out."""

from typing import Any, NamedTuple

import optax

from jsharp.sam.ascent import sam_ascent


class SharpnessAwareState(NamedTuple):
  """State of `sharpness_aware`.

  Attributes:
    ascent: state of the ascent; zero bytes for plain SAM.
  """

  ascent: Any


def sharpness_aware(
  ascent: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Replaces the gradient by the gradient at the perturbed parameters.

  `s = grad_fn(params + e)` with `e` from `ascent`. Links before it change the
  direction of the perturbation, links after it see the sharp gradient. It is
  exact under `jit`, `vmap` and `grad`: derivatives of any order flow through
  the perturbation, unless the ascent ends in `jsharp.stop_gradient()`.

  Args:
    ascent: gradient in, perturbation to add out, for example `sam_ascent(0.05)`.

  Returns:
    A link whose `update` needs `params` and
    `grad_fn: params -> grads` of the same batch. One more gradient per step.

  Raises:
    ValueError: from `update`, if `params` or `grad_fn` is missing.

  Example:
    >>> import jax, jax.numpy as jnp
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
    if params is None or grad_fn is None:
      missing = "params" if params is None else "grad_fn"
      raise ValueError(
        f"SAM needs a gradient at the perturbed parameters, got {missing}=None; call "
        "tx.update(grads, state, params, grad_fn=lambda params: jax.grad(loss)(params))"
      )
    perturbation, ascent_state = ascent.update(
      updates, state.ascent, params, grad_fn=grad_fn, **extra
    )
    sharp = grad_fn(optax.apply_updates(params, perturbation))
    return sharp, SharpnessAwareState(ascent_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  p: Any = 2.0,
  adaptive: bool = False,
  eta: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412) as a link.

  Args:
    rho: the radius of the ball; a number, a traced scalar or a schedule.
    p: the norm of the ball, in `[1, inf]`.
    adaptive: ASAM's geometry (Kwon et al. 2021, arXiv 2102.11600).
    eta: ASAM's offset.

  Returns:
    A link for `optax.chain`; see `sharpness_aware`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(w**2)
    >>> tx = optax.chain(sam(0.05), optax.sgd(0.1))
    >>> w = jnp.array([1.0, 1.0])
    >>> value, grads = jax.value_and_grad(loss)(w)
    >>> updates, _ = tx.update(grads, tx.init(w), w, grad_fn=jax.grad(loss))
    >>> [round(float(x), 4) for x in optax.apply_updates(w, updates)]
    [0.7929, 0.7929]
  """
  return sharpness_aware(sam_ascent(rho, p=p, adaptive=adaptive, eta=eta))
