"""One optimizer step, shared by the inner and the outer loop."""

import collections
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp.core.traced import Traced
from jsharp.perturbations.link import SharpnessAwareState
from jsharp.perturbations.looksam import LookState
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
  one_program: bool = False,
) -> tuple[Params, Any, Any]:
  """Takes one optimizer step, with every extra argument that optax optimizers use.

  The optimizer is given `value=`, `grad=`, `value_fn=` and `grad_fn=`, so SAM links,
  Polyak step sizes and line searches work in either loop. Arguments that it does not
  use cost nothing once compiled.

  Leaves without a derivative (a counter, an activation function) do not change; the
  optimizer gets None in their place.

  Args:
    optimizer: an optax optimizer, passed through
      `optax.with_extra_args_support` once by the caller.
    value_and_grad_fn: `params -> ((loss, metrics), grads)`, as from
      `jsharp.tree.value_and_grad`.
    params: where to step from.
    opt_state: the optimizer's state.
    grad_fn: the `grad_fn` that links are given; the gradient of `value_and_grad_fn` if
      None.
    one_program: whether an optimizer that asks for exactly one more gradient, as SAM
      does, gets both from one loop of two passes, so that the gradient is compiled
      once. The result is the same. Costly to differentiate through, because the loop
      stores both passes.

  Returns:
    The new params, the new optimizer state, and the metrics at `params`.

  Raises:
    ValueError: if no leaf of `params` has a derivative; if a SAM link is the last link
      of the optimizer, comes after the link that turns the gradient into a step, or is
      wrapped by one that reshapes the parameters; or if the optimizer's arguments
      differ from those of optax's optimizers (`optax.lookahead`, `optax.contrib.sam`).

  Example:
    >>> sgd = optax.with_extra_args_support(optax.sgd(0.1))
    >>> square = jax.value_and_grad(lambda w: (w**2, {}), has_aux=True)
    >>> float(descend(sgd, square, 1.0, sgd.init(1.0))[0])
    0.800000011920929
  """
  _check_links(opt_state)
  params, constants = trees.inexact(params)
  _check_order(optimizer, params, opt_state)
  if jax.tree.leaves(constants) and not jax.tree.leaves(params):
    raise ValueError(
      "params has no floating-point leaf, so nothing would be learned; pass floats"
    )

  def at(point: Params) -> Params:
    return trees.join(point, constants)

  def everything_at(point: Params) -> Any:
    return value_and_grad_fn(at(point))

  def gradient(point: Params) -> Any:
    return grad_fn(at(point)) if grad_fn else everything_at(point)[1]

  # optax's line searches pass all their other extra arguments to value_fn, so it must
  # accept them.
  def value_fn(point: Params, grad_fn: Any = None) -> Any:
    del grad_fn
    return everything_at(point)[0][0]

  def update(
    params: Params, found: Any, gradient: Any, value_fn: Any
  ) -> tuple[Any, Any]:
    (loss, _), grads = found
    return optimizer.update(
      grads,
      opt_state,
      params,
      value=loss,
      grad=grads,
      value_fn=value_fn,
      grad_fn=_of_like_params(gradient, params),
    )

  pair = None
  if one_program and grad_fn is None:
    everything_at = Traced(everything_at, params)
    pair = _in_one_loop(everything_at, update, params)
  if pair is None:
    found = everything_at(params)
    updates, opt_state = update(params, found, gradient, value_fn)
  else:
    found, (_, second) = pair
    updates, opt_state = update(params, found, lambda point: second, value_fn)
  return at(optax.apply_updates(params, updates)), opt_state, found[0][1]


def _in_one_loop(
  everything_at: Traced,
  update: Callable[[Params, Any, Any, Any], Any],
  params: Params,
) -> tuple[Any, Any] | None:
  """What is found at `params`, and where an optimizer then asks for a gradient.

  Args:
    everything_at: `params -> ((loss, metrics), grads)`.
    update: `update(params, found, grad_fn, value_fn)` updates the optimizer.
    params: the first point.

  Returns:
    Both results; None if the optimizer asks for no gradient, for several, for a value
    elsewhere, or only under a condition.
  """

  class OtherQuestion(Exception):
    pass

  def refuse(point: Params, grad_fn: Any = None) -> Any:
    raise OtherQuestion

  def question(params_and_found: tuple[Params, Any]) -> Params:
    params, found = params_and_found
    points: list[Params] = []

    def grad_fn(point: Params) -> Any:
      points.append(point)
      return found[1]

    update(params, found, grad_fn, refuse)
    if len(points) != 1:
      raise OtherQuestion
    return points[0]

  try:
    asked = Traced(question, (params, everything_at.result))
  except OtherQuestion:
    return None
  if asked.returns_foreign:
    return None

  def one_pass(carry: Any, is_first: Any) -> tuple[Any, None]:
    _, last = carry
    point = jax.tree.map(partial(jnp.where, is_first), params, asked((params, last)))
    return (last, everything_at(point)), None

  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), everything_at.result)
  both, _ = jax.lax.scan(one_pass, (nothing, nothing), jnp.array([True, False]))
  return both


