"""Networks as Linen modules, and the bridge to pure functions."""

from jsharp.models.conv4 import Conv4
from jsharp.models.functions import as_functions, norm_mask, part_mask
from jsharp.models.mlp import MLP
from jsharp.models.resnet import ResNet, WideResNet

__all__ = [
  "MLP",
  "Conv4",
  "ResNet",
  "WideResNet",
  "as_functions",
  "norm_mask",
  "part_mask",
]
