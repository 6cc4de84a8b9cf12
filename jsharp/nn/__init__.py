"""Layers whose derivatives of every order are correct and fast.

Convolution, max-pooling and normalisation, as functions and Flax Linen modules.
"""

from jsharp.nn.batch_norm import BatchNorm
from jsharp.nn.convolution import conv2d
from jsharp.nn.frozen_norm import FrozenBatchNorm
from jsharp.nn.group_norm import GroupNorm
from jsharp.nn.pooling import max_pool
from jsharp.nn.running_norm import RunningBatchNorm

__all__ = [
  "BatchNorm",
  "FrozenBatchNorm",
  "GroupNorm",
  "RunningBatchNorm",
  "conv2d",
  "max_pool",
]
