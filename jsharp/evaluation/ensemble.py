"""Ensembles of checkpoints.

MAML++'s published results come from the mean softmax of the five checkpoints with the
best validation accuracy, as its released code computes them. Report the ensemble in
addition to the single checkpoint.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.core.execution import Execution
from jsharp.evaluation.tasks import DEFAULT_CHUNK, evaluate
from jsharp.normalization import PredictFn
from jsharp.training.stop_signal import StopSignal
from jsharp.types import Metrics, Params, Task, TaskLossFn

__all__ = ["evaluate_ensemble", "log_probabilities"]


def log_probabilities(predict: PredictFn) -> TaskLossFn:
  """The query loss that `evaluate_ensemble` needs: log-probabilities and labels.

  Args:
    predict: `predict(adapted, task) -> logits` for the query set, such as
      `jsharp.normalization.transductive(apply_fn)`.

  Returns:
    `query_loss_fn(adapted, task) -> (0, metrics)` for `jsharp.evaluation.evaluator`.
    The metrics are the logarithms of the class probabilities, which cannot underflow,
    and the labels of the query set.

  Example:
    >>> from jsharp.types import Batch
    >>> task = Task(None, Batch(jnp.zeros((2, 4)), jnp.array([0, 1])))
    >>> query_loss_fn = log_probabilities(lambda w, task: task.query.inputs)
    >>> _, metrics = query_loss_fn(None, task)
    >>> jnp.exp(metrics["log_probabilities"]).round(3).tolist()
    [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]
  """

  def query_loss_fn(adapted: Params, task: Task) -> tuple[jax.Array, Metrics]:
    logits = predict(adapted, task)
    return jnp.zeros((), logits.dtype), {
      "log_probabilities": jax.nn.log_softmax(logits),
      "labels": task.query.targets,
    }

  return query_loss_fn


def evaluate_ensemble(
  evaluate_tasks: Callable[[Params, Any], Metrics],
  members: Sequence[Params],
  sample_task: Callable[[jax.Array, Any], Any],
  data: Any,
  *,
  num_tasks: int,
  chunk: int = DEFAULT_CHUNK,
  stop: StopSignal | None = None,
  execution: Execution = Execution(),
) -> dict[str, np.ndarray]:
  """The accuracy of the mean of the members' class probabilities.

  Every member adapts to the task separately; only the predictions are averaged.

  Args:
    evaluate_tasks: `evaluator(algorithm.adapt, log_probabilities(predict))`.
    members: meta-learned parameters, at least one.
    sample_task: `sample_task(index, data) -> Task`, as for `evaluate`.
    data: the pytree that `sample_task` reads.
    num_tasks: length of the list of tasks.
    chunk: tasks per compiled call.
    stop: checked before every chunk.
    execution: as for `evaluate`.

  Returns:
    `{"accuracy": [num_tasks], "loss": [num_tasks]}`: the loss is the mean negative
    log-probability of the correct class, in nats.

  Raises:
    ValueError: if there is no member, or as `evaluate` does.
    StopRequested: from `stop`.

  Example:
    >>> def evaluate_tasks(params, tasks):
    ...   logs = jnp.broadcast_to(jnp.log(params), (*tasks.shape, 3, 2))
    ...   labels = jnp.zeros((*tasks.shape, 3), int)
    ...   return {"log_probabilities": logs, "labels": labels}
    >>> metrics = evaluate_ensemble(
    ...   evaluate_tasks, [jnp.array([0.9, 0.1]), jnp.array([0.4, 0.6])],
    ...   lambda index, data: index, None, num_tasks=2)
    >>> metrics["accuracy"].tolist(), metrics["loss"].round(3).tolist()
    ([1.0, 1.0], [0.431, 0.431])
  """
  if not members:
    raise ValueError("an ensemble needs at least one member; validate during training")
  total: Any = -np.inf
  for params in members:
    metrics = evaluate(
      evaluate_tasks,
      params,
      sample_task,
      data,
      num_tasks=num_tasks,
      chunk=chunk,
      stop=stop,
      execution=execution,
    )
    total = np.logaddexp(total, metrics["log_probabilities"].astype(np.float64))
  labels = metrics["labels"]
  logs = total - math.log(len(members))
  loss = -np.take_along_axis(logs, labels[..., None], axis=-1)[..., 0].mean(axis=-1)
  accuracy = (logs.argmax(axis=-1) == labels).mean(axis=-1)
  return {"accuracy": accuracy, "loss": loss}
