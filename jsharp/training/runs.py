"""Descriptions of whole runs: data, tasks, learner, loop and machine."""

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
  """Base class of all runs, with their directory and machine options."""

  kind: ClassVar[str] = "run"
  divides: ClassVar[str] = "num_tasks"
  """The option that sets the number of tasks or examples per step."""

  run: Run = option(role=Role.MACHINE)
  machine: Machine = option(role=Role.MACHINE)

  @property
  def num_tasks(self) -> int:
    """Tasks or examples per step, which devices share."""
    raise NotImplementedError

  def asked(self) -> dict[str, Any]:
    """The values that the finished run's result must have to count as this run."""
    return {}

  def comparable(self) -> dict[str, Any]:
    """The test settings that finished runs must share to be compared, by name."""
    return select(self, lambda field: field.shared and field.identity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaRun(AnyRun):
  """Base class of runs that meta-learn."""

  algorithm: Algorithm = option()
  sharpness: Sharpness = option()
  network: Network = option()
  outer: OuterLoop = option(role=Role.TRAINING)
  training: MetaTraining = option(role=Role.TRAINING)
  testing: Testing = option(role=Role.TESTING)

  def complete(self) -> None:
    """Rejects a memory budget together with `second_order`."""
    algorithm, budget = self.algorithm, self.machine.memory_budget
    mode = "stored"
    if isinstance(algorithm, SecondOrderOptions):
      mode = algorithm.second_order
    if budget is not None and mode != "stored":
      raise ValueError(
        f"--memory_budget chooses --second_order, but --second_order={mode} is given "
        "too; drop one of them"
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
    """The test settings and the network that runs must share to be compared."""
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
    """The description of the learner, given its inputs; see `Description`."""
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
    """Checks that the algorithm fits the rest of the run.

    Raises:
      ValueError: if it does not; the message names the option and the fix.
    """
    check_parts(
      self.algorithm,
      self.network,
      self.sharpness,
      precision=self.run.precision,
      problem=problem,
    )

  def loop(self) -> dict[str, Any]:
    """Keyword arguments of `jsharp.train`: steps, tasks, and what is kept."""
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
    """Equivalent runs with less memory, fastest first, with the options of each."""
    if jax.default_backend() == "cpu":  # One task at a time is fastest and smallest.
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
    """The facts about the learner and its training to report with a result."""
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
    """The words that follow the algorithm in the run's name."""
    name, sharpness = self.algorithm.name, self.sharpness.sharpness
    return [name] if sharpness == "none" else [name, f"sharp_{sharpness}"]

  def phases(self) -> list[tuple[float, float]]:
    """`(end, gradients per task)` for each phase, averaged over the kinds of task."""
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
    """Checks the normalisation, and several seeds with several kinds of task."""
    super().complete()
    object.__setattr__(self, "data", self.data.for_training())
    self.check(problem="classification")
    if self.network.needs_pretraining and self.initial.init_from is None:
      raise ValueError(
        "--norm=frozen normalises by the running averages of pretraining, but there "
        "are none; pass --init_from, or another --norm"
      )
    if not self.algorithm.meta_learns:  # A step only computes metrics.
      object.__setattr__(self, "training", self.training.replace(num_steps=1))
    if self.training.num_seeds > 1 and len(self.tasks.training()) > 1:
      raise ValueError(
        f"--num_seeds={self.training.num_seeds} supports only one kind of task; with "
        "several ways or shots train one seed after another"
      )

  def examples(self) -> list[tuple[int, int]]:
    return self.tasks.examples()

  def load(self) -> dict[str, Dataset]:
    """The splits "train", "val" and "test", on the host.

    Raises:
      ValueError: if the data do not match the description.
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
    """The last part of the data's directory; empty for data without files."""
    data_dir = self.placement.data_dir
    if not self.data.files or not data_dir:
      return ""
    return pathlib.Path(data_dir).expanduser().resolve().name

  @property
  def data_name(self) -> str:
    """The name of the data: of the dataset or, for images of one's own, the folder."""
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
    """Rejects options for classification."""
    super().complete()
    self.check(problem="regression")
    if self.training.ensemble > 1:
      raise ValueError(
        f"--ensemble={self.training.ensemble} averages class probabilities, but "
        "sinusoid is a regression; drop it"
      )
    if self.training.num_seeds > 1:
      raise ValueError(
        f"--num_seeds={self.training.num_seeds} supports only images; train sine waves "
        "one seed after another"
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
    """Rejects options for images."""
    super().complete()
    _ = self.policy
    for name in ("ensemble", "num_seeds"):
      if (number := getattr(self.training, name)) > 1:
        raise ValueError(f"--{name}={number} supports only images; leave it out")

  @property
  def policy(self) -> PolicyDescription:
    """The description of the policy that the run trains."""
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
  """A run of ordinary classification."""

  name: ClassVar[str] = "ordinary"
  divides: ClassVar[str] = "batch_size"

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
    """Sets the devices, and rejects options that do not go together."""
    if self.machine.num_devices is None:
      one = self.machine.replace(num_devices=1)
      object.__setattr__(self, "machine", one)
    self._check_groups()
    if self.data.streamed and self.preparation.relabel:
      raise ValueError(
        f"--relabel={self.preparation.relabel} stores the probability of every class "
        f"for every training image, but --dataset={self.data.name} is streamed; leave "
        "the flag out, or relabel a smaller dataset"
      )

  @property
  def num_tasks(self) -> int:
    return self.training.batch_size

  def _check_groups(self) -> None:
    """Rejects groups of two sizes, and groups that the devices cannot share."""
    size, flag = self.training.statistics_batch_size, "statistics_batch_size"
    if groups := self.algorithm.groups:
      if size not in (None, groups.size):
        raise ValueError(
          f"--statistics_batch_size={size}, but images that share a perturbation also "
          f"share their statistics, and --perturbation_batch_size={groups.size}; leave "
          "one of them out"
        )
      size, flag = groups.size, "perturbation_batch_size"
    if size is None:
      return
    total, num_devices = self.training.batch_size, self.machine.num_devices or 1
    count, rest = divmod(total, size)
    if rest:
      raise ValueError(
        f"--{flag}={size} does not divide --batch_size={total}; choose a divisor"
      )
    if count % num_devices:
      most = max(n for n in range(1, num_devices) if count % n == 0)
      raise ValueError(
        f"--num_devices={num_devices} cannot share a batch of --batch_size={total} in "
        f"{count} groups of --{flag}={size} evenly; use --num_devices={most}"
      )

  def protocol(self, splits: Splits, params: Params) -> dict[str, Any]:
    """The facts to report with a result.

    Args:
      splits: the prepared splits of the dataset.
      params: the network's parameters.
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
      "normalisation": f"{self._normalised_by()} in training, running averages (0.9) "
      "at test",
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

  def _normalised_by(self) -> str:
    groups = self.algorithm.groups
    size = groups.size if groups else self.training.statistics_batch_size
    return "the batch" if size is None else f"groups of {size} images"
