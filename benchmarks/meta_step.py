"""Second-order MAML meta-steps per second, against PyTorch by turns.

Question: how many tasks a second does one machine meta-train on, and how does that
compare with PyTorch on the same machine in the same minutes?

    python -m benchmarks.meta_step --torch_python=/path/to/torch-venv/bin/python

Every setting is Conv4 with batch statistics, cross-entropy, SGD inside and Adam
outside, float32. After one untimed step each, the forms take turns, `--seconds` at
a time for `--rounds` rounds, so that what else the machine does hits all alike; the
ratio is taken round by round against the faster PyTorch form of that round.
"""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import optax
from absl import app, flags

from benchmarks.settings import SETTINGS, make_problem
from benchmarks.tables import spread
from jsharp.algorithms import maml
from jsharp.report import git_commit

_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", None, "Interpreter with PyTorch; without it only jsharp is timed."
)
_SETTINGS = flags.DEFINE_list(
  "settings", ["omni", "mini", "omni_strided"], "Which settings, comma-separated."
)
_SECONDS = flags.DEFINE_float(
  "seconds", 5.0, "Seconds per form and round.", lower_bound=0
)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Number of rounds.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 2, "PyTorch's threads.", lower_bound=1)
_TASK_CHUNK = flags.DEFINE_list(
  "task_chunk",
  ["0"],
  "jsharp's task_chunk, several are timed side by side; 0: default.",
)


class Torch:
  """The PyTorch process, asked for one round at a time."""

  def __init__(self, python: str, threads: int):
    script = Path(__file__).with_name("torch_meta_step.py")
    self._process = subprocess.Popen(
      [python, str(script), str(threads)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.versions = self._answer()

  def _answer(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        "the PyTorch process ended; see its message above and check --torch_python"
      )
    return json.loads(line)

  def tasks_per_second(self, name: str, form: str, seconds: float) -> float:
    """Runs one round of one form."""
    request = {"setting": SETTINGS[name] | {"name": name}, "form": form}
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request | {"seconds": seconds}) + "\n")
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()


def make_step(setting: dict[str, int], task_chunk: int | None) -> Callable[[], None]:
  """One jsharp meta-step that keeps its own state; blocks until it is done."""
  params, loss_fn, tasks = make_problem(setting)
  algorithm = maml(
    loss_fn,
    optax.sgd(0.1),
    optax.adam(1e-3),
    num_inner_steps=setting["inner_steps"],
    task_chunk=task_chunk,
  )
  state = algorithm.init(params)
  jitted = jax.jit(algorithm.step)

  def step():
    nonlocal state
    state, _ = jax.block_until_ready(jitted(state, tasks))

  return step


def time_jsharp(step: Callable[[], None], num_tasks: int, seconds: float) -> float:
  count, start = 0, time.perf_counter()
  while count == 0 or time.perf_counter() - start < seconds:
    step()
    count += 1
  return count * num_tasks / (time.perf_counter() - start)


def measure(name: str, torch: Torch | None) -> dict[str, list[float]]:
  """Tasks per second of every form, round by round."""
  setting = SETTINGS[name]
  timers: dict[str, Callable[[float], float]] = {}
  for chunk in _TASK_CHUNK.value:
    label = "jsharp" if chunk == "0" else f"jsharp, task_chunk={chunk}"
    step = make_step(setting, int(chunk) or None)
    timers[label] = partial(time_jsharp, step, setting["num_tasks"])
  if torch:
    for form in ("loop", "func"):
      timers[f"torch {form}"] = partial(torch.tasks_per_second, name, form)
  for timer in timers.values():
    timer(0.0)
  rates: dict[str, list[float]] = {label: [] for label in timers}
  for _ in range(_ROUNDS.value):
    for label, timer in timers.items():
      rates[label].append(timer(_SECONDS.value))
  return rates


def report(name: str, rates: dict[str, list[float]]) -> None:
  torch = [values for label, values in rates.items() if label.startswith("torch")]
  best = [max(values) for values in zip(*torch, strict=True)]
  for label, values in rates.items():
    row = f"| {name} | {label} | {spread(values, 1)} |"
    if best and not label.startswith("torch"):
      row += f" {spread([a / b for a, b in zip(values, best, strict=True)], 2)} |"
    else:
      row += " |"
    print(row, flush=True)


def main(argv: Sequence[str]) -> None:
  del argv
  if unknown := set(_SETTINGS.value) - SETTINGS.keys():
    raise app.UsageError(f"--settings: {sorted(unknown)} not in {sorted(SETTINGS)}.")
  torch = Torch(_TORCH_PYTHON.value, _THREADS.value) if _TORCH_PYTHON.value else None
  commit = git_commit(Path(__file__).parents[1])
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, flax "
    f"{flax.__version__}, optax {optax.__version__}, "
    f"{torch.versions if torch else 'no torch'}; {jax.devices()[0].device_kind} x "
    f"{jax.device_count()}, {platform.machine()}, commit {commit}"
  )
  print("| setting | form | tasks/s, median (range) | jsharp / faster torch |")
  print("|---|---|---|---|", flush=True)
  for name in _SETTINGS.value:
    report(name, measure(name, torch))
  if torch:
    torch.close()


if __name__ == "__main__":
  app.run(main)
