"""Evaluation on a fixed, seeded list of tasks, with the papers' interval.

Task `i` of the list depends only on `i`, so two checkpoints, two algorithms or two
chunk sizes are always compared on the same tasks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jsharp._checks import check_count
from jsharp.core.execution import Execution
from jsharp.core.objectives import after_adaptation, over_tasks
from jsharp.data.episodes import Stream as TaskStream
from jsharp.data.episodes import task_key
from jsharp.data.streams import Feed, Stream
from jsharp.losses import Criterion
from jsharp.normalization import per_query, query_loss, transductive
from jsharp.training.devices import (
  PARTS_AXIS,
  compiler_options,
  parts_of_cpu,
  replicate,
)
from jsharp.training.stop_signal import StopSignal
from jsharp.tree import at_least_float32
from jsharp.types import AdaptFn, ApplyFn, Metrics, Params, Task, TaskLossFn

DEFAULT_CHUNK = 20
"""Tasks per call of the compiled evaluation; a call takes at most seconds on a CPU."""


def evaluator(
  adapt: AdaptFn, query_loss_fn: TaskLossFn, *, execution: Execution = Execution()
) -> Callable[[Params, Any], Metrics]:
  """Combines adaptation and a query loss into an evaluation of tasks.

  Both may differ from training. `functools.partial(algorithm.adapt, num_steps=10)`
  adapts a trained learner with more steps, and
  `jsharp.normalization.query_loss(policy(apply_fn), criterion)` measures it under
  another policy. Reuse the returned function: `evaluate` compiles once per object.

  Args:
    adapt: `adapt(params, support) -> adapted`, such as `MetaAlgorithm.adapt`.
    query_loss_fn: `query_loss_fn(adapted, task) -> (loss, metrics)`.
    execution: how to compute it; only `task_chunk` matters here.

  Returns:
    `evaluate_tasks(params, tasks) -> metrics`, per task, including the loss as
    `"loss"`.

  Example:
    >>> import functools
    >>> import optax
    >>> from jsharp import Batch, maml
    >>> from jsharp.losses import batch_loss, squared_error
    >>> apply_fn = lambda w, x: w * x
    >>> algorithm = maml(batch_loss(apply_fn, squared_error), optax.sgd(0.25),
    ...   optax.sgd(0.1), num_inner_steps=1)
    >>> batch = Batch(jnp.ones((2, 1)), jnp.zeros((2, 1)))
    >>> query_loss_fn = query_loss(transductive(apply_fn), squared_error)
    >>> for num_steps in (0, 1, 2):
    ...   adapt = functools.partial(algorithm.adapt, num_steps=num_steps)
    ...   evaluator(adapt, query_loss_fn)(4.0, Task(batch, batch))["loss"].tolist()
    [16.0, 16.0]
    [4.0, 4.0]
    [1.0, 1.0]
  """
  task_loss_fn = after_adaptation(adapt, query_loss_fn)
  mapped = over_tasks(
    lambda params, task: ((), task_loss_fn(params, task)[1]), chunk=execution.task_chunk
  )
  return lambda params, tasks: mapped(params, tasks)[1]


def _evaluate_chunk(params, data, start, *, evaluate_tasks, sample_task, chunk, mesh):
  num_parts = mesh.size if mesh else 1

  def one_part(params, data, start):
    indices = start + jnp.arange(chunk // num_parts)
    if mesh:
      indices += jax.lax.axis_index(PARTS_AXIS) * len(indices)
    tasks = jax.vmap(sample_task, in_axes=(0, None))(indices, data)
    return evaluate_tasks(params, tasks)

  if mesh:
    one_part = jax.shard_map(
      one_part, mesh=mesh, in_specs=P(), out_specs=P(PARTS_AXIS), check_vma=False
    )
  return one_part(params, data, start)


@functools.cache
def _jitted(options):
  names = ("evaluate_tasks", "sample_task", "chunk", "mesh")
  return jax.jit(_evaluate_chunk, static_argnames=names, compiler_options=dict(options))


def evaluate(
  evaluate_tasks: Callable[[Params, Any], Metrics],
  params: Params,
  sample_task: Callable[[jax.Array, Any], Any],
  data: Any,
  *,
  num_tasks: int,
  chunk: int = DEFAULT_CHUNK,
  stop: StopSignal | None = None,
  execution: Execution = Execution(),
) -> dict[str, np.ndarray]:
  """Evaluates parameters on tasks `0 .. num_tasks - 1` of a fixed list.

  It is compiled once per pair of `evaluate_tasks` and `sample_task`: pass the same
  objects again to avoid tracing a second time.

  Args:
    evaluate_tasks: `(params, tasks) -> metrics`, such as from `evaluator`, each metric
      `[chunk]` or `[chunk, ...]`.
    params: the meta-learned parameters.
    sample_task: `sample_task(index, data) -> Task`, pure; the whole list of tasks
      is this function.
    data: the pytree that `sample_task` reads, usually a `Dataset`.
    num_tasks: length of the list.
    chunk: tasks per compiled call. It bounds memory and the time between two checks of
      `stop`; it does not change which tasks are evaluated.
    stop: checked before every chunk.
    execution: with `single_threaded`, all devices of a CPU compute, each its part of
      the chunk. See `jsharp.training.devices.execution_for`.

  Returns:
    Per metric an array `[num_tasks, ...]`. Half precision is converted to float32,
    since NumPy's mean of 512 ones in bfloat16 is 0.5.

  Raises:
    ValueError: if `num_tasks` or `chunk` is not positive.
    StopRequested: from `stop`; partial results are discarded.

  Example:
    >>> from jsharp.types import Batch
    >>> def sample_task(index, data):
    ...   batch = Batch(data + index, data)
    ...   return Task(support=batch, query=batch)
    >>> def evaluate_tasks(params, tasks):
    ...   return {"loss": params * tasks.query.inputs.sum(axis=1)}
    >>> evaluate(evaluate_tasks, 2, sample_task, jnp.arange(2), num_tasks=3, chunk=2)
    {'loss': array([ 2,  6, 10], dtype=int32)}
  """
  check_count("num_tasks", num_tasks)
  chunk = min(check_count("chunk", chunk), num_tasks)
  if mesh := parts_of_cpu(execution):
    params, data = replicate((params, data), mesh, constant=True)
    chunk = -(-chunk // mesh.size) * mesh.size
  evaluate_chunk = _jitted(tuple(compiler_options(execution).items()))
  parts = []
  for start in range(0, num_tasks, chunk):
    if stop is not None:
      stop.check()
    metrics = evaluate_chunk(
      params,
      data,
      jnp.asarray(start, jnp.int32),
      evaluate_tasks=evaluate_tasks,
      sample_task=sample_task,
      chunk=chunk,
      mesh=mesh,
    )
    parts.append(jax.device_get(metrics))
  return {
    name: _at_least_float32(np.concatenate([part[name] for part in parts])[:num_tasks])
    for name in parts[0]
  }


def evaluate_stream(
  evaluate_batch: Callable[[Params, Any], Metrics],
  params: Params,
  stream: Stream,
  *,
  stop: StopSignal | None = None,
  execution: Execution = Execution(),
) -> dict[str, np.ndarray]:
  """Evaluates parameters on every example of a stream, each exactly once.

  Args:
    evaluate_batch: `(params, batch) -> metrics`, each `[batch_size]`. Compiled once per
      object.
    params: the parameters to evaluate.
    stream: a stream of all examples in order; the padding of its last batch is not
      counted.
    stop: checked before every batch.
    execution: as for `evaluate`; one device computes.

  Returns:
    Per metric an array `[num_examples]`, half precision as float32.

  Raises:
    ValueError: if an image cannot be decoded.
    OSError: if a file cannot be read.
    StopRequested: from `stop`; partial results are discarded.

  Example:
    >>> import io
    >>> from PIL import Image
    >>> from jsharp.data.examples import Examples
    >>> from jsharp.data.streams import StreamedImages
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (9, 6), (255, 0, 0)).save(file, "PNG")
    >>> encoded = [("red.png", file.getvalue())] * 3
    >>> images = StreamedImages(encoded, np.arange(3), size=2, num_workers=0)
    >>> labels = np.arange(3, dtype=np.int32)
    >>> data = Examples(images, labels, np.zeros(3, np.float32), np.ones(3, np.float32))
    >>> evaluate_batch = lambda w, batch: {"loss": w * batch.data.labels}
    >>> evaluate_stream(evaluate_batch, 2, Stream(data, batch_size=2))["loss"].tolist()
    [0, 2, 4]
  """
  compiled = _jitted_batch(evaluate_batch, tuple(compiler_options(execution).items()))
  stop = stop or StopSignal()
  params, parts = jax.device_put(params), []
  with Feed(stream) as feed:
    for _ in range(stream.num_batches):
      batch = feed.take(lambda: stop.requested)
      stop.check()
      parts.append(compiled(params, batch))
      if len(parts) > 1:  # At most two batches wait on the device.
        parts[-2] = jax.device_get(parts[-2])
  num_examples = len(stream.data.labels)
  parts = jax.device_get(parts)
  return {
    name: _at_least_float32(np.concatenate([part[name] for part in parts]))[
      :num_examples
    ]
    for name in parts[0]
  }


@functools.lru_cache(maxsize=8)
def _jitted_batch(evaluate_batch, options):
  return jax.jit(evaluate_batch, compiler_options=dict(options))


def _at_least_float32(values: np.ndarray) -> np.ndarray:
  if not jnp.issubdtype(values.dtype, jnp.floating):
    return values
  return values.astype(at_least_float32(values.dtype), copy=False)


def task_list(
  sample_one: Callable[[jax.Array, Any], Task], *, seed: int, stream: TaskStream
) -> Callable[[jax.Array, Any], Task]:
  """Turns a sampler into a fixed list of tasks, disjoint from the training stream.

  Args:
    sample_one: `sample_one(key, data) -> Task`.
    seed: the seed of the list, independent of a run's own seed, so that runs with
      several seeds are measured on the same tasks.
    stream: `"val"` or `"test"`.

  Returns:
    `sample_task(index, data) -> Task` for `evaluate`.

  Example:
    >>> keys = task_list(lambda key, data: key, seed=0, stream="test")
    >>> bool(keys(3, None) == keys(3, None)), bool(keys(3, None) == keys(4, None))
    (True, False)
  """
  key = task_key(seed, 0, stream=stream)
  return lambda index, data: sample_one(jax.random.fold_in(key, index), data)


def first_tasks(
  sample_task: Callable[[jax.Array, Any], Task], data: Any, *, num_tasks: int
) -> Task:
  """The first tasks of a list, stacked.

  Args:
    sample_task: `sample_task(index, data) -> Task`, as from `task_list`. Compiled once
      per object.
    data: the pytree that `sample_task` reads.
    num_tasks: the number of tasks.

  Returns:
    The tasks, `[num_tasks, ...]`.

  Raises:
    ValueError: if `num_tasks` is not positive.

  Example:
    >>> first_tasks(lambda index, data: index + data, 5, num_tasks=3).tolist()
    [5, 6, 7]
  """
  indices = jnp.arange(check_count("num_tasks", num_tasks))
  return _drawn(indices, data, sample_task=sample_task)


@functools.partial(jax.jit, static_argnames="sample_task")
def _drawn(indices, data, *, sample_task):
  return jax.vmap(sample_task, in_axes=(0, None))(indices, data)


def mean_and_ci95(values: Any) -> tuple[float, float]:
  """Mean over tasks and the half-width of its 95 % interval, as in the papers.

  `1.96 * std / sqrt(n)` with the unbiased standard deviation over tasks (Finn, Abbeel
  and Levine, 2017, report 600 tasks in this way). It covers only the choice of the test
  tasks, not the spread over training seeds.

  Args:
    values: `[num_tasks]`.

  Returns:
    `(mean, half_width)`.

  Raises:
    ValueError: if there are fewer than two values or `values` is not a vector.

  Example:
    >>> mean, half_width = mean_and_ci95([0.5, 1.0, 0.5, 1.0])
    >>> f"{mean:.2f} ± {half_width:.2f}"
    '0.75 ± 0.28'
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or values.size < 2:
    raise ValueError(
      f"values has shape {values.shape}; an interval needs a vector of at least two "
      "tasks."
    )
  half_width = 1.96 * values.std(ddof=1) / math.sqrt(values.size)
  return float(values.mean()), float(half_width)


