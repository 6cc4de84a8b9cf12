"""Measures meta-steps per second, alternating with PyTorch.

Question: how many tasks per second does one machine meta-train on, how far is that from
the limit set by its matrix products, and how does it compare with PyTorch on the same
machine at the same time?

    python -m benchmarks.meta_step --torch_python=/path/to/torch-venv/bin/python

Every setting is Conv4 with batch statistics, cross-entropy, SGD inside and Adam
outside, float32 unless `--precision` says otherwise for jsharp's side. After one
untimed step each, the forms alternate, `--seconds` at a time for `--rounds` rounds, so
that other load on the machine affects all equally. The ratio is taken within rounds,
against the faster PyTorch form of that round. A product of two square matrices
alternates with them: "of matmul" is a form's arithmetic speed relative to that of the
product. Arithmetic is counted as that of direct convolutions
(`benchmarks/arithmetic.py`), so a form with fewer multiplications may exceed 100 %.
Memory is what the compiled step occupies on a device, including its arguments.
"""

import platform
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import flax
import jax
import optax
from absl import app, flags

from benchmarks.settings import SETTINGS, check_arguments
from benchmarks.steps import Step, compile_step, make_matmul
from benchmarks.tables import begin_table, by_turns, calls_per_second, spread
from benchmarks.torch_process import Torch
from jsharp.evaluation.report import git_commit
from jsharp.precision import PRECISIONS

_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", None, "Interpreter with PyTorch; without it only jsharp is timed."
)
_SETTINGS = flags.DEFINE_list(
  "settings", list(SETTINGS), "Which settings, comma-separated."
)
_ALGORITHMS = flags.DEFINE_list(
  "algorithms",
  ["maml", "fomaml", "anil", "sharp_maml_both"],
  "Which algorithms, comma-separated.",
)
_SECONDS = flags.DEFINE_float(
  "seconds", 5.0, "Seconds per form and round.", lower_bound=0
)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Number of rounds.", lower_bound=1)
_TORCH_FORMS = flags.DEFINE_list(
  "torch_forms",
  ["loop", "func"],
  "PyTorch's forms: loop, func and higher (MAML by that library, where PyTorch's "
  "interpreter has it). func holds all tasks' graphs at once; the system may end it.",
)
_THREADS = flags.DEFINE_integer("threads", 2, "PyTorch's threads.", lower_bound=1)
_NUM_DEVICES = flags.DEFINE_integer(
  "num_devices",
  1,
  "Devices that jsharp divides the tasks among; on a CPU parts of it.",
  lower_bound=1,
)
_TASK_CHUNK = flags.DEFINE_list(
  "task_chunk",
  ["0"],
  "jsharp's task_chunk, several are timed side by side; 0: default.",
)
_PRECISION = flags.DEFINE_enum(
  "precision",
  "float32",
  PRECISIONS,
  "Precision of jsharp's network, as in the experiments; PyTorch's network and the "
  "matrix product that speeds are compared with use float32.",
)

_MATMUL_SIZE = 2048


def report(name: str, algorithm: str, torch: Torch | None) -> None:
  """Measures all forms by turns and prints a row for each."""
  setting = SETTINGS[name]
  num_tasks = setting["num_tasks"]
  matmul = make_matmul(_MATMUL_SIZE)
  steps: dict[str, Step] = {}
  timers: dict[str, Callable[[float], float]] = {}
  for chunk in _TASK_CHUNK.value:
    label = "jsharp" if chunk == "0" else f"jsharp, task_chunk={chunk}"
    steps[label] = compile_step(
      setting,
      algorithm,
      precision=_PRECISION.value,
      chunk=int(chunk) or None,
      num_devices=_NUM_DEVICES.value,
    )
    run = steps[label].run
    timers[label] = lambda s, run=run: num_tasks * calls_per_second(run, s)  # type: ignore[misc]
  for form in _TORCH_FORMS.value if torch else ():
    if form == "higher" and algorithm != "maml":
      continue
    assert torch is not None
    timers[f"torch {form}"] = partial(torch.ask, name, setting, algorithm, form)
  timers["matmul"] = lambda s: calls_per_second(matmul, min(1.0, s))
  rates = by_turns(timers, _SECONDS.value, _ROUNDS.value)
  peaks = [2 * _MATMUL_SIZE**3 * speed / 1e9 for speed in rates.pop("matmul")]

  others = [values for label, values in rates.items() if label.startswith("torch")]
  best = [max(values) for values in zip(*others, strict=True)]
  for label, values in rates.items():
    cells = [name, algorithm, label, spread(values, 1)]
    if step := steps.get(label):
      ratios = [a / b for a, b in zip(values, best, strict=True)] if best else []
      speeds = [step.flops * value / 1e9 for value in values]
      shares = [100 * a / b for a, b in zip(speeds, peaks, strict=True)]
      cells += [
        spread(ratios, 2) if ratios else "",
        f"{step.compilation:.1f}",
        f"{step.memory / 2**20:.0f}",
        f"{step.flops / 1e9:.2f}",
        f"{statistics.median(speeds):.0f} of {statistics.median(peaks):.0f}",
        f"{statistics.median(shares):.0f} %",
      ]
    else:
      cells += [""] * 6
    print(f"| {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str]) -> None:
  check_arguments(argv, _SETTINGS.value)
  if _NUM_DEVICES.value > 1:
    jax.config.update("jax_num_cpu_devices", _NUM_DEVICES.value)
  torch = None
  if _TORCH_PYTHON.value:
    torch = Torch(_TORCH_PYTHON.value, _THREADS.value)
  commit = git_commit(Path(__file__).parents[1])
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, flax "
    f"{flax.__version__}, optax {optax.__version__}, "
    f"{torch.versions if torch else 'no torch'}; {jax.devices()[0].device_kind} x "
    f"{jax.device_count()}, {platform.machine()}, precision {_PRECISION.value}, "
    f"commit {commit}"
  )
  columns = [
    "setting",
    "algorithm",
    "form",
    "tasks/s, median (range)",
    "jsharp / faster torch",
    "compilation, s",
    "memory, MiB",
    "GFLOP per task",
    "GFLOP/s of matmul's",
    "of matmul",
  ]
  begin_table(columns)
  for name in _SETTINGS.value:
    for algorithm in _ALGORITHMS.value:
      report(name, algorithm, torch)
  if torch:
    torch.close()


if __name__ == "__main__":
  app.run(main)
