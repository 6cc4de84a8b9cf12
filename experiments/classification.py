"""Few-shot image classification: what the image experiments have in common."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import choices, method_options, methods, tasks
from experiments.session import Parts
from jsharp import losses
from jsharp.data import sample_many, task_key
from jsharp.evaluation.ensemble import evaluate_ensemble, log_probabilities
from jsharp.evaluation.report import summarise
from jsharp.evaluation.tasks import evaluate, task_list, transductive_and_inductive
from jsharp.normalization import transductive
from jsharp.training.loop import TrainingResult
from jsharp.training.mixture import mixture
from jsharp.training.over_seeds import evaluator_over_seeds, over_seeds
from jsharp.training.stop_signal import StopSignal
from jsharp.types import MetaAlgorithm, Metrics, Params, Task, TaskLossFn


def build(settings: SimpleNamespace) -> Parts:
  """Builds the parts of a run from the values of the flags.

  Raises:
    ValueError: if the flags, or the flags and the data, contradict each other.
    OSError: if the data cannot be read.
  """
  datasets = choices.load_splits(settings)
  usual, training = tasks.test_kind(settings), tasks.training_kinds(settings)
  further = list(tasks.variations(settings))
  for split, kinds in (
    ("train", training),
    ("val", [usual]),
    ("test", [usual, *further]),
  ):
    for kind in kinds:
      kind.check(datasets[split])
  fingerprints = {split: data.fingerprint() for split, data in datasets.items()}
  datasets = choices.placed(datasets, settings.images)
  networks = choices.networks(
    settings, datasets["train"].image_shape, tasks.largest_way(settings)
  )
  members = [
    methods.make(SimpleNamespace(**{**vars(settings), "seed": seed}), networks)
    for seed in range(settings.seed, settings.seed + settings.num_seeds)
  ]
  algorithm, draw = _training(settings, members, training)
  judged = _evaluator(members, settings.way)
  val_task = _fixed_tasks(settings, usual, "val")
  params = members[0].params
  if settings.num_seeds > 1:
    starts = [member.params for member in members]
    params = jax.tree.map(lambda *rows: jnp.stack(rows), *starts)

  def validate(params: Params, stop: StopSignal) -> dict[str, float]:
    metrics = evaluate(
      judged,
      params,
      val_task,
      datasets["val"],
      num_tasks=settings.val_tasks,
      stop=stop,
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  def test(trained: TrainingResult, stop: StopSignal) -> dict[str, Any]:
    measure = functools.partial(
      _measure, settings, members, data=datasets["test"], stop=stop
    )
    metrics = measure(usual, trained.best_params)
    figures = {
      **_summary(metrics),
      "num_eval_tasks": settings.eval_tasks,
      "per_task": metrics,
    }
    if settings.num_seeds > 1:
      figures["test_accuracy_by_seed"] = metrics["accuracy"].mean(axis=0).tolist()
    if settings.ensemble > 1:
      together = _measure_ensemble(
        settings, members, usual, trained, datasets["test"], stop
      )
      figures |= _summary(together, prefix="test_ensemble_")
      figures["ensemble_steps"] = [one.step for one in trained.top]
    if further:
      figures["test_variations"] = [
        {**kind.name, **_summary(measure(kind, trained.best_params))}
        for kind in further
      ]
    return figures

  is_conv = settings.model != "mlp"
  return Parts(
    algorithm=algorithm,
    params=params,
    sample_tasks=draw,
    data=datasets["train"],
    **choices.loop(settings),
    validate=validate,
    score="accuracy",
    test=test,
    identity={"data": fingerprints},
    protocol={
      **choices.protocol(settings),
      "task": tasks.protocol(settings),
      "model": {
        "name": settings.model,
        **({"num_filters": settings.num_filters} if is_conv else {}),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(members[0].params)),
      },
      "normalisation": {
        **(
          {"statistics": "of the batch in training, running ones per step at test"}
          if method_options.keeps_statistics(settings, networks)
          else {
            "statistics": "of the batch",
            "transductive": "the whole query set",
            "inductive": "support set and one query example",
          }
        ),
        "scale and offset adapted": method_options.adapts_norm(settings),
      },
      "data": {
        "name": settings.dataset,
        "tested on": settings.test_dataset,
        **fingerprints,
      },
    },
  )


def _training(
  settings: SimpleNamespace, members: list[methods.Method], kinds: list[tasks.Kind]
) -> tuple[MetaAlgorithm, Callable[..., Any]]:
  """The algorithm and the tasks of each of its steps."""

  def sampler(kind: tasks.Kind, seed: int) -> Callable[..., Task]:
    sample_one = kind.sampler()

    def draw(step: Any, data: Any, part: tuple[Any, int] = (0, 1)) -> Task:
      index, count = part
      num_tasks = settings.num_tasks // count
      return sample_many(
        lambda key: sample_one(key, data),
        task_key(seed, step),
        num_tasks=num_tasks,
        first_task=index * num_tasks,
      )

    return draw

  if len(kinds) == 1:
    (kind,) = kinds
    samplers = [sampler(kind, settings.seed + i) for i in range(len(members))]
    algorithm = _joined(members, kind.shape["way"])
    if len(members) == 1:
      return algorithm, samplers[0]

    def draw_all(step: Any, data: Any, **part: Any) -> Task:
      drawn = [draw(step, data, **part) for draw in samplers]
      return jax.tree.map(lambda *rows: jnp.stack(rows), *drawn)

    return algorithm, draw_all
  if len(members) > 1:
    raise ValueError(
      f"--num_seeds={len(members)} goes with one kind of task; train several ways and "
      "shots one seed after another"
    )
  algorithms = [members[0].build(kind.shape["way"]) for kind in kinds]
  samplers = [sampler(kind, settings.seed) for kind in kinds]
  return mixture(algorithms, samplers, seed=settings.seed)


def _joined(members: list[methods.Method], way: int) -> MetaAlgorithm:
  """The algorithm of one seed, or of several side by side."""
  algorithms = [member.build(way) for member in members]
  return algorithms[0] if len(algorithms) == 1 else over_seeds(algorithms)


def _evaluator(
  members: list[methods.Method], way: int, query_loss_fn: TaskLossFn | None = None
) -> Callable[[Params, Any], Metrics]:
  """The same for what measures it."""
  one = members[0].evaluator(way, query_loss_fn)
  if len(members) == 1:
    return one
  return evaluator_over_seeds(one, num_seeds=len(members))


def _summary(metrics: dict[str, np.ndarray], prefix: str = "test_") -> dict[str, float]:
  """Means and intervals over tasks, of what a task gives on average over seeds."""
  by_task = {
    name: values if values.ndim == 1 else values.mean(axis=1)
    for name, values in metrics.items()
  }
  return summarise(by_task, prefix)


def _fixed_tasks(settings: SimpleNamespace, kind: tasks.Kind, stream: Any) -> Any:
  return task_list(kind.sampler(), seed=settings.eval_seed, stream=stream)


def _measure(
  settings: SimpleNamespace,
  members: list[methods.Method],
  kind: tasks.Kind,
  params: Params,
  *,
  data: Any,
  stop: StopSignal,
) -> dict[str, np.ndarray]:
  """Every metric `[num_eval_tasks]`, or one per task and seed, under both policies."""
  way = kind.shape["way"]
  predict = members[0].predict(way)
  query_loss_fn = transductive_and_inductive(predict, losses.cross_entropy)
  return evaluate(
    _evaluator(members, way, query_loss_fn),
    params,
    _fixed_tasks(settings, kind, "test"),
    data,
    num_tasks=settings.eval_tasks,
    stop=stop,
  )


def _measure_ensemble(
  settings: SimpleNamespace,
  members: list[methods.Method],
  kind: tasks.Kind,
  trained: TrainingResult,
  data: Any,
  stop: StopSignal,
) -> dict[str, np.ndarray]:
  way = kind.shape["way"]
  query_loss_fn = log_probabilities(transductive(members[0].predict(way)))
  return evaluate_ensemble(
    _evaluator(members, way, query_loss_fn),
    [one.tree for one in trained.top],
    _fixed_tasks(settings, kind, "test"),
    data,
    num_tasks=settings.eval_tasks,
    stop=stop,
  )
