"""Initial parameters without one compilation per shape.

XLA compiles a program for a random array of every new shape, and a network has between
ten and two hundred shapes. Here numbers are drawn in arrays of a few sizes, and each
shape uses the first entries of one: entry i of a draw does not depend on the array's
size. The values equal those of Flax's initialisers, normal ones up to rounding.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

_SMALLEST = 4096
_FACTOR = 8  # Ratio of successive sizes.


def initialised(module: nn.Module, key: jax.Array, *inputs: Any) -> Any:
  """`module.init(key, *inputs)`, without computing the outputs.

  Args:
    module: a Linen module.
    key: random key.
    inputs: the arguments of the module.

  Returns:
    The variables, bitwise equal to those of `module.init`.

  Example:
    >>> from jsharp.models import MLP
    >>> made = initialised(MLP((3, 2)), jax.random.key(0), np.ones((1, 5), np.float32))
    >>> made["params"]["dense_0"]["kernel"].shape
    (5, 3)
  """

  def init(key: jax.Array) -> Any:
    return module.init(key, *inputs)

  try:
    traced, shapes = jax.make_jaxpr(init, return_shape=True)(key)
  except jax.errors.JAXTypeError:  # The module depends on values and cannot be traced.
    return init(key)
  found = jaxpr_as_fun(_without_outputs(traced))(key)
  return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _without_outputs(traced: ClosedJaxpr) -> ClosedJaxpr:
  """Only the equations that the results need."""
  needed, kept = _variables(traced.jaxpr.outvars), []
  for equation in reversed(traced.jaxpr.eqns):
    if not needed.isdisjoint(equation.outvars):
      kept.append(equation)
      needed |= _variables(equation.invars)
  return ClosedJaxpr(traced.jaxpr.replace(eqns=kept[::-1]), traced.consts)


def _variables(atoms: Sequence[Any]) -> set[Var]:
  return {each for each in atoms if isinstance(each, Var)}


@functools.partial(jax.jit, static_argnames=("size", "dtype", "normal"))
def _draw(key: jax.Array, *, size: int, dtype: Any, normal: bool) -> jax.Array:
  if normal:
    return jax.random.normal(key, (size,), dtype)
  return jax.random.uniform(key, (size,), dtype, -1)


@functools.partial(jax.jit, static_argnames="shape")
def _scaled(values: jax.Array, scale: Any, *, shape: tuple[int, ...]) -> jax.Array:
  return values[: math.prod(shape)].reshape(shape) * scale


def _drawn(
  key: jax.Array, shape: Sequence[int], dtype: Any, variance: float, *, normal: bool
) -> jax.Array:
  dtype = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
  size = _SMALLEST
  while size < math.prod(shape):
    size *= _FACTOR
  square = np.asarray(variance, dtype) * np.asarray(1 if normal else 3, dtype)
  scale = np.sqrt(square).astype(dtype)
  values = _draw(key, size=size, dtype=dtype, normal=normal)
  return _scaled(values, scale, shape=tuple(shape))


def glorot_uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
  """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010).

  Args:
    key: random key.
    shape: `[..., inputs, outputs]`.
    dtype: a floating one.

  Example:
    >>> glorot_uniform(jax.random.key(0), (2, 4), np.float32).shape
    (2, 4)
  """
  field = math.prod(shape[:-2])
  variance = 1 / ((field * shape[-2] + field * shape[-1]) / 2)
  return _drawn(key, shape, dtype, variance, normal=False)


def he_normal_of_outputs(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
  """Normal with variance 2 / fan_out (He et al. 2015).

  Args:
    key: random key.
    shape: `[..., inputs, outputs]`.
    dtype: a floating one.

  Example:
    >>> he_normal_of_outputs(jax.random.key(0), (3, 3, 1, 8), np.float32).shape
    (3, 3, 1, 8)
  """
  variance = 2 / (math.prod(shape[:-2]) * shape[-1])
  return _drawn(key, shape, dtype, variance, normal=True)
