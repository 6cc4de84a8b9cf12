"""Times the all-reduce of a meta-gradient that a meta-step on several hosts needs.

Question: what does it cost to divide a meta-step among processes, and from how many
tasks per process is that cost small?

    python -m benchmarks.all_reduce

Starts the processes on this machine, connected over loopback as hosts are over a
network (on CPUs with JAX's Gloo collectives). Each has one device and sums, in
`jax.shard_map` as `jsharp.training.devices` does, trees of the shapes of the settings'
parameters: as one vector, as `jsharp.core.objectives` does, and array by array. Times
are of the first process, from call to call; the processes share the machine's cores,
which real hosts do not.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging
from jax.sharding import PartitionSpec as P

from benchmarks.settings import SETTINGS, check_arguments, make_problem
from benchmarks.tables import begin_table, spread
from jsharp.core.objectives import sum_over_devices
from jsharp.evaluation.report import git_commit
from jsharp.nn._divided import TASK_AXIS
from jsharp.training import processes
from jsharp.training.devices import replicate, task_mesh

_SETTINGS = flags.DEFINE_list(
  "settings", ["omni", "mini", "omni_strided"], "As in benchmarks.meta_step."
)
_PROCESSES = flags.DEFINE_list("processes", ["2", "4"], "Numbers of processes.")
_CALLS = flags.DEFINE_integer("calls", 200, "Sums per round.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Number of rounds.", lower_bound=1)
_RANK = flags.DEFINE_string("rank", None, "Rank of this process; set by the first.")


def measure(names: Sequence[str], calls: int, rounds: int) -> dict[str, list[float]]:
  """Milliseconds per sum, by setting, form and round, in every process alike."""
  count = jax.device_count()
  mesh = task_mesh(count, num_tasks=count)
  found: dict[str, list[float]] = {}
  for name in names:
    params, _, _ = make_problem(SETTINGS[name] | {"num_tasks": 1})
    tree = replicate(params, mesh)

    def compiled(function, mesh=mesh, tree=tree):
      def mean(tree):
        return jax.tree.map(lambda x: x / count, function(tree))

      spread_out = jax.shard_map(
        mean, mesh=mesh, in_specs=(P(),), out_specs=P(), check_vma=False
      )
      return jax.jit(spread_out).lower(tree).compile()

    forms = {
      f"{name}, one vector": compiled(sum_over_devices),
      f"{name}, {len(jax.tree.leaves(tree))} arrays": compiled(
        partial(jax.lax.psum, axis_name=TASK_AXIS)
      ),
    }
    for step in forms.values():
      jax.block_until_ready(step(tree))
    for _ in range(rounds):
      for label, step in forms.items():
        start = time.perf_counter()
        for _ in range(calls):
          tree = jax.block_until_ready(step(tree))
        each = 1000 * (time.perf_counter() - start) / calls
        found.setdefault(label, []).append(each)
  return found


def report(count: int, names: Sequence[str]) -> None:
  """Starts `count` processes and prints a row per setting."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
  command = [sys.executable, "-m", "benchmarks.all_reduce", *sys.argv[1:]]
  started = [
    subprocess.Popen(
      [*command, f"--rank={rank}/{count}/{address}"], stdout=subprocess.PIPE, text=True
    )
    for rank in range(count)
  ]
  answers = [process.communicate()[0] for process in started]
  if any(process.returncode for process in started):
    raise RuntimeError("a process failed; see its message above")
  # Gloo writes to the same stream before.
  for label, times in json.loads(answers[0].splitlines()[-1]).items():
    setting = SETTINGS[label.split(",")[0]] | {"num_tasks": 1}
    shapes = jax.eval_shape(lambda setting=setting: make_problem(setting)[0])
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    cells = [label, f"{size:,}", f"{4 * size / 2**20:.2f}", count, spread(times, 2)]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main(argv: Sequence[str]) -> None:
  check_arguments(argv, _SETTINGS.value)
  logging.set_verbosity(logging.WARNING)  # Otherwise absl shows JAX's messages.
  if _RANK.value:
    rank, count, address = _RANK.value.split("/")
    processes.start(
      coordinator=address,
      num_processes=int(count),
      process_id=int(rank),
      timeout=60,
    )
    print(json.dumps(measure(_SETTINGS.value, _CALLS.value, _ROUNDS.value)))
    return
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, "
    f"{platform.machine()}, {os.cpu_count()} cores, commit "
    f"{git_commit(Path(__file__).parents[1])}\n"
  )
  columns = ["setting", "parameters", "MiB", "processes", "ms per sum, median (range)"]
  begin_table(columns)
  for count in _PROCESSES.value:
    report(int(count), _SETTINGS.value)


if __name__ == "__main__":
  app.run(main)
