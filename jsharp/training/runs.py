"""Whole runs as descriptions: data, tasks, learner, loop and machine."""

import dataclasses
from typing import Any, ClassVar

from jsharp.algorithms import Algorithm, OuterLoop, SecondOrderOptions, Sharpness
from jsharp.algorithms.supervised import OrdinaryTraining
from jsharp.analysis.hessian import HessianOptions
from jsharp.data import ImageSource, LabelledSource, Preparation
from jsharp.data.sinusoid import SineTasks
from jsharp.data.tasks import Tasks
from jsharp.models import ClassifierNetwork, Network
from jsharp.options import Options, Role, option, select
from jsharp.perturbations import SharpOptimizer
from jsharp.training.options import (
  Files,
  Machine,
  MetaTraining,
  Placement,
  Run,
  Testing,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyRun(Options):
  """What every run is made of: where it lies and what it runs on."""

  kind: ClassVar[str] = "run"

  run: Run = option(role=Role.MACHINE)
  machine: Machine = option(role=Role.MACHINE)

  @property
  def num_tasks(self) -> int | None:
    """Tasks per step that devices can share; None if there is nothing to share."""
    return None

  def asked(self) -> dict[str, Any]:
    """What the result of the finished run has to report, for being what is asked."""
    return {}

  def comparable(self) -> dict[str, Any]:
    """What runs must share to be compared, by name: how they are tested."""
    return select(self, lambda field: field.role is Role.TESTING and field.identity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaRun(AnyRun):
  """What every run that meta-learns is made of."""

  algorithm: Algorithm = option()
  sharpness: Sharpness = option()
  network: Network = option()
  outer: OuterLoop = option(role=Role.TRAINING)
  training: MetaTraining = option(role=Role.TRAINING)
  testing: Testing = option(role=Role.TESTING)

  def complete(self) -> None:
    """Refuses a memory budget that decides on what the algorithm says."""
    algorithm, budget = self.algorithm, self.machine.memory_budget
    mode = "stored"
    if isinstance(algorithm, SecondOrderOptions):
      mode = algorithm.second_order
    if budget is not None and mode != "stored":
      raise ValueError(
        f"--memory_budget decides on --second_order, got --second_order={mode} too; "
        "drop one of them"
      )

  @property
  def num_tasks(self) -> int:
    return self.training.num_tasks

  def asked(self) -> dict[str, Any]:
    return {
      "num_steps": self.training.num_steps,
      "num_eval_tasks": self.testing.eval_tasks,
    }

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrdinaryRun(AnyRun):
  """A run of ordinary classification, on one device."""

  data: LabelledSource = option(role=Role.TESTING)
  files: Files = option(Files(), role=Role.MACHINE)
  preparation: Preparation = option(Preparation(), role=Role.TRAINING)
  algorithm: SharpOptimizer = option(role=Role.TRAINING)
  network: ClassifierNetwork = option()
  training: OrdinaryTraining = option(OrdinaryTraining(), role=Role.TRAINING)
  hessian: HessianOptions = option(HessianOptions(), role=Role.TESTING)
  machine: Machine = option(Machine(), role=Role.MACHINE)
