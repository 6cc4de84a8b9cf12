"""The linear layer of few-shot networks."""

from typing import Any

from flax import linen as nn

from jsharp.models.initial import glorot_uniform


def dense(features: int, name: str, dtype: Any) -> nn.Dense:
  """A linear layer, initialised as in the papers: Glorot uniform, bias zero.

  Example:
    >>> import jax.numpy as jnp
    >>> dense(5, "head", jnp.float32).features
    5
  """
  return nn.Dense(features, name=name, kernel_init=glorot_uniform, param_dtype=dtype)
