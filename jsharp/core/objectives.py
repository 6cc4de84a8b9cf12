"""The meta-objective: a task's loss after adaptation, and its mean over tasks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jsharp import tree as trees
from jsharp._checks import check_chunk
from jsharp.nn._divided import TASK_AXIS, undivided_mesh
from jsharp.types import AdaptFn, Batch, Chunk, Metrics, Params, Task, TaskLossFn

OverTasksFn = Callable[[Params, Task], tuple[Any, Any]]


def on_query(loss_fn: Callable[[Params, Batch], Any]) -> TaskLossFn:
  """Turns a loss of a batch into the loss of a task's query set.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.

  Returns:
    `query_loss_fn(params, task) -> (loss, metrics)`, transductive if `loss_fn`
    uses batch statistics.

  Example:
    >>> loss = on_query(lambda w, batch: (w * batch.inputs, {}))
    >>> loss(2.0, Task(Batch(1.0, None), Batch(3.0, None)))[0]
    6.0
  """
  return lambda params, task: loss_fn(params, task.query)


def after_adaptation(adapt: AdaptFn, query_loss_fn: TaskLossFn) -> TaskLossFn:
  """A task's loss as a function of the meta-parameters.

  Args:
    adapt: `adapt(params, support) -> adapted`.
    query_loss_fn: `query_loss_fn(adapted, task) -> (loss, metrics)`.

  Returns:
    `task_loss_fn(params, task) -> (loss, metrics)`; the metrics include the loss as
    `"loss"`.

  Example:
    >>> halve = lambda w, support: w / 2
    >>> task_loss_fn = after_adaptation(halve, lambda w, task: (w, {"accuracy": 1.0}))
    >>> task_loss_fn(4.0, Task(None, None))
    (2.0, {'loss': 2.0, 'accuracy': 1.0})
  """

  def task_loss_fn(params: Params, task: Task) -> tuple[jax.Array, Metrics]:
    loss, metrics = query_loss_fn(adapt(params, task.support), task)
    return loss, {"loss": loss, **metrics}

  return task_loss_fn


def task_gradient(
  task_loss_fn: Callable[[Params, Task], tuple[Any, Any]],
) -> Callable[[Params, Task], Any]:
  """The value and gradient of one task's loss, through its inner loop.

  Args:
    task_loss_fn: `task_loss_fn(params, task) -> (loss, aux)`.

  Returns:
    `(params, task) -> ((loss, aux), grads)`.

  Raises:
    ValueError: when called, if the inner loop has no reverse-mode derivative.

  Example:
    >>> fn = task_gradient(lambda w, task: (w * task, {}))
    >>> float(fn(2.0, jnp.array(3.0))[1])
    3.0
  """
  value_and_grad_fn = trees.value_and_grad(task_loss_fn, has_aux=True)

  def differentiated(params: Params, task: Task) -> Any:
    try:
      return value_and_grad_fn(params, task)
    except ValueError as error:
      if "lax.while_loop" not in str(error):
        raise
      raise ValueError(
        "the meta-gradient goes through a lax.while_loop, which has no reverse-mode "
        "derivative: in a line search of the inner optimizer (optax.lbfgs, "
        "scale_by_zoom_linesearch) or in the loss. Use optax.lbfgs(learning_rate, "
        "linesearch=None), or imaml or reptile, which do not differentiate inner steps"
      ) from error

  return differentiated


def over_tasks(
  task_fn: Callable[[Params, Task], tuple[Any, Any]], *, chunk: Chunk = None
) -> OverTasksFn:
  """Maps a function over tasks; averages its first result and collects its second.

  All batching of tasks goes through this function. Given the value and gradient of a
  task loss, it averages *per-task* gradients, `mean(vmap(grad))`: mathematically equal
  to `grad(mean(vmap))`, without its redundant convolutions. Memory use depends on the
  chunk, not on the number of tasks. Sums are taken in float32 or wider, whatever the
  dtype of a leaf.

  Inside a `jax.shard_map` (with `check_vma=False`) whose mesh has an axis "tasks",
  every device gets its part of the tasks, all of the same size and in the order of the
  axis. The mean and the collected results then cover all tasks, are the same on every
  device, and have no derivative: take gradients inside `task_fn`. Where such an axis is
  left to the compiler (`jsharp.training.devices.divide_batch`), all tasks are passed,
  and this function divides them; `task_fn` must then not close over traced arrays.

  Args:
    task_fn: `task_fn(params, task) -> (averaged, collected)`, two pytrees.
    chunk: how many tasks `vmap` batches at a time; the chunks run one after another and
      the last one may be smaller. None chooses by backend: 1 on a CPU, all tasks
      elsewhere. Results agree up to rounding. "in_order" takes one task at a time and
      adds in the order of the tasks: results are then bitwise equal on any number of
      devices of one kind, if the compiler is kept from fusing multiplications and
      additions (`XLA_FLAGS=--xla_cpu_max_isa=AVX` on x86). It holds the part to be
      averaged of every task in memory.

  Returns:
    `mapped(params, tasks) -> (averaged, collected)`: the mean over tasks of the
    first, in its own dtype (floating-point for integers and bools), and
    `[num_tasks, ...]` of the second.

  Raises:
    ValueError: if `chunk` is not one of these; when called, if there is no task, the
      arrays of `tasks` have different leading axes, or the devices cannot share the
      tasks evenly; when differentiated on several devices.

  Example:
    >>> mapped = over_tasks(lambda w, task: (w * task, task + 1), chunk=2)
    >>> mean, collected = mapped(2.0, jnp.array([1.0, 2.0, 3.0]))
    >>> float(mean), collected.tolist()
    (4.0, [2.0, 3.0, 4.0])
  """
  check_chunk("chunk", chunk)

  def mapped(params: Params, tasks: Task) -> tuple[Any, Any]:
    num_tasks = _num_tasks(tasks)
    if (mesh := undivided_mesh()) is not None:
      if num_tasks % mesh.shape[TASK_AXIS]:
        raise ValueError(
          f"{num_tasks} tasks or groups cannot be divided evenly among "
          f"{mesh.shape[TASK_AXIS]} devices; use a multiple of the number of devices"
        )
      specs = (P(), P(TASK_AXIS))
      divided: OverTasksFn = jax.shard_map(
        mapped, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False
      )
      return divided(params, tasks)
    num_devices = _num_devices()
    if isinstance(chunk, str):  # "in_order"
      return _in_order(task_fn, params, tasks)
    size = chunk or (1 if jax.default_backend() == "cpu" else num_tasks)
    size = min(size, num_tasks)
    num_whole = num_tasks // size
    dtypes: Any = None

    def one_chunk(some_tasks: Task) -> tuple[Any, Any]:
      nonlocal dtypes
      if size == 1:
        only = jax.tree.map(lambda x: x[0], some_tasks)
        total, collected = task_fn(params, only)
        dtypes = jax.tree.map(jnp.result_type, total)
        collected = jax.tree.map(lambda x: jnp.asarray(x)[None], collected)
        return jax.tree.map(_widened, total), collected
      rows, collected = jax.vmap(task_fn, in_axes=(None, 0))(params, some_tasks)
      dtypes = jax.tree.map(jnp.result_type, rows)
      return jax.tree.map(lambda x: jnp.sum(_widened(x), axis=0), rows), collected

    if num_whole == 1:
      total, collected = one_chunk(jax.tree.map(lambda x: x[:size], tasks))
    else:

      def add(total: Any, some_tasks: Task) -> tuple[Any, Any]:
        averaged, collected = one_chunk(some_tasks)
        return jax.tree.map(jnp.add, total, averaged), collected

      whole = jax.tree.map(
        lambda x: x[: num_whole * size].reshape(num_whole, size, *x.shape[1:]), tasks
      )
      first = jax.tree.map(lambda x: x[0], whole)
      zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one_chunk, first)[0]
      )
      total, collected = jax.lax.scan(add, zero, whole)
      collected = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected)
    if num_whole * size < num_tasks:
      rest = jax.tree.map(lambda x: x[num_whole * size :], tasks)
      total_rest, collected_rest = one_chunk(rest)
      total = jax.tree.map(jnp.add, total, total_rest)
      collected = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), collected, collected_rest
      )
    if num_devices > 1:
      total, collected = _constant((total, collected))
      total = sum_over_devices(total)
      collected = jax.lax.all_gather(collected, TASK_AXIS, tiled=True)
    return _mean(total, num_tasks * num_devices, dtypes), collected

  return mapped


def sum_over_devices(tree: Any) -> Any:
  """The sum over the mesh axis "tasks", as one message per dtype, in that dtype.

  Between processes, the latency of a message far exceeds the time to send a network's
  parameters, and each array would be a separate message.

  Args:
    tree: a pytree of arrays, inside a `jax.shard_map` over that axis.

  Returns:
    The sums, the same on every device.

  Example:
    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), (TASK_AXIS,))
    >>> total = jax.shard_map(sum_over_devices, mesh=mesh, in_specs=P(), out_specs=P())
    >>> total({"w": jnp.ones((2, 1)), "b": jnp.zeros(1)})["w"].tolist()
    [[1.0], [1.0]]
  """
  leaves, structure = jax.tree.flatten(tree)
  sums = list(leaves)
  # In the order of the leaves: the order of a set may differ between processes.
  for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
    places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
    vector = jnp.concatenate([leaves[i].ravel() for i in places])
    ends = np.cumsum([leaves[i].size for i in places])[:-1]
    parts = jnp.split(jax.lax.psum(vector, TASK_AXIS), ends)
    for i, part in zip(places, parts, strict=True):
      sums[i] = part.reshape(leaves[i].shape)
  return jax.tree.unflatten(structure, sums)


def _num_devices() -> int:
  """The number of devices among which tasks are divided in the current trace."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.shape[TASK_AXIS] if TASK_AXIS in mesh.manual_axes else 1


