"""Few-shot image classification: what the image experiments have in common."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from experiments import choices
from experiments.session import Parts
from jsharp import losses, models
from jsharp.data import check_task_shape, sample_task, sample_tasks, task_key
from jsharp.evaluation import evaluate, task_list, transductive_and_inductive
from jsharp.report import summarise
from jsharp.stop_signal import StopSignal
from jsharp.types import Params, Task


def build(settings: SimpleNamespace) -> Parts:
  """Builds the parts of a run from the values of the flags.

  Raises:
    ValueError: if the flags, or the flags and the data, contradict each other.
    OSError: if the data cannot be read.
  """
  datasets = choices.load_datasets(settings)
  shape = {"way": settings.way, "shot": settings.shot}
  train_shape = {**shape, "query_shot": settings.query_shot}
  eval_shape = {**shape, "query_shot": settings.eval_query_shot}
  for split, task_shape in (
    ("train", train_shape),
    ("val", eval_shape),
    ("test", eval_shape),
  ):
    check_task_shape(datasets[split], **task_shape)
  fingerprints = {split: data.fingerprint() for split, data in datasets.items()}
  datasets = {split: data.on_device() for split, data in datasets.items()}

  init_fn, apply_fn = models.as_functions(choices.make_model(settings))
  inputs = jnp.zeros((1, *datasets["train"].image_shape), jnp.float32)
  params = init_fn(jax.random.key(settings.seed), inputs)
  make_algorithm = functools.partial(
    choices.make_algorithm,
    settings,
    losses.supervised(apply_fn, losses.cross_entropy),
    adapted_mask=None if settings.adapt_norm else models.norm_mask,
  )
  algorithm = make_algorithm()
  test_algorithm = make_algorithm(
    eval_query_loss_fn=transductive_and_inductive(apply_fn, losses.cross_entropy)
  )

  def draw(step: jax.Array, data: Any) -> Task:
    key = task_key(settings.seed, step)
    return sample_tasks(key, data, num_tasks=settings.num_tasks, **train_shape)

  draw_one = functools.partial(sample_task, **eval_shape)
  val_task, test_task = (
    task_list(draw_one, seed=settings.eval_seed, stream=stream)
    for stream in ("val", "test")
  )

  def validate(params: Params, stop: StopSignal) -> dict[str, float]:
    metrics = evaluate(
      algorithm.evaluate,
      params,
      val_task,
      datasets["val"],
      num_tasks=settings.val_tasks,
      stop=stop,
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  def test(params: Params, stop: StopSignal) -> dict[str, Any]:
    metrics = evaluate(
      test_algorithm.evaluate,
      params,
      test_task,
      datasets["test"],
      num_tasks=settings.eval_tasks,
      stop=stop,
    )
    return {**summarise(metrics), "num_eval_tasks": settings.eval_tasks}

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
      "task": {**train_shape, "eval_query_shot": settings.eval_query_shot},
      "model": {
        "name": settings.model,
        **({"num_filters": settings.num_filters} if is_conv else {}),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
      },
      "normalisation": {
        "statistics": "of the batch",
        "transductive": "the whole query set",
        "inductive": "support set and one query example",
        "scale and offset adapted": settings.adapt_norm,
      },
      "data": {"name": settings.dataset, **fingerprints},
    },
  )
