"""Shared by the measures of sharpness: estimates and random probe vectors."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jsharp import tree as trees
from jsharp.types import Params

Loss = Callable[[Params], jax.Array]
"""`loss(params) -> scalar`."""


class Estimate(NamedTuple):
  """A mean over random samples.

  Attributes:
    value: the mean.
    standard_error: the standard error of the mean, from the spread of the samples.
  """

  value: float
  standard_error: float


def mean_estimate(samples: Sequence[float]) -> Estimate:
  """The mean of independent samples with its standard error.

  Args:
    samples: at least two.

  Returns:
    The mean and its standard error.

  Example:
    >>> mean_estimate([1.0, 3.0])
    Estimate(value=2.0, standard_error=1.0)
  """
  error = np.std(samples, ddof=1) / math.sqrt(len(samples))
  return Estimate(float(np.mean(samples)), float(error))


def as_partial(loss: Callable[..., Any]) -> Any:
  """Wraps a function as a pytree, so that it can be an argument of compiled code.

  Args:
    loss: any function; a `jax.tree_util.Partial` is returned unchanged.

  Returns:
    A `jax.tree_util.Partial`.

  Example:
    >>> as_partial(abs)(-2.0)
    2.0
  """
  return loss if isinstance(loss, Partial) else Partial(loss)


def of_variables(
  loss: Callable[..., Any], params: Params
) -> tuple[Callable[..., Any], Params]:
  """A loss as a function of only the leaves that have a derivative.

  Args:
    loss: `loss(params, ...)`.
    params: any pytree.

  Returns:
    A loss, and the parameters with None in place of the leaves that cannot change:
    integers, keys, functions. If there are no such leaves, `loss` itself, so that its
    compilation is reused.

  Example:
    >>> loss, w = of_variables(lambda model: model[0](model[1]), [abs, -2.0])
    >>> w, loss(w)
    ([None, -2.0], 2.0)
  """
  variables, constants = trees.inexact(params)
  if not jax.tree.leaves(constants):
    return loss, params
  return lambda point, *rest: loss(trees.join(point, constants), *rest), variables


def refuse_complex(params: Params) -> None:
  """Rejects complex leaves, since a probe would measure only their real part.

  Args:
    params: any pytree of arrays.

  Raises:
    ValueError: if a leaf is complex.

  Example:
    >>> refuse_complex({"w": jnp.ones(3), "z": jnp.array(1j)})
    Traceback (most recent call last):
    ValueError: params['z'] is complex64, ...
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if jnp.iscomplexobj(leaf):
      raise ValueError(
        f"params{jax.tree_util.keystr(path)} is {leaf.dtype}, but sharpness is "
        "measured for real parameters only; pass the real and imaginary parts as two "
        "leaves"
      )


def random_like(
  draw: Callable[..., jax.Array], key: jax.Array, params: Params
) -> Params:
  """Draws random numbers in the shapes of the parameters.

  Args:
    draw: `draw(key, shape, dtype)`, such as `jax.random.normal`; it draws float32.
    key: the random key for all numbers, which are drawn at once.
    params: the structure, shapes and dtypes; at least one leaf.

  Returns:
    A pytree like `params`.

  Raises:
    ValueError: if a leaf is complex.

  Example:
    >>> random_like(jax.random.normal, jax.random.key(0), {"w": jnp.ones(3)})["w"].shape
    (3,)
  """
  refuse_complex(params)
  leaves, structure = jax.tree.flatten(params)
  ends = np.cumsum([leaf.size for leaf in leaves])
  # One draw: a generator for every leaf would take seconds to compile.
  numbers = draw(key, (int(ends[-1]),), jnp.float32)
  parts = jnp.split(numbers, ends[:-1])
  drawn = [
    part.reshape(leaf.shape).astype(leaf.dtype)
    for part, leaf in zip(parts, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, drawn)
