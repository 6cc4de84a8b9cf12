"""Whole runs as descriptions: data, tasks, learner, loop and machine."""

import dataclasses

from jsharp.algorithms import Algorithm, OuterLoop, Sharpness
from jsharp.algorithms.supervised import OrdinaryTraining
from jsharp.analysis.hessian import HessianOptions
from jsharp.data import ImageSource, LabelledSource, Preparation
from jsharp.data.sinusoid import SineTasks
from jsharp.data.tasks import Tasks
from jsharp.models import ClassifierNetwork, Network
from jsharp.options import Options, Role, option
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
class MetaRun(Options):
  """What every run that meta-learns is made of."""

  algorithm: Algorithm = option()
  sharpness: Sharpness = option()
  network: Network = option()
  outer: OuterLoop = option(role=Role.TRAINING)
  training: MetaTraining = option(role=Role.TRAINING)
  testing: Testing = option(role=Role.TESTING)
  run: Run = option(role=Role.MACHINE)
  machine: Machine = option(role=Role.MACHINE)

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

  data: ImageSource = option(role=Role.TESTING)
  test_data: ImageSource | None = option(None, role=Role.TESTING)
  placement: Placement = option(Placement(), role=Role.MACHINE)
  tasks: Tasks = option(role=Role.TESTING)

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SineRun(MetaRun):
  """A run on sine waves."""

  tasks: SineTasks = option(role=Role.TESTING)

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrdinaryRun(Options):
  """A run of ordinary classification."""

  data: LabelledSource = option(role=Role.TESTING)
  files: Files = option(Files(), role=Role.MACHINE)
  preparation: Preparation = option(Preparation(), role=Role.TRAINING)
  algorithm: SharpOptimizer = option(role=Role.TRAINING)
  network: ClassifierNetwork = option()
  training: OrdinaryTraining = option(OrdinaryTraining(), role=Role.TRAINING)
  hessian: HessianOptions = option(HessianOptions(), role=Role.TESTING)
  run: Run = option(role=Role.MACHINE)
  machine: Machine = option(Machine(), role=Role.MACHINE)
