"""One step of optax: the lines that the inner and the outer loop share."""

from collections.abc import Callable
from typing import Any

import optax

from jsharp.types import Params

ValueAndGradFn = Callable[[Params], tuple[tuple[Any, Any], Any]]
"""`params -> ((loss, metrics), grads)`."""


def descend(
  optimizer: optax.GradientTransformationExtraArgs,
  value_and_grad_fn: ValueAndGradFn,
  params: Params,
  opt_state: Any,
  *,
  grad_fn: Callable[[Params], Any] | None = None,
) -> tuple[Params, Any, Any]:
  """Takes one optimizer step, with everything that any optax optimizer asks for.

  The optimizer is given `value=`, `grad=`, `value_fn=` and `grad_fn=`, so SAM
  links, Polyak step sizes and line searches work at either loop; what it does
  not use costs nothing once compiled.

  Args:
    optimizer: an optax optimizer, passed through
      `optax.with_extra_args_support` once by the caller.
    value_and_grad_fn: `params -> ((loss, metrics), grads)`.
    params: where to step from.
    opt_state: the optimizer's state.
    grad_fn: what links are given as `grad_fn`; the gradient of
      `value_and_grad_fn` if None.

  Returns:
    The new params, the new optimizer state, and the metrics at `params`.

  Example:
    >>> import jax
    >>> sgd = optax.with_extra_args_support(optax.sgd(0.1))
    >>> square = jax.value_and_grad(lambda w: (w**2, {}), has_aux=True)
    >>> float(descend(sgd, square, 1.0, sgd.init(1.0))[0])
    0.800000011920929
  """
  (loss, metrics), grads = value_and_grad_fn(params)

  # optax's line searches pass every other extra argument on to value_fn and
  # refuse those that it does not take.
  def value_fn(point: Params, grad_fn: Any = None) -> Any:
    del grad_fn
    return value_and_grad_fn(point)[0][0]

  updates, opt_state = optimizer.update(
    grads,
    opt_state,
    params,
    value=loss,
    grad=grads,
    value_fn=value_fn,
    grad_fn=grad_fn or (lambda point: value_and_grad_fn(point)[1]),
  )
  return optax.apply_updates(params, updates), opt_state, metrics
