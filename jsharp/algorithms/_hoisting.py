"""Loop-invariant code motion for differentiated loops."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def hoisted(fn: Callable[[Any], Any], argument: Any) -> Callable[[Any], Any]:
  """Evaluates once those parts of a function that do not depend on its argument.

  A loop that calls the result repeats only what depends on the argument. XLA does the
  same in the forward pass of an unrolled loop, but not in its derivative, where every
  step sends its own cotangent back through the common part. Here the sum of the
  cotangents goes back once. A call to a `jax.jit` function is one part: it is repeated
  as a whole if any of its arguments depends on `argument`.

  Args:
    fn: a pure function; the values it closes over may be traced or differentiated.
    argument: a pytree of arrays with the shapes and dtypes of later arguments.

  Returns:
    `rest(argument)`, equal to `fn(argument)` for arguments of these shapes.

  Example:
    >>> import jax.numpy as jnp
    >>> fn = lambda x: x + jnp.sin(jnp.ones(3))
    >>> rest = hoisted(fn, jnp.zeros(3))
    >>> "sin" in str(jax.make_jaxpr(fn)(jnp.ones(3)))
    True
    >>> "sin" in str(jax.make_jaxpr(rest)(jnp.ones(3)))
    False
    >>> bool((rest(jnp.ones(3)) == fn(jnp.ones(3))).all())
    True
  """
  closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(argument)
  jaxpr, leaves = closed.jaxpr, jax.tree.leaves(argument)

  # An equation waits for the argument if one of its inputs does.
  waiting, known, remaining = set(jaxpr.invars), [], []
  for equation in jaxpr.eqns:
    if any(x in waiting for x in equation.invars if not isinstance(x, core.Literal)):
      waiting.update(equation.outvars)
      remaining.append(equation)
    else:
      known.append(equation)
  made = [x for equation in known for x in equation.outvars]
  read = {
    x
    for inputs in (*(equation.invars for equation in remaining), jaxpr.outvars)
    for x in inputs
    if not isinstance(x, core.Literal)
  }
  shared = [x for x in made if x in read]

  debug = jaxpr.debug_info.with_unknown_names()
  before = jaxpr.replace(eqns=known, outvars=shared, debug_info=debug)
  after = jaxpr.replace(
    eqns=remaining, invars=[*shared, *jaxpr.invars], debug_info=debug
  )
  values = jax.core.eval_jaxpr(before, closed.consts, *leaves)

  def rest(argument: Any) -> Any:
    leaves = jax.tree.leaves(argument)
    outputs = jax.core.eval_jaxpr(after, closed.consts, *values, *leaves)
    return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

  return rest
