"""Whole runs as descriptions: data, tasks, learner, loop and machine."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import jax

from jsharp.algorithms import (
  Algorithm,
  Made,
  OuterLoop,
  SecondOrderOptions,
  Sharpness,
)
from jsharp.algorithms.fine_tuning import FineTuning, Initial
from jsharp.algorithms.supervised import OrdinaryTraining
from jsharp.analysis.hessian import HessianOptions
from jsharp.control import (
  Environment,
  GoalTasks,
  OneStep,
  OuterUpdate,
  PolicyGradient,
)
from jsharp.core.execution import Execution
from jsharp.data import Dataset, ImageSource, LabelledSource, Preparation, Splits
from jsharp.data.placement import load_with_test
from jsharp.data.sinusoid import SineTasks
from jsharp.data.tasks import Tasks
from jsharp.learners import Description, PolicyDescription, check_parts
from jsharp.models import ClassifierNetwork, Network
from jsharp.models.mlp import SineNetwork
from jsharp.models.policy import PolicyNetwork
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
from jsharp.types import Params


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
    """What finished runs must share to be compared, by name: how they are tested."""
    return select(self, lambda field: field.shared and field.identity)


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

  def learner(
    self,
    *,
    problem: Literal["classification", "regression"],
    num_outputs: int,
    input_shape: tuple[int, ...],
    source: ImageSource | None = None,
  ) -> Description:
    """What the run trains, once its inputs are known; see `Description`."""
    return Description(
      algorithm=self.algorithm,
      network=self.network,
      sharpness=self.sharpness,
      outer=self.outer,
      precision=self.run.precision,
      problem=problem,
      num_outputs=num_outputs,
      input_shape=input_shape,
      source=source,
    )

  def check(self, *, problem: Literal["classification", "regression"]) -> None:
    """Refuses an algorithm that does not go with the rest of the run.

    Raises:
      ValueError: naming the option and the fix.
    """
    check_parts(
      self.algorithm,
      self.network,
      self.sharpness,
      precision=self.run.precision,
      problem=problem,
    )

  def loop(self) -> dict[str, Any]:
    """Keyword arguments of `jsharp.train`: how long, how many tasks, what is kept."""
    training = self.training
    return {
      "num_steps": training.num_steps,
      "num_tasks": training.num_tasks * training.num_seeds,
      "eval_every": training.eval_every,
      "keep_top": training.ensemble if training.ensemble > 1 else 0,
      "keep_path": training.keep_path,
      "num_devices": self.machine.num_devices or 1,
    }

  def leaner(self) -> Iterator[tuple[Self, dict[str, Any]]]:
    """The same run in less memory, the fastest way first, and what each chooses."""
    if jax.default_backend() == "cpu":  # one task at a time is fastest and leanest
      chunks = [1]
    else:
      chunks = [self.training.num_tasks // (self.machine.num_devices or 1)]
      while chunks[-1] > 1:
        chunks.append(-(-chunks[-1] // 2))
    for chunk in chunks:
      for algorithm in self.algorithm.leaner():
        mode = "stored"
        if isinstance(algorithm, SecondOrderOptions):
          mode = algorithm.second_order
        chosen = {"task_chunk": chunk, "second_order": mode}
        machine = self.machine.replace(memory_budget=None)
        yield self.replace(algorithm=algorithm, machine=machine), chosen

  def protocol(self) -> dict[str, Any]:
    """What, of the learner and its training, a reader of a result must know."""
    own = select(self.algorithm, lambda field: field.role is not Role.MACHINE)
    steps = ("num_inner_steps", "num_eval_inner_steps", "inner_optimizer", "inner_lr")
    inner = {name: own.pop(name) for name in steps if name in own}
    if "inner_optimizer" in inner:
      inner = {"optimizer": inner.pop("inner_optimizer"), **inner}
    outer, seed = self.outer, self.run.seed
    last = seed + self.training.num_seeds - 1
    sharpness = self.sharpness.protocol(self.algorithm)
    return {
      "algorithm": {"name": self.algorithm.name, **own, **sharpness},
      "inner loop": inner,
      "outer loop": {
        "optimizer": outer.outer_optimizer,
        "outer_lr": outer.outer_lr,
        "schedule": outer.schedule(),
        "num_tasks": self.training.num_tasks,
        "clip_meta_gradient": outer.clip_meta_gradient,
      },
      "precision": self.run.precision,
      "seeds": {
        "seed": seed,
        "to": last if last > seed else None,
        "eval_seed": self.testing.eval_seed,
      },
    }

  @property
  def words(self) -> list[str]:
    """What the run is called after its algorithm."""
    name, sharpness = self.algorithm.name, self.sharpness.sharpness
    return [name] if sharpness == "none" else [name, f"sharp_{sharpness}"]

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

  initial: Initial = option(Initial(), role=Role.TRAINING, added=True)
  data: ImageSource = option(role=Role.TESTING)
  test_data: ImageSource | None = option(None, role=Role.TESTING)
  placement: Placement = option(Placement(), role=Role.MACHINE)
  tasks: Tasks = option(role=Role.TESTING)

  def complete(self) -> None:
    """Refuses several seeds with several kinds of task."""
    super().complete()
    object.__setattr__(self, "data", self.data.for_training())
    self.check(problem="classification")
    if self.network.needs_pretraining and self.initial.init_from is None:
      raise ValueError(
        "--norm=frozen normalises by the running averages of pretraining, and there "
        "are none; give --init_from, or another --norm"
      )
    if not self.algorithm.meta_learns:  # A step only measures.
      object.__setattr__(self, "training", self.training.replace(num_steps=1))
    if self.training.num_seeds > 1 and len(self.tasks.training()) > 1:
      raise ValueError(
        f"--num_seeds={self.training.num_seeds} goes with one kind of task; train "
        "several ways and shots one seed after another"
      )

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()

  def load(self) -> dict[str, Dataset]:
    """The splits "train", "val" and "test", on the host.

    Raises:
      ValueError: if the data are not what the description says.
      OSError: if they cannot be read.
    """
    return load_with_test(
      self.data,
      self.placement.data_dir,
      test_source=self.test_data,
      test_data_dir=self.placement.test_data_dir,
    )

  @property
  def folder(self) -> str:
    """The last part of the directory that the data lie in; empty without files."""
    data_dir = self.placement.data_dir
    if not self.data.files or not data_dir:
      return ""
    return pathlib.Path(data_dir).expanduser().resolve().name

  @property
  def data_name(self) -> str:
    """What the data are called: by their folder where any images can lie there."""
    return self.folder if self.data.holds_any and self.folder else self.data.name

  def protocol(self) -> dict[str, Any]:
    normalisation: dict[str, Any] = {
      "statistics": "of the batch",
      "transductive": "the whole query set",
      "inductive": "support set and one query example",
    }
    if self.algorithm.uses_running_statistics() and self.network.looks_at_batch:
      both = "of the batch in training, running ones per step at test"
      normalisation = {"statistics": both}
    elif self.network.has_norm and not self.network.looks_at_batch:
      normalisation = {"statistics": "none of other images"}
    adapts = self.algorithm.adapts_norm()
    begins = select(self.initial, lambda field: True)
    return {
      **super().protocol(),
      "task": self.tasks.protocol(),
      **({"begins with": begins} if any(begins.values()) else {}),
      "model": {
        "name": self.network.name,
        **select(self.network, lambda field: True),
      },
      "normalisation": {**normalisation, "scale and offset adapted": adapts},
      "data": {
        "name": self.data_name,
        "folder": self.folder or None,
        "read as": self.data.name if self.data_name != self.data.name else None,
        "tested on": self.test_data.name if self.test_data else None,
      },
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SineRun(MetaRun):
  """A run on sine waves."""

  name: ClassVar[str] = "sines"

  network: SineNetwork = option()
  tasks: SineTasks = option(role=Role.TESTING)

  def complete(self) -> None:
    """Refuses what is for classes."""
    super().complete()
    self.check(problem="regression")
    if self.training.ensemble > 1:
      raise ValueError(
        f"--ensemble={self.training.ensemble} averages class probabilities, and "
        "sinusoid is a regression; drop it"
      )
    if self.training.num_seeds > 1:
      raise ValueError(
        f"--num_seeds={self.training.num_seeds} is for images; train sine waves one "
        "seed after another"
      )

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlRun(MetaRun):
  """A run on goals in an environment."""

  name: ClassVar[str] = "control"

  environment: Environment = option(role=Role.TESTING)
  network: PolicyNetwork = option()
  gradient: PolicyGradient = option()
  update: OuterUpdate = option(OneStep(), role=Role.TRAINING)
  tasks: GoalTasks = option(role=Role.TESTING)

  def complete(self) -> None:
    """Refuses what is for images."""
    super().complete()
    _ = self.policy
    for name in ("ensemble", "num_seeds"):
      if (number := getattr(self.training, name)) > 1:
        raise ValueError(f"--{name}={number} is for images; leave it out")

  @property
  def policy(self) -> PolicyDescription:
    """What the run trains."""
    return PolicyDescription(
      algorithm=self.algorithm,
      network=self.network,
      environment=self.environment,
      gradient=self.gradient,
      sharpness=self.sharpness,
      precision=self.run.precision,
    )

  def made(self, execution: Execution) -> Made:
    """The algorithm with its policy, for tasks of the environment."""
    return self.policy.made(
      seed=self.run.seed, outer=self.outer, update=self.update, execution=execution
    )

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()

  def phases(self) -> list[tuple[float, float]]:
    times = self.update.meta_gradients()
    return [(end, times * cost) for end, cost in super().phases()]

  def protocol(self) -> dict[str, Any]:
    def everything(part: Options) -> dict[str, Any]:
      return select(part, lambda field: True)

    found = super().protocol()
    if self.update.steps_itself:
      found["outer loop"] = {"num_tasks": self.training.num_tasks}
    found["outer loop"] |= {"update": self.update.name, **everything(self.update)}
    return {
      **found,
      "environment": {
        "name": self.environment.name,
        **everything(self.environment),
      },
      "task": everything(self.tasks),
      "policy gradient": everything(self.gradient),
      "model": {"name": self.network.name, **everything(self.network)},
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrdinaryRun(AnyRun):
  """A run of ordinary classification, on one device."""

  name: ClassVar[str] = "ordinary"

  data: LabelledSource = option(role=Role.TESTING)
  files: Files = option(Files(), role=Role.MACHINE)
  preparation: Preparation = option(Preparation(), role=Role.TRAINING)
  algorithm: SharpOptimizer = option(role=Role.TRAINING)
  network: ClassifierNetwork = option()
  training: OrdinaryTraining = option(OrdinaryTraining(), role=Role.TRAINING)
  fine_tuning: FineTuning = option(FineTuning(), role=Role.TRAINING)
  hessian: HessianOptions = option(HessianOptions(), role=Role.TESTING)
  machine: Machine = option(Machine(), role=Role.MACHINE)

  def complete(self) -> None:
    """Refuses what needs all images in memory, where they are streamed."""
    if self.data.streamed and self.preparation.relabel:
      raise ValueError(
        f"--relabel={self.preparation.relabel} keeps a probability of every class for "
        f"every training image, and --dataset={self.data.name} is streamed; leave the "
        "flag out, or relabel a smaller dataset"
      )

  def protocol(self, splits: Splits, params: Params) -> dict[str, Any]:
    """What a reader of the figures must know.

    Args:
      splits: what was made of the dataset.
      params: of the network.
    """

    def named(part: Options, name: str = "") -> dict[str, Any]:
      return {"name": name or part.name, **select(part, lambda field: True)}

    chosen = self.preparation.train_examples is not None
    tuned = select(self.fine_tuning, lambda field: True)
    return {
      "algorithm": named(self.algorithm),
      "optimizer": named(self.training, "sgd"),
      **({"fine-tuning": tuned} if any(tuned.values()) else {}),
      "model": {
        **named(self.network),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
      },
      "precision": self.run.precision,
      "normalisation": "the batch in training, running averages (0.9) at test",
      **self.preparation.protocol(splits),
      "data": {
        "name": self.data.name,
        "training examples": len(splits.train.labels),
        "chosen evenly from": splits.num_available if chosen else None,
        "classes": len(splits.class_names),
        **splits.fingerprints,
      },
      "seeds": {"seed": self.run.seed, "data_seed": self.preparation.data_seed},
    }
