"""The plain gradient, as an alternative to the sharpness-aware optimizers."""

import dataclasses
from typing import ClassVar

import optax

from jsharp.perturbations._options import SharpOptimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(SharpOptimizer):
  """The optimizer without perturbation, one gradient per step.

  Example:
    >>> SGD().num_gradients(10, steps_per_epoch=5)
    10
  """

  name: ClassVar[str] = "sgd"

  def wrap(
    self, optimizer: optax.GradientTransformation, *, steps_per_epoch: int
  ) -> optax.GradientTransformation:
    return optimizer