@jax.custom_jvp
def _constant(tree: Any) -> Any:
  """Forbids derivatives: the derivative of a sum over devices would differ on each."""
  return tree


@_constant.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
  raise ValueError(
    "over_tasks has no derivative if tasks are divided among devices; take the "
    "gradient inside task_fn, as in over_tasks(jax.value_and_grad(...))"
  )


def _in_order(task_fn: Any, params: Params, tasks: Task) -> tuple[Any, Any]:
  """`over_tasks` that adds in the same order on any number of devices."""
  num_tasks = _num_tasks(tasks)
  rows = jax.lax.map(lambda task: task_fn(params, task), tasks)
  if (num_devices := _num_devices()) > 1:
    rows = jax.lax.all_gather(_constant(rows), TASK_AXIS, tiled=True)
    num_tasks *= num_devices
  averaged, collected = rows
  zero = jax.tree.map(lambda x: jnp.zeros_like(_widened(x[0])), averaged)

  def add(total: Any, row: Any) -> tuple[Any, None]:
    return jax.tree.map(lambda x, y: x + _widened(y), total, row), None

  total, _ = jax.lax.scan(add, zero, averaged, length=num_tasks)
  dtypes = jax.tree.map(jnp.result_type, averaged)
  return _mean(total, num_tasks, dtypes), collected


