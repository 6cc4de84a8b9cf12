"""Measures tasks drawn per second, from the device and from host memory.

Question: does a meta-step ever wait for its images, and how much faster are tasks drawn
than it consumes them?

    python -m benchmarks.input

The images are random, in the numbers and sizes of the real datasets; tasks are as in
the other benchmarks. The meta-step is second-order MAML on tasks drawn beforehand. The
forms alternate, `--seconds` at a time for `--rounds` rounds, and ratios are taken
within rounds. The first two forms only draw tasks, one after another. "Between
meta-steps" draws from host memory after each meta-step; "prefetched" does too, with
images gathered during the meta-step. The time of the meta-steps is excluded and the
prefetch's overhead included: this is the time that training waits.
"""

import contextlib
import functools
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.settings import SETTINGS, check_arguments, make_algorithm, make_problem
from benchmarks.tables import begin_table, by_turns, calls_per_second, spread
from jsharp import data
from jsharp.data.prefetch import Prefetch
from jsharp.evaluation.report import git_commit
from jsharp.training.devices import execution_for

_NAMES = ("omni", "mini", "omni_20way", "mini_5shot")
_SETTINGS = flags.DEFINE_list(
  "settings", list(_NAMES), "Which settings, comma-separated."
)
_SECONDS = flags.DEFINE_float(
  "seconds", 2.0, "Seconds per form and round.", lower_bound=0
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=1)


def make_dataset(setting: dict[str, int]) -> data.Dataset:
  """Random images, as many as in Omniglot's or mini-ImageNet's training split."""
  is_omniglot = setting["channels"] == 1
  num_classes, size = (1200, 20) if is_omniglot else (64, 600)
  shape = (num_classes * size, setting["size"], setting["size"], setting["channels"])
  return data.Dataset(
    images=np.random.default_rng(0).integers(0, 256, shape, np.uint8),
    offsets=np.arange(num_classes, dtype=np.int32) * size,
    counts=np.full(num_classes, size, np.int32),
    class_names=tuple(map(str, range(num_classes))),
    split="train",
    num_rotations=4 if is_omniglot else 1,
  )


def make_step(setting: dict[str, int]) -> Callable[[], None]:
  """One meta-step that keeps its own state; blocks until it is done."""
  execution = execution_for()
  params, loss_fn, tasks = make_problem(setting, execution=execution)
  algorithm = make_algorithm("maml", loss_fn, setting, execution=execution)
  state, step = algorithm.init(params), jax.jit(algorithm.step)

  def run() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(step(state, tasks))

  return run


def report(name: str) -> None:
  """Measures all forms by turns and prints a row."""
  setting = SETTINGS[name]
  num_tasks = setting["num_tasks"]
  shape = {key: setting[key] for key in ("way", "shot", "query_shot")}
  dataset = make_dataset(setting)

  def sample_tasks(step: Any, dataset: Any) -> Any:
    key = data.task_key(0, step)
    return data.sample_tasks(key, dataset, num_tasks=num_tasks, **shape)

  draw = jax.jit(sample_tasks)
  step = make_step(setting)
  host, device = dataset.on_host(), dataset.on_device()
  ahead = Prefetch(sample_tasks, host)
  number = 0

  def drawn(dataset: data.Dataset) -> None:
    nonlocal number
    jax.block_until_ready(draw(np.int32(number), dataset))
    number += 1

  def between_steps(seconds: float, *, prefetched: bool) -> float:
    waited, count, start = 0.0, 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
      begin = time.perf_counter()
      with ahead.steps(number, 1) if prefetched else contextlib.nullcontext():
        waited += time.perf_counter()
        step()
        waited -= time.perf_counter()
        drawn(host)
      waited += time.perf_counter() - begin
      count += 1
    return count / waited

  timers: dict[str, Callable[[float], float]] = {
    "device": functools.partial(calls_per_second, lambda: drawn(device)),
    "host": functools.partial(calls_per_second, lambda: drawn(host)),
    "waits": functools.partial(between_steps, prefetched=False),
    "prefetched": functools.partial(between_steps, prefetched=True),
    "step": functools.partial(calls_per_second, step),
  }
  per_second = by_turns(timers, _SECONDS.value, _ROUNDS.value)
  rates = {form: [num_tasks * n for n in found] for form, found in per_second.items()}
  taken = rates.pop("step")
  ratios = [
    [a / b for a, b in zip(values, taken, strict=True)] for values in rates.values()
  ]
  cells = [
    name,
    f"{dataset.images.nbytes / 2**20:.0f}",
    *(spread(values, 0) for values in rates.values()),
    spread(taken, 1),
    *(spread(values, 0) for values in ratios),
  ]
  print(f"| {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str]) -> None:
  check_arguments(argv, _SETTINGS.value)
  commit = git_commit(Path(__file__).parents[1])
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, numpy "
    f"{np.__version__}; {jax.devices()[0].device_kind} x {jax.device_count()}, "
    f"{platform.machine()}, commit {commit}"
  )
  columns = [
    "setting",
    "images, MiB",
    "from the device, tasks/s, median (range)",
    "from host memory",
    "between meta-steps",
    "prefetched",
    "taken by the meta-step",
    "device / step",
    "host / step",
    "between / step",
    "prefetched / step",
  ]
  begin_table(columns)
  for name in _SETTINGS.value:
    report(name)


if __name__ == "__main__":
  app.run(main)
