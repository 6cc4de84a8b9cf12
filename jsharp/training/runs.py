"""Whole runs as descriptions: data, tasks, learner, loop and machine."""

import dataclasses
from typing import Any, ClassVar

from jsharp.algorithms import Algorithm, OuterLoop, Sharpness
from jsharp.data import ImageSource
from jsharp.data.sinusoid import SineTasks
from jsharp.data.tasks import Tasks
from jsharp.models import Network
from jsharp.options import Options, Role, option, select
from jsharp.training.options import Machine, MetaTraining, Placement, Run, Testing


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeRun(Options):
  """What every run is, as `jsharp.training.read_run` reads it."""

  kind: ClassVar[str] = "run"

  def comparable(self) -> dict[str, Any]:
    """What runs must share to be compared, by name: how they are tested."""
    return select(self, lambda field: field.role is Role.TESTING and field.identity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaRun(WholeRun):
  """What every run that meta-learns is made of."""

  algorithm: Algorithm = option()
  sharpness: Sharpness = option()
  network: Network = option()
  outer: OuterLoop = option(role=Role.TRAINING)
  training: MetaTraining = option(role=Role.TRAINING)
  testing: Testing = option(role=Role.TESTING)
  run: Run = option(role=Role.MACHINE)
  machine: Machine = option(role=Role.MACHINE)

  def comparable(self) -> dict[str, Any]:
    """What runs must share to be compared: how they are tested, and their network."""
    network = select(self.network, lambda field: True, "network.")
    return {**super().comparable(), "network": self.network.name, **network}

  def phases(self) -> list[tuple[float, float]]:
    """`(end, gradients per task)` of each phase, the mean over the kinds of task."""
    each = [
      self.algorithm.phases(support, query, self.sharpness)
      for support, query in self.examples()
    ]
    return [
      (same[0][0], sum(cost for _, cost in same) / len(same))
      for same in zip(*each, strict=True)
    ]

  def examples(self) -> list[tuple[int, int]]:
    """Support and query examples of each kind of training task."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotRun(MetaRun):
  """A run on few-shot tasks of images."""

  name: ClassVar[str] = "few_shot"

  data: ImageSource = option(role=Role.TESTING)
  test_data: ImageSource | None = option(None, role=Role.TESTING)
  placement: Placement = option(Placement(), role=Role.MACHINE)
  tasks: Tasks = option(role=Role.TESTING)

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SineRun(MetaRun):
  """A run on sine waves."""

  name: ClassVar[str] = "sines"

  tasks: SineTasks = option(role=Role.TESTING)

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()
