"""Networks as Linen modules, and the bridge to pure functions."""

from jsharp.models._options import ClassifierNetwork, Network
from jsharp.models.attention import AttentionLearner, as_learner_functions
from jsharp.models.context import as_context_functions
from jsharp.models.conv4 import ContextConv4, Conv4
from jsharp.models.functions import (
  all_but_norm,
  as_functions,
  first_outputs,
  norm_mask,
  part_mask,
  with_statistics,
)
from jsharp.models.mlp import MLP, ContextMLP
from jsharp.models.resnet import ResNet, WideResNet

__all__ = [
  "MLP",
  "AttentionLearner",
  "ClassifierNetwork",
  "ContextConv4",
  "ContextMLP",
  "Conv4",
  "Network",
  "ResNet",
  "WideResNet",
  "all_but_norm",
  "as_context_functions",
  "as_functions",
  "as_learner_functions",
  "first_outputs",
  "norm_mask",
  "part_mask",
  "with_statistics",
]
