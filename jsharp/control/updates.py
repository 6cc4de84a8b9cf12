"""How the outer loop of control uses what was rolled out: the base of descriptions."""

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
  """What a meta-step does with its trajectories.

  Class attributes:
    steps_itself: whether it takes the step itself, in place of the outer optimizer.
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
    """What a meta-step costs, in those of one step of the outer optimizer."""
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
