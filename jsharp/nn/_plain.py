"""Functions without this package's primitives, for tools that know only JAX's.

The layers here define their own JAX primitives, so that every order of derivative is
fast. A converter to another format (such as the ONNX export of `jsharp.learners`) does
not know these primitives. `in_plain_operations` replaces each one by plain arithmetic.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

ARITHMETIC: dict[core.Primitive, Callable[..., Any]] = {}
"""The function that computes each primitive; filled where primitives are defined."""

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters that hold the jaxpr of a call, a `jax.jit` or a custom derivative."""

_LOOPS = ("cond", "scan", "while")


def in_plain_operations(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function in JAX's own primitives, with JAX's own derivatives.

  Args:
    function: a pure function of arrays. Nothing is replaced inside its loops and
      branches.

  Returns:
    A function of the same arguments.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp.nn import max_pool
    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> str(jax.make_jaxpr(max_pool)(x)).count("max_pool")
    1
    >>> str(jax.make_jaxpr(in_plain_operations(max_pool))(x)).count("max_pool")
    0
    >>> in_plain_operations(max_pool)(x).ravel().tolist()
    [3.0]
  """

  def plain(*args: Any) -> Any:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)

  return plain


def _evaluate(jaxpr: Any, constants: Any, arguments: Any) -> list[Any]:
  values = dict(zip(jaxpr.constvars, constants, strict=True))
  values |= dict(zip(jaxpr.invars, arguments, strict=True))

  def read(atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else values[atom]

  for equation in jaxpr.eqns:
    inputs = [read(atom) for atom in equation.invars]
    outputs = _outputs(equation, inputs)
    values |= dict(zip(equation.outvars, outputs, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _outputs(equation: Any, inputs: list[Any]) -> list[Any]:
  primitive, params = equation.primitive, equation.params
  if primitive in ARITHMETIC:
    return [ARITHMETIC[primitive](*inputs, **params)]
  called = next((params[name] for name in _CALLS if name in params), None)
  if called is not None and primitive.name not in _LOOPS:
    return _evaluate(
      getattr(called, "jaxpr", called), getattr(called, "consts", ()), inputs
    )
  outputs = primitive.bind(*inputs, **primitive.get_bind_params(params))
  return outputs if primitive.multiple_results else [outputs]
