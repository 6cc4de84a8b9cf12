"""Counts the floating-point operations of a traced function's products."""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any
from unittest import mock

import jax

from jsharp.core import adaptation
from jsharp.nn import _convolved_map

_CONVOLUTIONS = ("conv2d", "conv2d_input_gradient", "conv2d_weight_gradient")


def count(function: Callable[..., Any], *arguments: Any) -> int:
  """Multiplications and additions of its convolutions and matrix products.

  A convolution and its derivatives count as direct ones, however they are computed.
  Recomputation to save memory (a first layer's map, inner steps) counts once. A loop
  counts as often as it runs, a conditional as its most expensive branch.

  Args:
    function: the function to trace.
    *arguments: arrays or their shapes.

  Example:
    >>> import jax.numpy as jnp
    >>> count(jnp.matmul, jnp.ones([2, 3]), jnp.ones([3, 4]))
    48
  """
  once = mock.patch.object(_convolved_map, "is_worthwhile", return_value=False)
  stored = mock.patch.object(adaptation, "_computed_again", lambda step: step)
  with once, stored:
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    shapes = [v.aval.shape for v in equation.invars]
    out = equation.outvars[0].aval.shape if equation.outvars else ()
    if name in _CONVOLUTIONS:
      total += _convolution(name, shapes, out, params["geometry"])
    elif name == "dot_general":
      contracted = params["dimension_numbers"][0][0]
      total += 2 * prod(out) * prod(shapes[0][axis] for axis in contracted)
    elif name == "cond":
      total += max(map(_of, _jaxprs(params)))
    else:
      total += params.get("length", 1) * sum(map(_of, _jaxprs(params)))
  return total


def _convolution(name: str, shapes: list[Any], out: Any, geometry: Any) -> int:
  groups, n = shapes[0][:2]
  *_, c, o = out if name == "conv2d_weight_gradient" else shapes[1]
  return 2 * groups * n * c * o * prod(geometry.kernel) * prod(geometry.out)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
  for leaf in jax.tree.leaves(params, is_leaf=_is_jaxpr):
    if _is_jaxpr(leaf):
      yield getattr(leaf, "jaxpr", leaf)


def _is_jaxpr(value: Any) -> bool:
  return hasattr(value, "eqns")