def _of_like_params(
  grad_fn: Callable[[Params], Any], params: Params
) -> Callable[[Params], Any]:
  """`grad_fn` that raises an error if a wrapper around a link reshaped `params`."""

  def checked(point: Params) -> Any:
    found: Any = jax.tree.structure(point)
    if found != jax.tree.structure(params):
      raise ValueError(
        f"the optimizer asks for a gradient at {found}, but the parameters are "
        f"{jax.tree.structure(params)}: a wrapper around SAM reshapes "
        "them. Put SAM in front of it: optax.chain(jsharp.sam(rho), "
        "optax.flatten(optimizer))"
      )
    return grad_fn(point)

  return checked


def _check_links(opt_state: Any) -> None:
  """Rejects optimizers that would compute wrong steps, judged by their states."""
  others = (optax.LookaheadState, optax.contrib.SAMState)
  for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, others)):
    if isinstance(node, optax.LookaheadState):
      raise ValueError(
        "optax.lookahead updates a pair of parameters, optax.LookaheadParams, and "
        "forwards no extra arguments, so it works only in your own loop; use the "
        "optimizer that it wraps"
      )
    if isinstance(node, optax.contrib.SAMState):
      raise ValueError(
        "optax.contrib.sam does not take value= and grad_fn= as other links do; use "
        "optax.chain(jsharp.sam(rho), optimizer)"
      )


def _check_order(
  optimizer: optax.GradientTransformationExtraArgs, params: Params, opt_state: Any
) -> None:
  """Rejects SAM links that are not in front of the link that makes a step."""
  wrong = ""
  for chain in _chains(opt_state):
    is_sharp = [isinstance(link, SharpnessAwareState | LookState) for link in chain]
    if is_sharp[-1:] == [True]:
      wrong = (
        "the last link of the optimizer is SAM, which returns a gradient that nothing "
        "turns into a step: the loss would rise"
      )
    elif any(is_sharp[1:]) and _perturbs_downhill(optimizer, params):
      wrong = (
        "a link in front of SAM turns the gradient into a step, so the perturbation "
        "would go downhill"
      )
  if wrong:
    raise ValueError(
      f"{wrong}. Put SAM in front: "
      "optax.chain(jsharp.sam(rho), optax.adamw(learning_rate))"
    )


def _chains(state: Any) -> list[list[Any]]:
  """The states of an optimizer's links in order, for every chain within it."""
  for wrapped in ("inner_state", "inner_opt_state"):
    if hasattr(state, wrapped):
      return _chains(getattr(state, wrapped))
  if isinstance(state, optax.PartitionState):
    return [chain for part in state.inner_states.values() for chain in _chains(part)]
  if isinstance(state, collections.OrderedDict):  # optax.named_chain
    state = tuple(state.values())
  if type(state) is not tuple:
    return [[state]]
  found: list[list[Any]] = [[]]
  for part in state:
    found = [chain + more for chain in found for more in _chains(part)]
  return found


def _perturbs_downhill(
  optimizer: optax.GradientTransformationExtraArgs, params: Params
) -> bool:
  """Whether the optimizer's SAM link asks for a gradient where the loss is lower.

  A state does not show the sign of a step, so the optimizer is tried on a linear
  function of a few dimensions and on its negative: noise moves the same way in both.
  """
  with jax.ensure_compile_time_eval(), jax.disable_jit():

    def one(x: Any) -> jax.Array:
      return jnp.ones((1,) * jnp.ndim(x), jnp.result_type(x))

    point = jax.tree.map(one, params)
    try:
      return all(_rise(optimizer, point, slope) < 0 for slope in (1, -1))
    except Exception:  # A link that cannot run in isolation is not judged.
      return False


def _rise(
  optimizer: optax.GradientTransformationExtraArgs, point: Params, slope: int
) -> float:
  """How much higher a linear function is where the optimizer asks for its gradient."""
  grads = jax.tree.map(lambda x: slope * jnp.ones_like(x), point)
  asked: list[Params] = []

  def value_fn(at: Params, **extra: Any) -> jax.Array:
    del extra
    return sum((slope * x.sum().real for x in jax.tree.leaves(at)), jnp.zeros(()))

  def grad_fn(at: Params) -> Params:
    asked.append(at)
    return grads

  optimizer.update(
    grads,
    optimizer.init(point),
    point,
    value=value_fn(point),
    grad=grads,
    value_fn=value_fn,
    grad_fn=grad_fn,
  )
  return sum(float(value_fn(at) - value_fn(point)) for at in asked)
