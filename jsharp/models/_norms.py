"""The normalisation layers of backbones, by name."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import linen as nn

from jsharp.nn import (
  BatchNorm,
  FrozenBatchNorm,
  GroupNorm,
  RunningBatchNorm,
  max_pool,
)
from jsharp.types import Convolution

Norm = Literal["batch", "group", "layer", "frozen", "running"]
"""Normalisation by the current batch; by groups of 16 channels of each example; by all
channels of each example; by fixed statistics; by the batch in training and by running
averages at evaluation."""


def norm_layer(
  norm: Norm,
  name: str,
  *,
  pool: bool = False,
  convolution: Convolution = "auto",
  scale_init: Callable[..., jax.Array] = nn.initializers.ones,
) -> Callable[[jax.Array, Any], jax.Array]:
  """Creates a normalisation layer inside a compact method.

  Args:
    norm: the kind of normalisation.
    name: the layer's name. It must contain "norm", by which masks find its parameters.
    pool: whether to max-pool 2x2 windows of the result.
    convolution: see `jsharp.nn.BatchNorm`.
    scale_init: initialiser of its scale.

  Returns:
    `layer(x, mode)`. The mode is `num_statistics` for `jsharp.nn.BatchNorm` and `train`
    for `jsharp.nn.RunningBatchNorm`; the other layers ignore it.

  Raises:
    ValueError: if there is no such layer.

  Example:
    >>> norm_layer("median", "norm")
    Traceback (most recent call last):
    ValueError: norm='median'; choose batch, group, layer, frozen or running
  """
  if norm == "batch":
    return BatchNorm(
      name=name, pool=pool, convolution=convolution, scale_init=scale_init
    )
  if norm == "frozen":
    frozen = FrozenBatchNorm(name=name, pool=pool, scale_init=scale_init)
    return lambda x, _: frozen(x)
  pooled = max_pool if pool else lambda x: x
  if norm == "running":
    running = RunningBatchNorm(name=name, scale_init=scale_init)
    return lambda x, train: pooled(running(x, train))
  if norm in ("group", "layer"):
    size = 16 if norm == "group" else None
    group = GroupNorm(name=name, group_size=size, scale_init=scale_init)
    return lambda x, _: pooled(group(x))
  raise ValueError(f"norm={norm!r}; choose batch, group, layer, frozen or running")
