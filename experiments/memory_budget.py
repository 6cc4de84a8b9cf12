"""The fastest way to compute a meta-step that fits into a given memory."""

import os
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax

from experiments.method_flags import SECOND_ORDER
from experiments.session import Parts
from jsharp.training.devices import replicate, task_mesh
from jsharp.training.dispatch import Dispatcher

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20}
_UNITS |= {"GIB": 2**30}


def fit(
  settings: SimpleNamespace, build: Callable[[SimpleNamespace], Parts]
) -> tuple[SimpleNamespace, Parts]:
  """Builds a run, leaner and leaner, until its training step fits.

  Args:
    settings: the values of the flags, with `memory_budget`.
    build: `build(settings) -> Parts`.

  Returns:
    The settings with the `task_chunk` and `second_order` that were chosen, and the
    parts, which say so in their protocol.

  Raises:
    ValueError: if the leanest way does not fit.
  """
  budget = in_bytes(settings.memory_budget)
  for chosen in _ways(settings):
    one = SimpleNamespace(**{**vars(settings), **chosen})
    parts = build(one)
    needed = needed_bytes(parts)
    if needed <= budget:
      facts = {"needed_bytes": needed, "budget_bytes": budget, **chosen}
      words = words_of(chosen)
      print(f"memory: {needed:,} of {budget:,} bytes with {words}", flush=True)
      parts.protocol["memory"] = facts
      return one, parts
  raise ValueError(
    f"--memory_budget={settings.memory_budget} is {budget:,} bytes, and the leanest "
    f"training step, {words_of(chosen)}, needs {needed:,}; raise it, or make the "
    "model, the tasks or the data smaller"
  )


def words_of(chosen: dict[str, Any]) -> str:
  """As the flags would say it."""
  return " ".join(f"--{name}={value}" for name, value in chosen.items())


def in_bytes(budget: str) -> int:
  """What `--memory_budget` says: bytes, or a fraction of the first device's memory.

  Raises:
    ValueError: if it is neither.
  """
  found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([KMG]i?B)?", budget.strip(), re.I)
  number = float(found[1]) if found else 0.0
  if not found or number <= 0:
    raise ValueError(
      f"--memory_budget={budget} is no size; give bytes, as in 8e9 or 8GiB, or a "
      "fraction of the device's memory, as in 0.5"
    )
  if found[2] is None and number <= 1:
    return int(number * device_bytes())
  return int(number * _UNITS[(found[2] or "").upper()])


def device_bytes() -> int:
  """Memory of the first device; the machine's own where the device is a CPU."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  return statistics.get("bytes_limit") or (
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  )


def needed_bytes(parts: Parts) -> int:
  """What the compiled training step holds on a device: arguments, results, between."""
  loop = parts.loop
  state, data, mesh = parts.algorithm.init(parts.params), parts.data, None
  if loop.get("num_devices", 1) > 1:
    mesh = task_mesh(loop["num_devices"], num_tasks=loop["num_tasks"])
    state, data = replicate(state, mesh), replicate(data, mesh, constant=True)
  dispatcher = Dispatcher(
    parts.algorithm, parts.sample_tasks, num_tasks=loop["num_tasks"], mesh=mesh
  )
  dispatcher.compile(state, data)
  needed = dispatcher.needed_bytes
  if needed is None:
    raise ValueError(
      "--memory_budget needs a compiler that says how much memory a program takes, "
      f"and that of {jax.default_backend()} does not; choose --task_chunk and "
      "--second_order yourself"
    )
  return needed


def _ways(settings: SimpleNamespace) -> Iterator[dict[str, Any]]:
  """The ways to compute a meta-step, the fastest first."""
  modes = ["stored"]
  if settings.algorithm in SECOND_ORDER and not settings.running_statistics:
    modes.append("forward_over_reverse")
  if jax.default_backend() == "cpu":  # one task at a time is fastest and leanest
    chunks = [1]
  else:
    largest = settings.num_tasks // settings.num_devices
    chunks = [largest]
    while chunks[-1] > 1:
      chunks.append(-(-chunks[-1] // 2))
  for chunk in chunks:
    for mode in modes:
      yield {"task_chunk": chunk, "second_order": mode}
