"""Breaks down the time of one meta-step by layer and by kind of operation.

Question: what should be made faster next?

    python -m benchmarks.breakdown --settings=omni,mini

One task at a time on a CPU. A trace of JAX's profiler gives the time of every compiled
operation, and the compiled program says which layer each belongs to. The time is the
median over `--steps` steps, times the number of runs per step. Bind the process to one
core (`taskset -c 0`), because times of parallel operations overlap. "Products" are
convolutions and matrix products, "copies" only move numbers (padding, concatenating,
transposing), "sums" are reductions, and "rest" is elementwise. The header states the
overhead of the trace; if it is large, other programs disturbed the measurement.
"""

import glob
import platform
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags

from benchmarks.settings import SETTINGS, check_arguments, make_algorithm, make_problem
from benchmarks.tables import begin_table
from jsharp.evaluation.report import git_commit
from jsharp.training.devices import execution_for

_SETTINGS = flags.DEFINE_list(
  "settings", ["omni", "mini"], "As in benchmarks.meta_step."
)
_ALGORITHM = flags.DEFINE_string("algorithm", "maml", "As in benchmarks.meta_step.")
_STEPS = flags.DEFINE_integer("steps", 10, "Number of traced steps.", lower_bound=1)

KINDS = ("products", "copies", "sums", "rest")
_COPIES = {
  "bitcast", "broadcast", "concatenate", "constant", "copy", "dynamic-slice",
  "dynamic-update-slice", "pad", "parameter", "reshape", "slice", "transpose", "tuple",
  "get-tuple-element",
}  # fmt: skip
_LAYER = re.compile(r"\b(conv_\d|norm_\d|head)\b")
_INSTRUCTION = re.compile(
  r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?:\(.*?\)|\S+) (?P<opcode>[\w\-]+)\("
)


def operations(program: str) -> dict[str, tuple[str, str]]:
  """`name -> (layer, kind)` of every instruction of a compiled program's text."""
  bodies: dict[str, list[str]] = {}
  for line in program.splitlines():
    if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
      body = bodies[start[1]] = []
    elif bodies:
      body.append(line)

  def opcodes(line: str, opcode: str) -> set[str]:
    called = re.search(r"calls=%?([\w.\-]+)", line)
    if not called:
      return {opcode}
    found: set[str] = set()
    for inner in bodies[called[1]]:
      if match := _INSTRUCTION.match(inner):
        found |= opcodes(inner, match["opcode"])
    return found

  def layer(line: str) -> str | None:
    name = re.search(r'op_name="([^"]*)"', line)
    found = _LAYER.findall(name[1]) if name else []
    if not (name and found):
      return None
    # A normalisation that pools is given the kernel, and convolves.
    return found[-1].replace("norm", "conv") if "conv2d" in name[1] else found[-1]

  table = {}
  for lines in bodies.values():
    for line in lines:
      if match := _INSTRUCTION.match(line):
        table[match["name"]] = (
          layer(line) or "other",
          _kind(opcodes(line, match["opcode"])),
        )
  return {name: found for name, found in table.items() if found[1] != "control"}


def _kind(opcodes: set[str]) -> str:
  if opcodes & {"while", "call", "conditional"}:
    return "control"  # Its time is that of the operations in it.
  if opcodes & {"convolution", "dot"}:
    return "products"
  if opcodes & {"reduce", "reduce-window"}:
    return "sums"
  return "copies" if opcodes <= _COPIES else "rest"


def report(name: str) -> None:
  """Traces one setting and prints its table."""
  setting = SETTINGS[name] | {"num_tasks": 1}
  execution = execution_for()
  params, loss_fn, tasks = make_problem(setting, execution=execution)
  algorithm = make_algorithm(_ALGORITHM.value, loss_fn, setting, execution=execution)
  state = algorithm.init(params)
  step = jax.jit(algorithm.step).lower(state, tasks).compile()
  table = operations(step.as_text() or "")

  def wall() -> float:
    start = time.perf_counter()
    jax.block_until_ready(step(state, tasks))
    return 1000 * (time.perf_counter() - start)

  for _ in range(3):
    wall()
  plain = statistics.median(wall() for _ in range(_STEPS.value))
  times: dict[str, list[float]] = defaultdict(list)
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      traced = statistics.median(wall() for _ in range(_STEPS.value))
    (path,) = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
    for plane in jax.profiler.ProfileData.from_file(path).planes:
      for line in plane.lines:
        for event in line.events:
          if event.name in table:
            times[event.name].append(event.duration_ns / 1e6)
  cells: defaultdict[tuple[str, str], float] = defaultdict(float)
  for operation, found in times.items():
    often = len(found) / _STEPS.value
    cells[table[operation]] += often * statistics.median(found)
  total = sum(cells.values())
  print(
    f"\n{name}, {_ALGORITHM.value}: {plain:.0f} ms per task, {traced:.0f} traced, "
    f"{total:.0f} in {sum(map(len, times.values())) / _STEPS.value:.0f} operations\n"
  )
  begin_table(["ms", *KINDS, "all", "share"])
  layers = sorted({layer for layer, _ in cells}, key=lambda x: (x == "other", x))
  for layer in [*layers, "all"]:
    row = [
      sum(ms for (at, of), ms in cells.items() if of == kind and layer in (at, "all"))
      for kind in KINDS
    ]
    shown = [f"{ms:.1f}" for ms in [*row, sum(row)]]
    share = f"{100 * sum(row) / total:.0f} %"
    print(f"| {' | '.join([layer, *shown, share])} |", flush=True)


def main(argv: Sequence[str]) -> None:
  check_arguments(argv, _SETTINGS.value)
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, "
    f"{jax.devices()[0].device_kind}, {platform.machine()}, commit "
    f"{git_commit(Path(__file__).parents[1])}"
  )
  for name in _SETTINGS.value:
    report(name)


if __name__ == "__main__":
  app.run(main)
