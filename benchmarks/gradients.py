"""Meta-gradients as vectors, to compare devices and dtypes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jsharp.types import MetaAlgorithm


def in_dtype(tree: Any, dtype: Any) -> Any:
  """The pytree with its floating-point arrays in a dtype, as NumPy arrays."""

  def convert(x: Any) -> Any:
    x = np.asarray(x)
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(convert, tree)


def meta_gradient(algorithm: MetaAlgorithm) -> Callable[[Any, Any], jax.Array]:
  """`gradient(params, tasks)`, the meta-gradient as a vector.

  Args:
    algorithm: with `optax.sgd(1.0)` as its outer optimizer.
  """

  def gradient(params: Any, tasks: Any) -> jax.Array:
    start = algorithm.init(params)
    state, _ = algorithm.step(start, tasks)
    return ravel_pytree(jax.tree.map(jnp.subtract, start.params, state.params))[0]

  return gradient


def relative_error(found: Any, exact: Any) -> float:
  """The length of the difference of two vectors, relative to the exact one."""
  exact = np.asarray(exact, np.float64)
  difference = np.asarray(found, np.float64) - exact
  return float(np.linalg.norm(difference) / np.linalg.norm(exact))
