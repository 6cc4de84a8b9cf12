"""Symmetric label noise at a given rate."""

from typing import Any

import jax
import jax.numpy as jnp


def corrupt(
  key: jax.Array,
  labels: jax.Array,
  rate: Any,
  num_classes: Any,
  *,
  other_classes_only: bool = False,
) -> jax.Array:
  """Replaces a fraction of the labels by random labels.

  Exactly `round(rate * num_labels)` labels, chosen uniformly, are replaced by labels
  drawn uniformly **from all classes, including the true one**. One in `num_classes` of
  these is correct by chance, so at a rate of 0.8 and with 10 classes 72 % of all labels
  are wrong. With `other_classes_only` they are drawn from the other classes, and the
  rate is the fraction of wrong labels. (Foret et al. 2021 write that a fraction of the
  labels is "randomly flipped" and do not say which of the two.)

  Args:
    key: decides which labels are replaced and by which classes.
    labels: `[num_labels]` integers in `[0, num_classes)`; use `vmap` for several tasks.
    rate: the fraction of labels that is replaced, from 0 to 1; may be traced.
    num_classes: the number of classes; may be traced.
    other_classes_only: whether to exclude the true class from the draw.

  Returns:
    An array like `labels`.

  Raises:
    ValueError: if `labels` is not a vector of integers, `rate` is a number outside 0 to
      1, or `num_classes` is below 2.

  Example:
    >>> labels = jnp.zeros(10, jnp.int32)
    >>> noisy = corrupt(jax.random.key(0), labels, 0.4, 5, other_classes_only=True)
    >>> int((noisy != labels).sum())
    4
  """
  if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"labels must be a vector of integers, got {labels.dtype} {labels.shape}; use "
      "jax.vmap over further axes"
    )
  if isinstance(rate, int | float) and not 0 <= rate <= 1:
    raise ValueError(f"rate must lie between 0 and 1, got {rate!r}; 0.4 is 40 percent")
  if isinstance(num_classes, int) and num_classes < 2:
    raise ValueError(f"num_classes must be at least 2, got {num_classes}")
  rank_key, draw_key = jax.random.split(key)
  size = labels.shape[0]
  rank = jax.random.permutation(rank_key, size)
  chosen = rank < jnp.round(jnp.asarray(rate, jnp.float32) * size).astype(jnp.int32)
  first = 1 if other_classes_only else 0
  drawn = jax.random.randint(draw_key, (size,), first, num_classes, labels.dtype)
  if other_classes_only:
    drawn = (labels + drawn) % num_classes
  return jnp.where(chosen, drawn, labels)
