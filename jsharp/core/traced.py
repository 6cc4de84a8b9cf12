"""Functions that are traced once and called several times."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


class Traced:
  """A traced function of one pytree of arrays.

  Args:
    fn: the function.
    point: where it is traced; arrays, or their shapes and dtypes.

  Attributes:
    result: the shapes and dtypes that it returns.
    has_forward_mode: whether it has a forward-mode derivative. A `jax.custom_vjp` has
      none; inside `jax.jit` JAX reports this too late to choose another way: when the
      derivative is compiled, not when it is traced.
    returns_foreign: whether it returns a value that it neither was given nor computed:
      one that it closes over, or one that exists only inside a conditional or a loop of
      it, which cannot be used outside.

  Example:
    >>> import jax.numpy as jnp
    >>> double = Traced(lambda x: 2 * x, jnp.float32(1.0))
    >>> float(double(jnp.float32(3.0))), double.has_forward_mode
    (6.0, True)
  """

  def __init__(self, fn: Callable[[Any], Any], point: Any):
    self._closed, self.result = jax.make_jaxpr(fn, return_shape=True)(point)
    jaxpr = self._closed.jaxpr
    self.has_forward_mode = not _has_custom_vjp(jaxpr)
    own = {*jaxpr.invars}
    own.update(variable for equation in jaxpr.eqns for variable in equation.outvars)
    self.returns_foreign = any(
      not isinstance(variable, core.Literal) and variable not in own
      for variable in jaxpr.outvars
    )

  def __call__(self, point: Any) -> Any:
    """What the function returns at another point."""
    outputs = jax.core.eval_jaxpr(
      self._closed.jaxpr, self._closed.consts, *jax.tree.leaves(point)
    )
    return jax.tree.unflatten(jax.tree.structure(self.result), outputs)


def _has_custom_vjp(jaxpr: Any) -> bool:
  for equation in jaxpr.eqns:
    if equation.primitive.name.startswith("custom_vjp_call"):
      return True
    # A conditional holds a tuple of jaxprs, a loop one jaxpr with its constants.
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(inner) and _has_custom_vjp(getattr(inner, "jaxpr", inner)):
        return True
  return False


def _is_jaxpr(value: Any) -> bool:
  return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
