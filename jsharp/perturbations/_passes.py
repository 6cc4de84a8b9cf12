"""A loss as a function of its variables that can be called more than once."""

import sys
from collections.abc import Callable
from typing import Any

import jax

from jsharp import tree as trees
from jsharp.types import Params


def passes(
  loss_fn: Callable[..., Any], params: Params, args: Any, kwargs: Any
) -> tuple[Params, Callable[[Params], Any], Callable[[Any], None]]:
  """Makes a loss a pure function of its differentiable leaves.

  A Flax NNX model mutates itself: averages of batch normalisation, the count of a
  random generator. Every pass gets its own copy of model and arguments in the same
  initial state, so two passes draw the same dropout mask. The caller decides which
  pass's mutations to keep.

  Args:
    loss_fn: `loss_fn(params, *args, **kwargs)`.
    params: any pytree, or an NNX model, whose variables are then its `nnx.Param`s.
    args: further arguments; they may contain NNX objects too.
    kwargs: likewise.

  Returns:
    The variables; `run(variables) -> (result of loss_fn, written)`; and
    `keep(written)`, which writes the mutations into `params` and the arguments.

  Example:
    >>> loss_fn = lambda model, x: model[0](x * model[1])
    >>> w, run, keep = passes(loss_fn, [abs, -2.0], (3,), {})
    >>> w, run(w)
    ([None, -2.0], (6.0, None))
  """
  if _is_nnx_model(params):
    return _nnx_passes(loss_fn, params, args, kwargs)
  variables, constants = trees.inexact(params)

  def run(point: Params) -> tuple[Any, None]:
    own_args, own_kwargs = jax.tree.map(lambda x: x, (args, kwargs))
    return loss_fn(trees.join(point, constants), *own_args, **own_kwargs), None

  return variables, run, lambda written: None


def _is_nnx_model(params: Params) -> bool:
  nnx = sys.modules.get("flax.nnx")  # Imported if `params` is an NNX model.
  if nnx is None or not isinstance(params, nnx.Pytree):
    return False

  def is_param(node: Any) -> bool:
    return isinstance(node, nnx.Param)

  return any(map(is_param, jax.tree.leaves(params, is_leaf=is_param)))


def _nnx_passes(
  loss_fn: Callable[..., Any], params: Params, args: Any, kwargs: Any
) -> tuple[Params, Callable[[Params], Any], Callable[[Any], None]]:
  from flax import nnx

  # NNX's own split keeps shared layers shared in every pass.
  graph, weights, rest = nnx.split(params, nnx.Param, ...)  # type: ignore[misc]
  variables, constants = trees.inexact(weights)
  arguments, further = nnx.split((args, kwargs))

  def run(point: Params) -> tuple[Any, Any]:
    own = nnx.merge(graph, trees.join(point, constants), rest, copy=True)
    own_args, own_kwargs = nnx.merge(arguments, further, copy=True)
    found = loss_fn(own, *own_args, **own_kwargs)
    return found, [_state(own), _state((own_args, own_kwargs))]

  def keep(written: Any) -> None:
    for node, state in zip((params, (args, kwargs)), written, strict=True):
      nnx.update(node, state)

  def _state(node: Any) -> Any:
    return nnx.state(node, nnx.All(nnx.Variable, nnx.Not(nnx.Param)))

  return variables, run, keep
