"""Measures two baselines on 5-way 1-shot tasks of the embedded characters.

    python -m benchmarks.characters_baselines --num_steps=800

Nearest neighbour on pixels (no learning), and a strided Conv4 meta-learned with
MAML. Both are measured on the same tasks, with 95 % intervals over tasks. Takes
two to three minutes on two cores.
"""

import functools
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from jsharp import losses
from jsharp.algorithms import maml
from jsharp.data import Dataset, characters, sample_tasks, task_key
from jsharp.evaluation.tasks import (
  evaluator,
  mean_and_ci95,
  transductive_and_inductive,
)
from jsharp.models import Conv4, all_but_norm, as_functions
from jsharp.types import Task

_SEED = flags.DEFINE_integer("seed", 0, "Seed of parameters and tasks.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 800, "Meta-steps of the Conv4.")
_NUM_TASKS = flags.DEFINE_integer("num_tasks", 16, "Tasks per meta-step.")
_NUM_FILTERS = flags.DEFINE_integer("num_filters", 48, "Filters of the Conv4.")
_INNER_LR = flags.DEFINE_float("inner_lr", 1.0, "Step size for the mean cross-entropy.")
_OUTER_LR = flags.DEFINE_float("outer_lr", 3e-3, "Learning rate of Adam.")
_NUM_INNER_STEPS = flags.DEFINE_integer(
  "num_inner_steps", 1, "Inner steps in training."
)
_NUM_EVAL_INNER_STEPS = flags.DEFINE_integer(
  "num_eval_inner_steps", 3, "Inner steps in testing."
)
_QUERY_SHOT = flags.DEFINE_integer(
  "query_shot", 5, "Query images per class in training."
)
_EVAL_TASKS = flags.DEFINE_integer("eval_tasks", 1000, "Number of test tasks.")

_WAY, _SHOT, _EVAL_QUERY_SHOT, _CHUNK = 5, 1, 15, 20


def nearest_neighbour_accuracy(tasks: Task) -> jax.Array:
  """Accuracy per task, `[num_tasks]`, by Euclidean distance between pixels."""

  def one_task(task: Task) -> jax.Array:
    support, query = (b.inputs.reshape(len(b.targets), -1) for b in task)
    distance = jnp.square(query[:, None] - support[None]).sum(axis=-1)
    predicted = task.support.targets[jnp.argmin(distance, axis=1)]
    return (predicted == task.query.targets).mean(dtype=jnp.float32)

  return jax.lax.map(one_task, tasks)


def evaluate(evaluate_tasks, params, dataset: Dataset) -> Any:
  """Runs `evaluate_tasks(params, tasks)` over the test tasks, in chunks."""

  @jax.jit
  def one_chunk(params, first_task):
    tasks = sample_tasks(
      task_key(_SEED.value, 0, stream="test"),
      dataset,
      num_tasks=_CHUNK,
      way=_WAY,
      shot=_SHOT,
      query_shot=_EVAL_QUERY_SHOT,
      first_task=first_task,
    )
    return evaluate_tasks(params, tasks)

  chunks = [one_chunk(params, i) for i in range(0, _EVAL_TASKS.value, _CHUNK)]
  return jax.tree.map(lambda *a: np.concatenate(a)[: _EVAL_TASKS.value], *chunks)


def meta_learn(dataset: Dataset):
  """Returns the evaluation and the parameters after `--num_steps`."""
  init_fn, apply_fn = as_functions(
    Conv4(num_outputs=_WAY, num_filters=_NUM_FILTERS.value, stride=2)
  )
  algorithm = maml(
    losses.batch_loss(apply_fn, losses.cross_entropy),
    optax.sgd(_INNER_LR.value),
    optax.adam(_OUTER_LR.value),
    num_inner_steps=_NUM_INNER_STEPS.value,
    adapted_mask=all_but_norm,
  )
  draw = functools.partial(
    sample_tasks,
    num_tasks=_NUM_TASKS.value,
    way=_WAY,
    shot=_SHOT,
    query_shot=_QUERY_SHOT.value,
  )

  @jax.jit
  def step(state, dataset):
    return algorithm.step(state, draw(task_key(_SEED.value, state.step), dataset))

  inputs = jnp.zeros([1, *dataset.image_shape])
  state = algorithm.init(init_fn(jax.random.key(_SEED.value), inputs))
  start = time.perf_counter()
  for i in range(_NUM_STEPS.value):
    state, metrics = step(state, dataset)
    if (i + 1) % 100 == 0:
      accuracy = float(metrics["accuracy"].mean())
      seconds = time.perf_counter() - start
      print(
        f"  step {i + 1}: query accuracy {accuracy:.3f}, {seconds:.0f} s", flush=True
      )
  adapt = functools.partial(algorithm.adapt, num_steps=_NUM_EVAL_INNER_STEPS.value)
  query_loss_fn = transductive_and_inductive(apply_fn, losses.cross_entropy)
  return evaluator(adapt, query_loss_fn), state.params


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  splits = {name: split.on_device() for name, split in characters.load().items()}
  test = splits["test"]
  print(
    f"{test}, fingerprint {test.fingerprint()}; Python {platform.python_version()}, "
    f"jax {jax.__version__}, numpy {np.__version__}, {jax.devices()[0].device_kind}"
  )

  def report(name: str, values: np.ndarray) -> None:
    mean, half_width = mean_and_ci95(values)
    print(f"{name}: {100 * mean:.2f} ± {100 * half_width:.2f} % ({len(values)} tasks)")

  nearest = evaluate(lambda _, tasks: nearest_neighbour_accuracy(tasks), None, test)
  report("nearest neighbour on pixels", nearest)
  evaluate_tasks, params = meta_learn(splits["train"])
  start = time.perf_counter()
  metrics = evaluate(evaluate_tasks, params, test)
  report("meta-learned Conv4, transductive", metrics["accuracy"])
  report("meta-learned Conv4, inductive", metrics["accuracy_inductive"])
  print(f"  testing took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
  app.run(main)
