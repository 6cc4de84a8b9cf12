"""Several seeds of one learner, trained and tested in one program."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.algorithms.fine_tuning import Initial
from jsharp.core.execution import Execution
from jsharp.data import sample_many, task_key
from jsharp.data.tasks import Kind, Tasks
from jsharp.evaluation.ensemble import evaluate_ensemble, log_probabilities
from jsharp.evaluation.report import over_domains, summarise
from jsharp.evaluation.tasks import (
  evaluate,
  evaluator,
  task_list,
  transductive_and_inductive,
)
from jsharp.learners import Description, Learner, build, initial_backbone
from jsharp.normalization import query_loss, transductive
from jsharp.training.checkpoints import Restored
from jsharp.training.mixture import mixture
from jsharp.training.over_seeds import evaluator_over_seeds, over_seeds
from jsharp.training.stop_signal import StopSignal
from jsharp.types import MetaAlgorithm, Metrics, Params, Task, TaskLossFn


class SideBySide(NamedTuple):
  """Learners that differ only in their seed.

  With one learner, parameters and metrics have no additional axis. With several,
  parameters have a leading axis `[num_seeds]`, and metrics have this axis after that
  of the tasks.

  Attributes:
    learners: one for each seed.
    seed: the first seed; the others follow it.
    execution: how they are computed.
  """

  learners: list[Learner]
  seed: int
  execution: Execution

  @property
  def params(self) -> Params:
    """The initial parameters, as `algorithm(way).init` takes them."""
    starts = [learner.made.params for learner in self.learners]
    if len(starts) == 1:
      return starts[0]
    return jax.tree.map(lambda *rows: jnp.stack(rows), *starts)

  def beginning_with(self, wanted: Initial) -> tuple["SideBySide", str | None]:
    """The same learners with the backbone of an earlier one, and a digest of it.

    Args:
      wanted: where the backbone comes from. If it names no source, nothing changes and
        the digest is None.

    Raises:
      ValueError: if it does not fit; the message has all names and both shapes.
      OSError: if a file cannot be read.
    """
    begun, digest = [], None
    for learner in self.learners:
      algorithm = learner.description.algorithm
      params, digest = initial_backbone(
        wanted,
        learner.made.params,
        head=learner.description.network.head,
        within=algorithm.backbone,
        anew=algorithm.beyond_backbone,
      )
      made = learner.made._replace(params=params)
      begun.append(dataclasses.replace(learner, made=made))
    return self._replace(learners=begun), digest

  def algorithm(self, way: int) -> MetaAlgorithm:
    """The algorithm of one seed, or of all seeds in one program."""
    algorithms = [learner.algorithm(way) for learner in self.learners]
    return algorithms[0] if len(algorithms) == 1 else over_seeds(algorithms)

  def training(
    self, kinds: Sequence[Kind], *, num_tasks: int
  ) -> tuple[MetaAlgorithm, Callable[..., Any]]:
    """The algorithm, and the tasks of each of its steps.

    Args:
      kinds: the kinds of task to draw from, at least one; several only with one
        learner.
      num_tasks: tasks per meta-step and learner.

    Returns:
      The algorithm and `sample_tasks(step, dataset, part=(index, count)) -> tasks`, for
      `jsharp.train`.
    """
    if len(kinds) > 1:
      (learner,) = self.learners
      algorithms = [learner.algorithm(kind.shape["way"]) for kind in kinds]
      samplers = [_tasks_of_step(kind, self.seed, num_tasks) for kind in kinds]
      return mixture(algorithms, samplers, seed=self.seed)
    (kind,) = kinds
    samplers = [
      _tasks_of_step(kind, self.seed + i, num_tasks) for i in range(len(self.learners))
    ]
    algorithm = self.algorithm(kind.shape["way"])
    if len(samplers) == 1:
      return algorithm, samplers[0]

    def draw_all(step: Any, data: Any, **part: Any) -> Task:
      drawn = [draw(step, data, **part) for draw in samplers]
      return jax.tree.map(lambda *rows: jnp.stack(rows), *drawn)

    return algorithm, draw_all

  def evaluator(
    self, way: int, query_loss_fn: TaskLossFn, **adapt: Any
  ) -> Callable[[Params, Any], Metrics]:
    """Combines adaptation and query loss, as `jsharp.evaluation.evaluator` does.

    Args:
      way: classes per task.
      query_loss_fn: `query_loss_fn(adapted, task) -> (loss, metrics)`.
      **adapt: keyword arguments of `adapt` that replace those of the description.
    """
    first = self.learners[0]
    options = {**first.made.at_test, **adapt}
    evaluate_tasks = evaluator(
      functools.partial(first.algorithm(way).adapt, **options),
      query_loss_fn,
      execution=self.execution,
    )
    if len(self.learners) == 1:
      return evaluate_tasks
    return evaluator_over_seeds(evaluate_tasks, num_seeds=len(self.learners))

  def validation(
    self, kind: Kind, dataset: Any, *, num_tasks: int, seed: int = 0
  ) -> Callable[[Params, StopSignal], dict[str, float]]:
    """`validate(params, stop) -> metrics`: means over tasks, transductive.

    `metrics` also has the half-width of the 95 % interval of the accuracy.

    Args:
      kind: the kind of task.
      dataset: the dataset that tasks are drawn from.
      num_tasks: the number of tasks.
      seed: the seed of their list.
    """
    learner, way = self.learners[0], kind.shape["way"]
    predict = transductive(learner.apply_fn(way))
    judged = self.evaluator(way, query_loss(predict, learner.criterion))
    sample_task = fixed_tasks(kind, "val", seed=seed)

    def validate(params: Params, stop: StopSignal) -> dict[str, float]:
      metrics = evaluate(
        judged,
        params,
        sample_task,
        dataset,
        num_tasks=num_tasks,
        stop=stop,
        execution=self.execution,
      )
      means = {name: float(values.mean()) for name, values in metrics.items()}
      if num_tasks > 1:
        means["accuracy_ci95"] = summarise(metrics, prefix="")["accuracy_ci95"]
      return means

    return validate

  def test(
    self,
    params: Params,
    tasks: Tasks,
    dataset: Any,
    *,
    num_tasks: int,
    seed: int = 0,
    members: Sequence[Restored] = (),
    stop: StopSignal | None = None,
  ) -> dict[str, Any]:
    """The figures of a result: every kind of test task, and the ensemble.

    Args:
      params: the parameters to test.
      tasks: the kinds of task: the standard one and its variations.
      dataset: the dataset that tasks are drawn from.
      num_tasks: the number of tasks of each kind, at least 2.
      seed: the seed of their lists.
      members: the members of the ensemble; empty for no ensemble.
      stop: checked every few tasks.

    Returns:
      "test_accuracy", "test_accuracy_ci95" and the like; "per_task", metrics as
      `measure` returns them; for several learners "test_accuracy_by_seed";
      "test_ensemble_accuracy" and the like, and "ensemble_steps"; "test_variations",
      the name and the figures of each.
    """
    options: dict[str, Any] = {"num_tasks": num_tasks, "seed": seed, "stop": stop}
    metrics = self.measure(params, tasks.test(), dataset, **options)
    figures: dict[str, Any] = {
      **summarise(metrics),
      "num_eval_tasks": num_tasks,
      "per_task": metrics,
    }
    if len(self.learners) > 1:
      figures["test_accuracy_by_seed"] = metrics["accuracy"].mean(axis=0).tolist()
    if members:
      trees = [one.tree for one in members]
      together = self.measure_ensemble(trees, tasks.test(), dataset, **options)
      figures |= summarise(together, prefix="test_ensemble_")
      figures["ensemble_steps"] = [one.step for one in members]

    def measured(kinds: Iterable[Kind]) -> list[dict[str, Any]]:
      return [
        {**kind.name, **summarise(self.measure(params, kind, dataset, **options))}
        for kind in kinds
      ]

    domains = measured(tasks.by_domain(dataset))
    figures |= over_domains(domains)
    if further := [*domains, *measured(tasks.variations())]:
      figures["test_variations"] = further
    return figures

  def measure(
    self,
    params: Params,
    kind: Kind,
    dataset: Any,
    *,
    num_tasks: int,
    seed: int = 0,
    stop: StopSignal | None = None,
  ) -> dict[str, np.ndarray]:
    """Tests parameters on a fixed list of tasks, under both policies.

    Args:
      params: the parameters to test.
      kind: the kind of task.
      dataset: the dataset that tasks are drawn from.
      num_tasks: the number of tasks.
      seed: the seed of the list.
      stop: checked every few tasks.

    Returns:
      "loss", "accuracy" and "accuracy_inductive", each `[num_tasks]`, or
      `[num_tasks, num_seeds]` for several learners.
    """
    learner, way = self.learners[0], kind.shape["way"]
    both = transductive_and_inductive(learner.apply_fn(way), learner.criterion)
    return evaluate(
      self.evaluator(way, both),
      params,
      fixed_tasks(kind, "test", seed=seed),
      dataset,
      num_tasks=num_tasks,
      stop=stop,
      execution=self.execution,
    )

  def measure_ensemble(
    self,
    members: Sequence[Params],
    kind: Kind,
    dataset: Any,
    *,
    num_tasks: int,
    seed: int = 0,
    stop: StopSignal | None = None,
  ) -> dict[str, np.ndarray]:
    """As `measure`, for the mean prediction of several sets of parameters."""
    learner, way = self.learners[0], kind.shape["way"]
    return evaluate_ensemble(
      self.evaluator(way, log_probabilities(transductive(learner.apply_fn(way)))),
      members,
      fixed_tasks(kind, "test", seed=seed),
      dataset,
      num_tasks=num_tasks,
      stop=stop,
      execution=self.execution,
    )

  def trained(self, params: Params) -> dict[str, Learner]:
    """The learners with trained parameters, by the name of the folder to save them in.

    The folder is "" for one learner, "seed_0", "seed_1", ... for several.
    """
    if len(self.learners) == 1:
      return {"": self.learners[0].replace(params)}
    return {
      f"seed_{number}": learner.replace(jax.tree.map(lambda x, i=number: x[i], params))
      for number, learner in enumerate(self.learners)
    }


def side_by_side(
  description: Description,
  *,
  seed: int = 0,
  num_seeds: int = 1,
  execution: Execution = Execution(),
) -> SideBySide:
  """Builds the learners of a description for several seeds.

  Args:
    description: the description of the learners.
    seed: the first seed.
    num_seeds: the number of learners.
    execution: how they are computed.

  Returns:
    The learners, to be trained and tested together.

  Raises:
    ValueError: as `jsharp.build` does.

  Example:
    >>> from jsharp.algorithms.maml import MAML
    >>> from jsharp.data import characters
    >>> from jsharp.data.tasks import Tasks
    >>> from jsharp.models.mlp import MLPOptions
    >>> three = side_by_side(Description(
    ...   algorithm=MAML(), network=MLPOptions(), num_outputs=2, input_shape=(8, 8, 1)))
    >>> dataset = characters.load(size=8)["test"]
    >>> metrics = three.measure(
    ...   three.params, Tasks(way=2).test(), dataset, num_tasks=4)
    >>> metrics["accuracy_inductive"].shape
    (4,)
  """
  seeds = range(seed, seed + num_seeds)
  learners = [build(description, seed=one, execution=execution) for one in seeds]
  return SideBySide(learners, seed, execution)


def fixed_tasks(
  kind: Kind, stream: Literal["val", "test"], *, seed: int = 0
) -> Callable[[jax.Array, Any], Task]:
  """The list of tasks of validation or test, the same for every learner.

  Args:
    kind: the kind of task.
    stream: "val" or "test".
    seed: the seed of the list.

  Returns:
    `sample_task(index, dataset) -> Task`, for `jsharp.evaluate`.

  Example:
    >>> from jsharp.data import characters
    >>> from jsharp.data.tasks import Tasks
    >>> sample_task = fixed_tasks(Tasks(way=2, shot=3).test(), "test")
    >>> dataset = characters.load(size=8)["test"]
    >>> sample_task(jnp.int32(0), dataset).support.inputs.shape
    (6, 8, 8, 1)
  """
  return task_list(kind.sampler(), seed=seed, stream=stream)


def _tasks_of_step(kind: Kind, seed: int, num_tasks: int) -> Callable[..., Task]:
  sample_one = kind.sampler()

  def draw(step: Any, data: Any, part: tuple[Any, int] = (0, 1)) -> Task:
    index, count = part
    return sample_many(
      lambda key: sample_one(key, data),
      task_key(seed, step),
      num_tasks=num_tasks // count,
      first_task=index * (num_tasks // count),
    )

  return draw
