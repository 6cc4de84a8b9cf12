"""Outer updates of control: the base class of their options."""

import dataclasses
from typing import ClassVar

import optax

from jsharp.control._held import Build
from jsharp.control.policy_loss import PolicyLoss
from jsharp.core.execution import Execution
from jsharp.options import Options, Role
from jsharp.types import MetaAlgorithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterUpdate(Options):
  """The options of an outer update: how a meta-step uses its trajectories.

  Class attributes:
    steps_itself: whether it takes the step itself, instead of the outer optimizer.
  """

  kind: ClassVar[str] = "outer update"
  role: ClassVar[Role] = Role.TRAINING
  steps_itself: ClassVar[bool] = False

  def algorithm(
    self,
    build: Build,
    loss_fn: PolicyLoss,
    outer_optimizer: optax.GradientTransformation,
    *,
    execution: Execution = Execution(),
  ) -> MetaAlgorithm:
    """The algorithm with this outer loop."""
    raise NotImplementedError

  def meta_gradients(self) -> int:
    """The cost of a meta-step, in steps of the outer optimizer."""
    return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(OuterUpdate):
  """One step of the outer optimizer on fresh trajectories."""

  name: ClassVar[str] = "one_step"

  def algorithm(
    self,
    build: Build,
    loss_fn: PolicyLoss,
    outer_optimizer: optax.GradientTransformation,
    *,
    execution: Execution = Execution(),
  ) -> MetaAlgorithm:
    return build(outer_optimizer)