def _widened(x: Any) -> jax.Array:
  """Converts to a dtype that is wide enough for a sum over many tasks."""
  wide = trees.at_least_float32(jnp.result_type(x))
  return jnp.asarray(x) if jnp.result_type(x) == wide else jnp.asarray(x, wide)


def _mean(total: Any, num_tasks: int, dtypes: Any) -> Any:
  """The mean, converted back to the original dtypes where these are inexact."""

  def one(x: jax.Array, dtype: Any) -> jax.Array:
    mean = x / num_tasks
    is_narrow = jnp.issubdtype(dtype, jnp.inexact) and dtype != mean.dtype
    return mean.astype(dtype) if is_narrow else mean

  return jax.tree.map(one, total, dtypes)


def _num_tasks(tasks: Task) -> int:
  stack = "jax.tree.map(lambda *x: jnp.stack(x), *tasks)"
  if type(tasks) in (list, tuple) and all(isinstance(t, Task) for t in tasks):
    raise ValueError(
      f"tasks is a {type(tasks).__name__} of {len(tasks)}, but must be one Task whose "
      f"arrays have a leading axis [num_tasks, ...]; stack them: {stack}"
    )
  axes = {
    jax.tree_util.keystr(path): jnp.shape(leaf)[:1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tasks)
  }
  lengths = set(axes.values())
  if len(lengths) != 1 or () in lengths or (0,) in lengths:
    found = ", ".join(
      f"tasks{path} has {'no axis' if not axis else axis[0]}"
      for path, axis in list(axes.items())[:4]
    )
    raise ValueError(
      "tasks must be arrays [num_tasks, ...] with the same num_tasks >= 1 for all, but "
      f"{found or 'there is no array'}; stack a list of tasks with {stack}"
    )
  return lengths.pop()[0]