def transductive_and_inductive(apply_fn: ApplyFn, criterion: Criterion) -> TaskLossFn:
  """A query loss that measures both transductively and inductively.

  The loss and the plain metrics are transductive: the whole query set is one
  normalisation batch, as in this line of papers. Each metric is also measured as
  `<name>_inductive`, where every query example is predicted alone, in one batch with
  the support set (Nichol, Achiam and Schulman, 2018).

  Args:
    apply_fn: `apply_fn(params, inputs) -> outputs`.
    criterion: `criterion(outputs, targets) -> (loss, metrics)`.

  Returns:
    `query_loss_fn(params, task) -> (loss, metrics)` for `evaluator`.

  Example:
    >>> from jsharp.losses import cross_entropy
    >>> from jsharp.types import Batch
    >>> batch = Batch(jnp.eye(2), jnp.arange(2))
    >>> query_loss_fn = transductive_and_inductive(lambda w, x: x @ w, cross_entropy)
    >>> loss, metrics = query_loss_fn(jnp.eye(2), Task(support=batch, query=batch))
    >>> sorted(metrics)
    ['accuracy', 'accuracy_inductive']
  """
  seen_together = query_loss(transductive(apply_fn), criterion)
  seen_alone = query_loss(per_query(apply_fn), criterion)

  def query_loss_fn(params: Params, task: Task) -> tuple[jax.Array, Metrics]:
    loss, metrics = seen_together(params, task)
    _, alone = seen_alone(params, task)
    alone = {f"{name}_inductive": value for name, value in alone.items()}
    return loss, {**metrics, **alone}

  return query_loss_fn
