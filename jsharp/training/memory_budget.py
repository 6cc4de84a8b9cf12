"""The memory of a training step, and memory budgets."""

import os
import re
from collections.abc import Callable
from typing import Any

import jax

from jsharp.core.execution import Execution
from jsharp.training.devices import replicate, task_mesh
from jsharp.training.dispatch import Dispatcher
from jsharp.types import MetaAlgorithm, Params

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20}
_UNITS |= {"GIB": 2**30}


def in_bytes(budget: str) -> int:
  """Parses a size in bytes, or a fraction of the first device's memory.

  Args:
    budget: such as 8e9, 8GiB or 0.5.

  Returns:
    The number of bytes.

  Raises:
    ValueError: if it is neither a size nor a fraction.

  Example:
    >>> in_bytes("8KiB")
    8192
  """
  found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([KMG]i?B)?", budget.strip(), re.I)
  number = float(found[1]) if found else 0.0
  if not found or number <= 0:
    raise ValueError(
      f"--memory_budget={budget} is not a size; give bytes, as in 8e9 or 8GiB, or a "
      "fraction of the device's memory, as in 0.5"
    )
  if found[2] is None and number <= 1:
    return int(number * device_bytes())
  return int(number * _UNITS[(found[2] or "").upper()])


def device_bytes() -> int:
  """The memory of the first device in bytes; the machine's memory if it is a CPU.

  Example:
    >>> device_bytes() > 0
    True
  """
  statistics = jax.local_devices()[0].memory_stats() or {}
  return statistics.get("bytes_limit") or (
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  )


def needed_bytes(
  algorithm: MetaAlgorithm,
  params: Params,
  sample_tasks: Callable[..., Any],
  data: Any,
  *,
  num_tasks: int,
  num_devices: int = 1,
  execution: Execution = Execution(),
) -> int:
  """The memory of the compiled training step: arguments, results and temporaries.

  Args:
    algorithm: the algorithm whose step is compiled.
    params: its initial parameters.
    sample_tasks: as for `jsharp.train`.
    data: the pytree that `sample_tasks` reads.
    num_tasks: tasks per meta-step.
    num_devices: devices that they are divided among.
    execution: what it is compiled for.

  Returns:
    Bytes on one device.

  Raises:
    ValueError: if the compiler does not report it.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from jsharp import Batch, Task, maml
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    >>> batch = Batch(None, jnp.ones((1, 2)))
    >>> needed_bytes(algorithm, 0.0, lambda step, data: Task(batch, batch), None,
    ...   num_tasks=1) > 0
    True
  """
  state, mesh = algorithm.init(params), None
  if num_devices > 1:
    mesh = task_mesh(num_devices, num_tasks=num_tasks)
    state, data = replicate(state, mesh), replicate(data, mesh, constant=True)
  dispatcher = Dispatcher(
    algorithm, sample_tasks, num_tasks=num_tasks, mesh=mesh, execution=execution
  )
  dispatcher.compile(state, data)
  needed = dispatcher.needed_bytes
  if needed is None:
    raise ValueError(
      "--memory_budget needs a compiler that reports the memory of a program, and the "
      f"compiler for {jax.default_backend()} does not; choose --task_chunk and "
      "--second_order yourself"
    )
  return needed
