"""Measures memory and time of a second-order meta-step by inner steps, tasks and mode.

Question: what does the memory of a meta-gradient depend on, and what does it cost to
save some?

    python -m benchmarks.memory

MAML with SGD inside, on Conv4 or, `--setting=resnet12`, on ResNet-12, both with batch
statistics. `--rounds=0` only compiles, for steps that do not fit this machine.
Memory is what the compiler reserves for the step in addition to its arguments; it is
also reported in units of one support set's activations, the outputs of all blocks.
Modes are those of `--second_order`; they alternate, `--seconds` at a time for
`--rounds` rounds, and times are relative to the first mode ("stored" by default) in the
same round. The last column is the largest difference from the first mode's
meta-gradient, relative to the gradient's norm.
"""

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from absl import app, flags

from benchmarks.settings import SETTINGS, make_problem
from benchmarks.tables import calls_per_second, spread
from jsharp.algorithms import maml
from jsharp.core import second_order as memory
from jsharp.evaluation.report import git_commit
from jsharp.models.resnet12 import WIDE
from jsharp.training.devices import execution_for
from jsharp.types import LossFn

_SETTING = flags.DEFINE_enum(
  "setting", "omni", list(SETTINGS), "As in benchmarks.meta_step: shapes, network."
)
_INNER_STEPS = flags.DEFINE_list("inner_steps", ["1", "5", "10", "50"], "Inner steps.")
_NUM_TASKS = flags.DEFINE_list("num_tasks", ["4"], "Tasks per meta-step.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Seconds per mode and round.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=0)
_MODES = flags.DEFINE_list("modes", None, "Only these modes; default: all.")
_LOOP = flags.DEFINE_enum(
  "loop", None, ["unrolled", "scanned", "recomputed"], "How inner steps are repeated."
)

MODES: dict[str, Callable[[LossFn], LossFn]] = {
  "stored": lambda loss_fn: loss_fn,
  "recomputed": memory.recomputed,
  "forward_over_reverse": memory.forward_over_reverse,
}


class Step(NamedTuple):
  """A compiled meta-step.

  Attributes:
    run: runs the step once and waits for it.
    gradient: its meta-gradient as one vector; None with `--rounds=0`.
    temporary: bytes that it needs in addition to its arguments.
    seconds: compilation time.
  """

  run: Callable[[], Any]
  gradient: jax.Array | None
  temporary: int
  seconds: float


def compile_step(setting: dict[str, int], mode: str) -> Step:
  """Compiles a meta-step in one of the modes."""
  execution = execution_for()
  if _LOOP.value is not None:
    loop: Any = _LOOP.value
    execution = dataclasses.replace(execution, inner_steps=loop)
  params, loss_fn, tasks = make_problem(setting, execution=execution)
  algorithm = maml(
    MODES[mode](loss_fn),
    optax.sgd(0.1),
    optax.sgd(1.0),
    num_inner_steps=setting["inner_steps"],
    execution=execution,
  )
  state = algorithm.init(params)
  start = time.perf_counter()
  compiled = jax.jit(algorithm.step).lower(state, tasks).compile()
  seconds = time.perf_counter() - start

  def run() -> Any:
    return jax.block_until_ready(compiled(state, tasks))

  flat = jax.flatten_util.ravel_pytree
  gradient = None
  if _ROUNDS.value:
    gradient = flat(state.params)[0] - flat(run()[0].params)[0]
  analysis = compiled.memory_analysis()
  assert analysis is not None
  return Step(run, gradient, analysis.temp_size_in_bytes, seconds)


def activations(setting: dict[str, int]) -> int:
  """Bytes of all blocks' convolution outputs for one support set, float32."""
  size, count = setting["size"], 0
  if not setting["stride"]:
    for width in WIDE:
      count += 4 * size**2 * width
      size //= 2
    return 4 * count * setting["way"] * setting["shot"]
  for _ in range(4):
    outputs = size if setting["stride"] == 1 else -(-size // 2)
    count += outputs**2 * setting["filters"]
    size = size // 2 if setting["stride"] == 1 else outputs
  return 4 * count * setting["way"] * setting["shot"]


def report(setting: dict[str, int]) -> None:
  """Prints a row per mode."""
  modes = _MODES.value or list(MODES)
  steps = {mode: compile_step(setting, mode) for mode in modes}
  times: dict[str, list[float]] = {mode: [] for mode in modes}
  for _ in range(_ROUNDS.value):
    for mode, step in steps.items():
      times[mode].append(1 / calls_per_second(step.run, _SECONDS.value))
  exact = steps[modes[0]].gradient

  def shown(values: list[float], digits: int) -> str:
    return spread(values, digits) if values else ""

  for mode, step in steps.items():
    each = [1000 * seconds / setting["num_tasks"] for seconds in times[mode]]
    ratios = [a / b for a, b in zip(times[mode], times[modes[0]], strict=True)]
    difference = ""
    if exact is not None and step.gradient is not None:
      error = jnp.abs(step.gradient - exact).max() / jnp.linalg.norm(exact)
      difference = f"{error:.0e}"
    cells = [
      setting["inner_steps"],
      setting["num_tasks"],
      mode,
      f"{step.temporary / 2**20:.1f}",
      f"{step.temporary / activations(setting):.1f}",
      shown(each, 1),
      shown(ratios, 2),
      f"{step.seconds:.0f}",
      difference,
    ]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  commit = git_commit(Path(__file__).parents[1])
  print(
    f"{_SETTING.value}; Python {platform.python_version()}, jax {jax.__version__}; "
    f"{jax.devices()[0].device_kind} x {jax.device_count()}, commit {commit}\n"
  )
  print(
    "| inner steps | tasks | mode | memory, MiB | in activations | ms per task "
    "| time / stored | compilation, s | difference |\n" + "|---" * 9 + "|"
  )
  setting = SETTINGS[_SETTING.value]
  for num_tasks in _NUM_TASKS.value:
    for inner_steps in _INNER_STEPS.value:
      sizes = {"inner_steps": int(inner_steps), "num_tasks": int(num_tasks)}
      report(setting | sizes)


if __name__ == "__main__":
  app.run(main)
