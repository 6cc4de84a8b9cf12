"""Steps on several devices: each computes its part of the tasks or of the batch.

Parameters, optimizer state and data are copied to every device. There are two ways to
divide a step:

- `on_devices` for meta-steps: each device draws its own tasks, from the same (seed,
  step, task number) on any number of devices. It uses `jax.shard_map`, since automatic
  partitioning would gather the inputs of grouped convolutions.
- `divide_batch` for ordinary steps: the step is written for the whole batch, and the
  compiler partitions it along the examples. So everything that depends on the whole
  batch (batch statistics, random draws, mixup) is the same on any number of devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsharp._checks import check_count
from jsharp._machine import num_cores
from jsharp.core.execution import Execution
from jsharp.nn._divided import TASK_AXIS
from jsharp.types import Chunk, Convolution

PARTS_AXIS = "parts"
"""The mesh axis of `parts_of_cpu`; nothing is averaged over it."""

Divide = Literal["tasks", "batch"]
"""What devices share: tasks, see `on_devices`, or a batch, see `divide_batch`."""

TakeStep = Callable[[Any, Any], tuple[Any, Any]]
"""`take_step(state, data) -> (state, metrics)`."""


def task_mesh(
  num_devices: int, *, num_tasks: int, num_tasks_name: str = "num_tasks"
) -> Mesh:
  """A one-dimensional mesh of the first devices, to divide tasks among.

  Args:
    num_devices: the number of devices.
    num_tasks: tasks per meta-step or examples per batch, a multiple of `num_devices`.
    num_tasks_name: the name of the last argument in messages.

  Returns:
    A mesh with the single axis "tasks".

  Raises:
    ValueError: if there are fewer devices, or they cannot share the tasks evenly.

  Example:
    >>> dict(task_mesh(1, num_tasks=4).shape)
    {'tasks': 1}
  """
  check_count("num_devices", num_devices)
  devices = jax.devices()
  if num_devices > len(devices):
    fix = "use at most this many"
    if jax.default_backend() == "cpu":
      fix += (
        f", or set XLA_FLAGS=--xla_force_host_platform_device_count={num_devices} for "
        "virtual ones"
      )
    raise ValueError(
      f"num_devices={num_devices}, but JAX has {len(devices)} "
      f"({devices[0].device_kind}); {fix}"
    )
  if jax.process_count() > 1 and num_devices != len(devices):
    raise ValueError(
      f"num_devices={num_devices}, but the {jax.process_count()} processes have "
      f"{len(devices)} together, and all must take part; pass {len(devices)}"
    )
  if rest := num_tasks % num_devices:
    below, above = num_tasks - rest, num_tasks - rest + num_devices
    nearest = below if below and rest <= num_devices - rest else above
    raise ValueError(
      f"{num_tasks_name}={num_tasks} cannot be divided evenly among "
      f"num_devices={num_devices}; the nearest number that can is {nearest}"
    )
  return jax.make_mesh(
    (num_devices,),
    (TASK_AXIS,),
    axis_types=(AxisType.Auto,),
    devices=devices[:num_devices],
  )


def execution_for(
  *,
  task_chunk: Chunk = None,
  convolution: Convolution = "auto",
  one_core_each: bool | None = None,
) -> Execution:
  """The execution that suits this machine, depending on its number of cores.

  If the devices of this process are parts of a CPU with one core each, or less, then
  dividing an operation among threads gains nothing, and operations with less arithmetic
  are faster even if they parallelise badly. Inner steps are then recomputed in the
  backward pass, convolutions use Winograd's form where it applies, and products use one
  thread. Call it when the devices have been set up, and pass the result on.

  Args:
    task_chunk: as in `Execution`.
    convolution: as in `Execution`; "auto" chooses what suits the machine.
    one_core_each: whether each device has one core, for programs that must be the same
      on any number of devices; None counts cores and devices.

  Returns:
    The execution.

  Raises:
    ValueError: as `Execution` does.

  Example:
    >>> execution_for(task_chunk=2, one_core_each=False) == Execution(task_chunk=2)
    True
    >>> execution_for(one_core_each=True).inner_steps
    'recomputed'
  """
  execution = Execution(task_chunk=task_chunk, convolution=convolution)
  if not (_one_core_each() if one_core_each is None else one_core_each):
    return execution
  return dataclasses.replace(
    execution,
    inner_steps="recomputed",
    convolution="auto_winograd" if convolution == "auto" else convolution,
    single_threaded=True,
  )


def _one_core_each() -> bool:
  if jax.default_backend() != "cpu":
    return False
  return num_cores() <= jax.local_device_count()


def compiler_options(execution: Execution) -> dict[str, bool | str]:
  """The compiler options of a step, for `jax.jit`.

  If each device of a CPU computes with one thread, products are not divided among
  threads, because the threads of one device would wait for those of another.

  Args:
    execution: `single_threaded` matters here.

  Example:
    >>> compiler_options(Execution())
    {}
  """
  if execution.single_threaded and jax.default_backend() == "cpu":
    return {"xla_cpu_multi_thread_eigen": False}
  return {}


def local_parts(mesh: Mesh) -> list[tuple[int, int]]:
  """The parts of the tasks that this process's devices draw.

  Args:
    mesh: from `task_mesh`.

  Returns:
    `(index, count)` for each device, as `on_devices` passes them.

  Example:
    >>> local_parts(task_mesh(1, num_tasks=4))
    [(0, 1)]
  """
  devices = list(mesh.devices.flat)
  here = jax.process_index()
  return [(i, len(devices)) for i, d in enumerate(devices) if d.process_index == here]


def replicate(tree: Any, mesh: Mesh, *, constant: bool = False) -> Any:
  """Copies arrays to every device of a mesh.

  Args:
    tree: any pytree of arrays, the same in every process.
    mesh: from `task_mesh`.
    constant: whether the arrays are never donated to a program; the parts of a CPU then
      share one copy.

  Returns:
    The same pytree.

  Example:
    >>> import jax.numpy as jnp
    >>> replicate(jnp.ones(2), task_mesh(1, num_tasks=1)).is_fully_replicated
    True
  """
  sharding = NamedSharding(mesh, P())
  if mesh.is_multi_process:

    def spread(x: Any) -> jax.Array:
      host = np.asarray(x)
      return jax.make_array_from_callback(host.shape, sharding, lambda _: host)

    return jax.tree.map(spread, tree)
  if constant and mesh.devices.flat[0].platform == "cpu":
    # NumPy arrays are used without a copy.
    tree = jax.tree.map(_in_numpy, tree)
  return jax.device_put(tree, sharding)


def _in_numpy(x: Any) -> Any:
  is_numbers = isinstance(x, jax.Array) and not jax.dtypes.issubdtype(
    x.dtype, jax.dtypes.extended
  )
  return np.asarray(x) if is_numbers else x


def one_copy(tree: Any) -> Any:
  """The first local device's copy of replicated arrays.

  Args:
    tree: any pytree; arrays on one device do not change.

  Returns:
    The same pytree, for computations on one device.

  Example:
    >>> import jax.numpy as jnp
    >>> copies = replicate(jnp.ones(2), task_mesh(1, num_tasks=1))
    >>> len(one_copy(copies).devices())
    1
  """
  return jax.tree.map(
    lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree
  )


def parts_of_cpu(execution: Execution) -> Mesh | None:
  """This process's devices, if they are parts of a CPU with one thread each.

  Args:
    execution: `single_threaded` matters here.

  Returns:
    A mesh with the single axis "parts"; None if there is one device, or if the devices
    are not single-threaded parts of a CPU.

  Example:
    >>> parts_of_cpu(Execution()) is None
    True
  """
  several = jax.local_device_count() > 1 and jax.process_count() == 1
  if not several or jax.default_backend() != "cpu" or not execution.single_threaded:
    return None
  devices = jax.local_devices()
  return jax.make_mesh(
    (len(devices),), (PARTS_AXIS,), axis_types=(AxisType.Auto,), devices=devices
  )


def on_devices(
  step: Callable[[Any, Any], tuple[Any, Any]],
  sample_tasks: Callable[..., Any],
  mesh: Mesh,
) -> TakeStep:
  """Draws tasks and takes a meta-step, with every device computing its part.

  Args:
    step: `MetaAlgorithm.step` of an algorithm that averages by `over_tasks`.
    sample_tasks: `sample_tasks(step, data, part=(index, count)) -> tasks`, the
      `index`-th of `count` equal parts of the step's tasks, in order; `index` is
      traced.
    mesh: from `task_mesh`.

  Returns:
    `take_step(state, data) -> (state, metrics)`, with the metrics of all tasks.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from jsharp import Batch, Task, maml
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = maml(loss_fn, optax.sgd(0.25), optax.sgd(0.5), num_inner_steps=1)
    >>> def sample_tasks(step, data, part):
    ...   batch = Batch(None, jax.lax.dynamic_slice(data, (part[0] * 2, 0), (2, 1)))
    ...   return Task(support=batch, query=batch)
    >>> take_step = on_devices(
    ...   algorithm.step, sample_tasks, task_mesh(1, num_tasks=2))
    >>> state, _ = take_step(algorithm.init(3.0), jnp.array([[0.0], [2.0]]))
    >>> float(state.params)
    2.5
  """
  count = mesh.shape[TASK_AXIS]

  def one_part(state: Any, data: Any) -> tuple[Any, Any]:
    part = (jax.lax.axis_index(TASK_AXIS), count)
    return step(state, sample_tasks(state.step, data, part=part))

  return jax.shard_map(
    one_part, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False
  )


def divide_batch(
  step: Callable[[Any, Any], tuple[Any, Any]],
  sample_batch: Callable[[Any, Any], Any],
  mesh: Mesh,
) -> TakeStep:
  """Draws a batch and takes a step on it, with its examples divided among the devices.

  The compiler partitions the computation, so the result is that of one device up to
  rounding, whatever the step does with the batch. `jsharp.over_tasks` inside the step
  divides its tasks itself.

  Args:
    step: `step(state, batch) -> (state, metrics)`, as on one device.
    sample_batch: `sample_batch(step, data) -> batch`, `[num_examples, ...]` each.
    mesh: from `task_mesh`.

  Returns:
    `take_step(state, data) -> (state, metrics)`, for `jax.jit`.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp.types import MetaState
    >>> def step(state, batch):
    ...   return MetaState(state.step + 1, state.params - batch.mean(), ()), {}
    >>> mesh = task_mesh(1, num_tasks=2)
    >>> take_step = jax.jit(divide_batch(step, lambda step, data: data, mesh))
    >>> state, _ = take_step(MetaState(0, jnp.float32(3.0), ()), jnp.array([0.0, 2.0]))
    >>> float(state.params)
    2.0
  """

  def take_step(state: Any, data: Any) -> tuple[Any, Any]:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      batch = sample_batch(state.step, data)
      batch = jax.lax.with_sharding_constraint(batch, rows_divided(batch, mesh))
      return step(state, batch)

  return take_step


def rows_divided(batch: Any, mesh: Mesh) -> Any:
  """Shardings that divide a batch among the devices, for `divide_batch`.

  They decide only where the arrays are, so a result does not depend on them.

  Args:
    batch: any pytree of arrays, or of their shapes and dtypes.
    mesh: from `task_mesh`.

  Returns:
    A pytree of shardings: arrays whose first axis the devices can share evenly are
    divided along it, the others are copied to each device.

  Example:
    >>> found = rows_divided((np.ones((2, 3)), 1.0), task_mesh(1, num_tasks=2))
    >>> [sharding.spec == P("tasks") for sharding in found]
    [True, False]
  """

  def sharding(x: Any) -> NamedSharding:
    shared = np.ndim(x) > 0 and np.shape(x)[0] % mesh.size == 0
    return NamedSharding(mesh, P(TASK_AXIS) if shared else P())

  return jax.tree.map(sharding, batch)
