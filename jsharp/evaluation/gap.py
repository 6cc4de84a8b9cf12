"""The generalisation gap between tasks of training classes and of new classes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jsharp.core.execution import Execution
from jsharp.evaluation.tasks import evaluate
from jsharp.training import StopSignal
from jsharp.types import Metrics, Params, Task


def generalisation_gap(
  evaluate_tasks: Callable[[Params, Any], Metrics],
  params: Params,
  splits: Mapping[str, tuple[Callable[[jax.Array, Any], Task], Any]],
  *,
  num_tasks: int,
  stop: StopSignal | None = None,
  execution: Execution = Execution(),
) -> dict[str, float]:
  """Measures the gap on equally many tasks of training classes and of test classes.

  Args:
    evaluate_tasks: `evaluate_tasks(params, tasks) -> metrics`, each `[num_tasks]`, as
      from `jsharp.evaluation.evaluator`.
    params: the parameters to evaluate.
    splits: under "train" and "test" `(sample_task, data)`, as for
      `jsharp.evaluation.evaluate`. The tasks of "train" should not be those seen in
      training.
    num_tasks: the number of tasks of each.
    stop: checked every few tasks.
    execution: as for `jsharp.evaluation.evaluate`.

  Returns:
    `train_loss`, `test_loss`, `loss_gap` and the same for every other metric. Gaps are
    training minus test: if new classes are harder, the accuracy gap is positive and the
    loss gap negative.

  Raises:
    ValueError: if `num_tasks` is not positive.
    StopRequested: from `stop`.

  Example:
    >>> import jax.numpy as jnp
    >>> evaluate_tasks = lambda w, tasks: {"loss": w * tasks}
    >>> sample_task = lambda index, data: data * (1 + jnp.float32(index % 2))
    >>> generalisation_gap(evaluate_tasks, 2.0,
    ...   {"train": (sample_task, 1.0), "test": (sample_task, 3.0)}, num_tasks=2)
    {'train_loss': 3.0, 'test_loss': 9.0, 'loss_gap': -6.0}
  """
  means: dict[str, float] = {}
  for split in ("train", "test"):
    sample_task, data = splits[split]
    metrics = evaluate(
      evaluate_tasks,
      params,
      sample_task,
      data,
      num_tasks=num_tasks,
      stop=stop,
      execution=execution,
    )
    for name, values in metrics.items():
      means[f"{split}_{name}"] = float(values.mean(dtype=float))
  for name in metrics:
    means[f"{name}_gap"] = means[f"train_{name}"] - means[f"test_{name}"]
  return means
