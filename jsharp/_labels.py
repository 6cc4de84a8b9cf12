"""Labels of classes as targets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_known(labels: Any) -> Any:
  """Labels as an array whose values stay known inside of `jit`, if they are.

  Example:
    >>> as_known([0, 1]).tolist()
    [0, 1]
  """
  return labels if isinstance(labels, jax.Array) else np.asarray(labels)


def one_hot(labels: jax.Array, way: int, dtype: Any = jnp.float32) -> jax.Array:
  """Labels as targets: a 1 in the column of the class, and no label left out unseen.

  A row of zeros, as `jax.nn.one_hot` gives for a label that is no class, is a loss of
  zero: a task of more classes than the model has outputs would look learned. Values
  are known outside of `jit`, `vmap` and their kin, where such a label is an error.
  Inside, its row is NaN, and so are the loss and its gradient.

  Args:
    labels: `[num_examples]` integers.
    way: the number of classes.
    dtype: floating-point.

  Returns:
    `[num_examples, way]` of that dtype.

  Raises:
    ValueError: if the labels are no integers, or one of them is known to be negative or
      `way` or more.

  Example:
    >>> jax.jit(lambda labels: one_hot(labels, 2))(jnp.arange(3)).tolist()
    [[1.0, 0.0], [0.0, 1.0], [nan, nan]]
    >>> one_hot(jnp.array([0, 5]), 5)
    Traceback (most recent call last):
    ValueError: labels must be in [0, 5), the classes of the model, got 0 to 5; ...
  """
  if jnp.issubdtype(labels.dtype, jnp.inexact):
    raise ValueError(
      f"labels must be integers, the number of each example's class, got {labels.dtype}"
    )
  if not isinstance(labels, jax.core.Tracer) and labels.size:
    # NumPy, as inside of jit the operations of jnp are traced on known arrays too.
    numbers = np.asarray(labels)
    low, high = numbers.min(), numbers.max()
    if low < 0 or high >= way:
      raise ValueError(
        f"labels must be in [0, {way}), the classes of the model, got {low} to {high}; "
        "number the classes from 0, and give the model as many outputs as there are"
      )
  # Numbers of a class may be more than a narrow dtype holds.
  if labels.dtype.itemsize < 4:
    labels = labels.astype(jnp.int32)
  known = (labels >= 0) & (labels < way)
  # A factor NaN beside the loss would not do: compiled, zero times it is zero.
  rows = jax.nn.one_hot(labels, way, dtype=dtype)
  return jnp.where(known[:, None], rows, jnp.nan)
