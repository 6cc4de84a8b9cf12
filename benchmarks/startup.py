"""Measures the seconds from a command to its first finished meta-step.

Question: how long does one wait for `--help`, and for a first meta-step, with and
without programs compiled by an earlier start?

    python -m benchmarks.startup

Every start is a fresh process. The end of the first meta-step is the `wall_time` of the
first line of `metrics.jsonl`, with `--num_steps=1 --log_every=1`. "until built" is when
the run directory gets its `flags.txt`: Python, JAX, the data and the network are ready,
and the training step remains to be compiled (or loaded) and run. "cold" starts with an
empty `--compilation_cache_dir`, "warm" with the cache that the cold start filled and a
new run directory. The omni and mini rows have shapes of `benchmarks.meta_step`,
on characters drawn by jsharp itself: second-order MAML, Conv4 with max-pooling, 5-way
1-shot, 5 inner steps, 4 tasks. Importing JAX alone is measured by turns with the
others. CPU seconds are those of all cores; on a machine that does other work they are
more informative than wall-clock time.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import flax
import jax
from absl import app, flags

from benchmarks.tables import spread
from jsharp.evaluation.report import git_commit

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of rounds.", lower_bound=1)
_RUNS = flags.DEFINE_list(
  "runs", ["quickstart", "omni", "mini"], "Which runs, comma-separated."
)

_ROOT = Path(__file__).parents[1]
_SHAPE = (
  "--dataset=characters",
  "--algorithm=maml",
  "--model=conv4",
  "--way=5",
  "--shot=1",
  "--query_shot=15",
  "--num_inner_steps=5",
  "--num_tasks=4",
)
RUNS = {
  "quickstart": ("omniglot", "--flagfile=experiments/flagfiles/quickstart.txt"),
  "omni": ("omniglot", *_SHAPE, "--image_size=28", "--num_filters=64"),
  "mini": ("miniimagenet", *_SHAPE, "--image_size=84", "--num_filters=32"),
}
_SECONDS_TO_WAIT = 600.0


class Start(NamedTuple):
  """Seconds from the start of a process.

  Attributes:
    built: until its run directory is open.
    stepped: until the first meta-step is logged.
    cpu: of all cores, until it ended.
  """

  built: float
  stepped: float
  cpu: float


def cpu_of_children() -> float:
  """CPU seconds of all processes that were started here and have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def seconds_of(*arguments: str) -> tuple[float, float]:
  """How long a command of this interpreter takes from start to end, and CPU seconds.

  Raises:
    RuntimeError: if it prints nothing.
  """
  start, cpu = time.perf_counter(), cpu_of_children()
  done = subprocess.run(
    [sys.executable, *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
  )
  seconds = time.perf_counter() - start
  if not done.stdout:
    raise RuntimeError(f"{' '.join(arguments)} printed nothing; {done.stderr}")
  return seconds, cpu_of_children() - cpu


def first_step(experiment: str, *arguments: str, cache: Path) -> Start:
  """Starts a run, waits for its first meta-step and ends it.

  Raises:
    RuntimeError: if it ends, or `_SECONDS_TO_WAIT` pass, without one.
  """
  with tempfile.TemporaryDirectory() as directory:
    path = Path(directory)
    command = [sys.executable, "-m", f"experiments.{experiment}", *arguments]
    command += ["--num_steps=1", "--log_every=1", f"--run_dir={path / 'run'}"]
    command += [f"--compilation_cache_dir={cache}"]
    with (path / "output").open("w+") as output:
      start, cpu = time.time(), cpu_of_children()
      process = subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=output)
      try:
        metrics = path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().endswith("\n")):
          ended = process.poll() is not None
          if ended or time.time() - start > _SECONDS_TO_WAIT:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} took no step: {output.read()}")
          time.sleep(0.02)
      finally:
        process.kill()
        process.wait()
    record = json.loads(metrics.read_text().splitlines()[0])
    built = (path / "run" / "flags.txt").stat().st_mtime
    used = cpu_of_children() - cpu
    return Start(built - start, record["wall_time"] - start, used)


def measure() -> dict[str, list[tuple[float, ...]]]:
  """Seconds and CPU seconds by name of the row, one pair per round."""
  starts: dict[str, Callable[[], tuple[float, float]]] = {
    "python -c 'import jax'": lambda: seconds_of("-c", "import jax; print(jax)"),
    "--help": lambda: seconds_of("-m", "experiments.omniglot", "--help"),
  }
  seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in starts}
  for _ in range(_ROUNDS.value):
    for name, start in starts.items():
      seconds[name].append(start())
    for run in _RUNS.value:
      with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory, "cache")
        for temperature in ("cold", "warm"):
          one = first_step(*RUNS[run], cache=cache)
          for part, value in (
            ("until built", (one.built,)),
            ("then to the first step", (one.stepped - one.built,)),
            ("**first step**", (one.stepped, one.cpu)),
          ):
            seconds.setdefault(f"{run}, {temperature}: {part}", []).append(value)
  return seconds


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if unknown := set(_RUNS.value) - RUNS.keys():
    raise app.UsageError(f"--runs: {sorted(unknown)} not in {sorted(RUNS)}.")
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, flax "
    f"{flax.__version__}; {jax.devices()[0].device_kind}, "
    f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs, {platform.machine()}, "
    f"commit {git_commit(_ROOT)}\n\n"
    "| start | s, median (range) | CPU s |\n|---|---|---|",
    flush=True,
  )
  for name, values in measure().items():
    cells = [spread(column, 2) for column in zip(*values, strict=True)]
    print(f"| {name} | {' | '.join([*cells, ''][:2])} |")


if __name__ == "__main__":
  app.run(main)
