"""Few-shot image classification: what the image experiments have in common."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from experiments import choices, method_options, methods, tasks
from experiments.session import Parts
from jsharp import losses
from jsharp.algorithms.mixture import mixture
from jsharp.data import sample_many, task_key
from jsharp.ensemble import evaluate_ensemble, log_probabilities
from jsharp.evaluation import evaluate, task_list, transductive_and_inductive
from jsharp.normalization import transductive
from jsharp.report import summarise
from jsharp.stop_signal import StopSignal
from jsharp.training import TrainingResult
from jsharp.types import MetaAlgorithm, Params, Task


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
  datasets = {split: data.on_device() for split, data in datasets.items()}
  networks = choices.networks(
    settings, datasets["train"].image_shape, tasks.largest_way(settings)
  )
  method = methods.make(settings, networks)
  algorithm, draw = _training(settings, method, training)
  judged = method.build(settings.way)
  val_task = _fixed_tasks(settings, usual, "val")

  def validate(params: Params, stop: StopSignal) -> dict[str, float]:
    metrics = evaluate(
      judged.evaluate,
      params,
      val_task,
      datasets["val"],
      num_tasks=settings.val_tasks,
      stop=stop,
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  def test(trained: TrainingResult, stop: StopSignal) -> dict[str, Any]:
    measure = functools.partial(
      _measure, settings, method, data=datasets["test"], stop=stop
    )
    metrics = measure(usual, trained.best_params)
    figures = {
      **summarise(metrics),
      "num_eval_tasks": settings.eval_tasks,
      "per_task": metrics,
    }
    if settings.ensemble > 1:
      together = _measure_ensemble(
        settings, method, usual, trained, datasets["test"], stop
      )
      figures |= summarise(together, prefix="test_ensemble_")
      figures["ensemble_steps"] = [one.step for one in trained.top]
    if further:
      figures["test_variations"] = [
        {**kind.name, **summarise(measure(kind, trained.best_params))}
        for kind in further
      ]
    return figures

  is_conv = settings.model != "mlp"
  return Parts(
    algorithm=algorithm,
    params=method.params,
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
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(method.params)),
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
        "scale and offset adapted": settings.adapt_norm,
      },
      "data": {
        "name": settings.dataset,
        "tested on": settings.test_dataset,
        **fingerprints,
      },
    },
  )


def _training(
  settings: SimpleNamespace, method: methods.Method, kinds: list[tasks.Kind]
) -> tuple[MetaAlgorithm, Callable[[Any, Any], Any]]:
  """The algorithm and the tasks of each of its steps."""

  def sampler(kind: tasks.Kind) -> Callable[[Any, Any], Task]:
    sample_one = kind.sampler()

    def draw(step: Any, data: Any) -> Task:
      return sample_many(
        lambda key: sample_one(key, data),
        task_key(settings.seed, step),
        num_tasks=settings.num_tasks,
      )

    return draw

  members = [method.build(kind.shape["way"]) for kind in kinds]
  samplers = [sampler(kind) for kind in kinds]
  if len(kinds) == 1:
    return members[0], samplers[0]
  return mixture(members, samplers, seed=settings.seed)


def _fixed_tasks(settings: SimpleNamespace, kind: tasks.Kind, stream: Any) -> Any:
  return task_list(kind.sampler(), seed=settings.eval_seed, stream=stream)


def _measure(
  settings: SimpleNamespace,
  method: methods.Method,
  kind: tasks.Kind,
  params: Params,
  *,
  data: Any,
  stop: StopSignal,
) -> dict[str, np.ndarray]:
  """Every metric `[num_eval_tasks]`, transductive and inductive."""
  way = kind.shape["way"]
  predict = method.predict(way)
  learner = method.build(
    way,
    eval_query_loss_fn=transductive_and_inductive(predict, losses.cross_entropy),
  )
  return evaluate(
    learner.evaluate,
    params,
    _fixed_tasks(settings, kind, "test"),
    data,
    num_tasks=settings.eval_tasks,
    stop=stop,
  )


def _measure_ensemble(
  settings: SimpleNamespace,
  method: methods.Method,
  kind: tasks.Kind,
  trained: TrainingResult,
  data: Any,
  stop: StopSignal,
) -> dict[str, np.ndarray]:
  way = kind.shape["way"]
  members = log_probabilities(transductive(method.predict(way)))
  return evaluate_ensemble(
    method.build(way, eval_query_loss_fn=members).evaluate,
    [one.tree for one in trained.top],
    _fixed_tasks(settings, kind, "test"),
    data,
    num_tasks=settings.eval_tasks,
    stop=stop,
  )
