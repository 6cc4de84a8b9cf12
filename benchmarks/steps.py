"""Compiled meta-steps and the products and copies that they are compared with."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import arithmetic
from benchmarks.settings import make_algorithm, make_problem
from jsharp.nn._divided import TASK_AXIS
from jsharp.training.devices import (
  compiler_options,
  execution_for,
  replicate,
  task_mesh,
)


class Step(NamedTuple):
  """A compiled meta-step.

  Attributes:
    run: one meta-step that keeps its own state; blocks until it is done.
    compilation: seconds.
    memory: bytes that it holds.
    flops: floating-point operations per task.
    traffic: bytes that the program reads and writes, as XLA counts them; None if it
      does not. The body of a loop counts once.
  """

  run: Callable[[], None]
  compilation: float
  memory: int
  flops: int
  traffic: float | None


def compile_step(
  setting: dict[str, int],
  algorithm: str,
  *,
  precision: str = "float32",
  chunk: int | None = None,
  num_devices: int = 1,
  flops: int | None = None,
) -> Step:
  """Compiles a meta-step.

  Args:
    setting: one of `benchmarks.settings.SETTINGS`.
    algorithm: as for `benchmarks.settings.make_algorithm`.
    precision: as for `jsharp.precision.in_precision`.
    chunk: the `task_chunk`; None for the default.
    num_devices: devices that share the tasks.
    flops: operations per task, if they are known; None counts those of a step with one
      task.
  """
  execution = execution_for(task_chunk=chunk)

  def problem(num_tasks: int) -> tuple[Any, Any, Any]:
    params, loss_fn, tasks = make_problem(
      setting | {"num_tasks": num_tasks}, precision, execution=execution
    )
    made = make_algorithm(algorithm, loss_fn, setting, execution=execution)
    return made.step, made.init(params), tasks

  if flops is None:
    flops = arithmetic.count(*problem(1))
  num_tasks = setting["num_tasks"]
  step, state, tasks = problem(num_tasks)
  if num_devices > 1:
    mesh = task_mesh(num_devices, num_tasks=num_tasks)
    state = replicate(state, mesh)
    by_task = PartitionSpec(TASK_AXIS)
    tasks = jax.device_put(tasks, NamedSharding(mesh, by_task))
    step = jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(PartitionSpec(), by_task),
      out_specs=PartitionSpec(),
      check_vma=False,
    )
  start = time.perf_counter()
  options = compiler_options(execution)
  compiled: Any = jax.jit(step, compiler_options=options).lower(state, tasks).compile()
  compilation = time.perf_counter() - start
  sizes = compiled.memory_analysis()

  def run() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(compiled(state, tasks))

  memory = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
  traffic = (compiled.cost_analysis() or {}).get("bytes accessed")
  return Step(run, compilation, memory, flops, traffic)


def make_matmul(
  size: int = 2048, *, precision: str = "highest", dtype: Any = jnp.float32
) -> Callable[[], Any]:
  """A product of two square matrices, `2 * size**3` operations."""
  square = jnp.ones((size, size), dtype)
  product = jax.jit(partial(jnp.matmul, precision=precision))
  return lambda: jax.block_until_ready(product(square, square))


def make_copy(size: int) -> Callable[[], Any]:
  """A copy of `size` float32 numbers with changed signs, `8 * size` bytes moved."""
  numbers = jnp.ones(size, jnp.float32)
  negative = jax.jit(jnp.negative)
  return lambda: jax.block_until_ready(negative(numbers))
