"""Class labels as targets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_known(labels: Any) -> Any:
  """Labels as an array whose values stay known inside `jit`, if they are known.

  Example:
    >>> as_known([0, 1]).tolist()
    [0, 1]
  """
  return labels if isinstance(labels, jax.Array) else np.asarray(labels)


def one_hot(labels: jax.Array, way: int, dtype: Any = jnp.float32) -> jax.Array:
  """One-hot encodes labels; a label out of range is an error or NaN.

  `jax.nn.one_hot` returns a row of zeros for a label out of range, which gives a loss
  of zero: a task with more classes than the model has outputs would look learned.
  Outside `jit`, `vmap` and similar transformations, where values are known, such a
  label is an error. Inside them its row is NaN, and so are the loss and its gradient.

  Args:
    labels: `[num_examples]` integers.
    way: the number of classes.
    dtype: floating-point.

  Returns:
    `[num_examples, way]` of that dtype.

  Raises:
    ValueError: if the labels are not integers, or one of them is known to be outside
      `[0, way)`.

  Example:
    >>> jax.jit(lambda labels: one_hot(labels, 2))(jnp.arange(3)).tolist()
    [[1.0, 0.0], [0.0, 1.0], [nan, nan]]
    >>> one_hot(jnp.array([0, 5]), 5)
    Traceback (most recent call last):
    ValueError: labels must be in [0, 5), the classes of the model, got 0 to 5; ...
  """
  if jnp.issubdtype(labels.dtype, jnp.inexact):
    raise ValueError(
      f"labels must be integers, the index of each example's class, got {labels.dtype}"
    )
  if not isinstance(labels, jax.core.Tracer) and labels.size:
    # NumPy, because inside jit operations of jnp are traced even on known arrays.
    numbers = np.asarray(labels)
    low, high = numbers.min(), numbers.max()
    if low < 0 or high >= way:
      raise ValueError(
        f"labels must be in [0, {way}), the classes of the model, got {low} to {high}; "
        "number the classes from 0, and give the model as many outputs as there are"
      )
  # `way` may exceed the range of a narrow dtype.
  if labels.dtype.itemsize < 4:
    labels = labels.astype(jnp.int32)
  known = (labels >= 0) & (labels < way)
  # Multiplying the loss by NaN would not work: compiled code folds zero times NaN to 0.
  rows = jax.nn.one_hot(labels, way, dtype=dtype)
  return jnp.where(known[:, None], rows, jnp.nan)
