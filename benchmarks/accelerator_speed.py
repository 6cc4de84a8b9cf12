"""The second part of `benchmarks.accelerator`: meta-steps against PyTorch's.

    python -m benchmarks.accelerator_speed --out=DIRECTORY

Each cell is a setting of `benchmarks.meta_step` with a precision and a number of tasks
side by side. jsharp, PyTorch's loop and `torch.func` are timed one after the other on
the same device, `--seconds` each; PyTorch needs to be installed for this interpreter.

The roofline is the larger of arithmetic / peak and bytes / bandwidth. Peak and
bandwidth are measured first: a product of two large matrices in each precision, and a
large copy. Arithmetic is that of `benchmarks/arithmetic.py`; bytes are XLA's count for
the compiled step, which counts the body of a loop once.
"""

import importlib.util
import itertools
import pathlib
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import cases
from benchmarks.settings import SETTINGS
from benchmarks.steps import compile_step, make_copy, make_matmul
from benchmarks.tables import calls_per_second
from benchmarks.torch_process import Torch
from jsharp.evaluation.report import environment
from jsharp.training import use_compilation_cache

_OUT = flags.DEFINE_string("out", None, "Directory of the results.", required=True)
_TINY = flags.DEFINE_bool("tiny", False, "A small setting, to test the program.")
_SECONDS = flags.DEFINE_float("seconds", 1.5, "Seconds per form and cell.")
_PATIENCE = flags.DEFINE_float(
  "patience", 10.0, "A meta-step of PyTorch that would take longer is left out."
)

_TINY_SETTING = SETTINGS["omni_strided"] | {"filters": 4, "size": 16}
# In order of importance.
_NAMES = ("omni", "mini", "omni_strided")
_NUM_TASKS = (64, 16, 256, 4, 1)
_PEAKS: dict[str, dict[str, Any]] = {
  "float32": {"precision": "highest"},
  "tf32": {"precision": "tensorfloat32"},
  "bfloat16": {"precision": "default", "dtype": jnp.bfloat16},
}
_OTHERS = ("sharp_maml_both", "anil", "fomaml")
_FORMS = ("loop", "func")

Cell = tuple[str, str, str, int]
"""Setting, algorithm, precision and number of tasks."""


def all_cells(tiny: bool) -> list[Cell]:
  """The cells, the most important ones first."""
  if tiny:
    return [("tiny", "fomaml", "float32", 2)]
  precisions = tuple(_PEAKS)

  def rank(cell: Cell) -> int:
    name, _, precision, num_tasks = cell
    places = _NAMES.index(name), precisions.index(precision)
    return sum(places) + _NUM_TASKS.index(num_tasks)

  every = itertools.product(_NAMES, ("maml",), precisions, _NUM_TASKS)
  return sorted(every, key=rank) + [("omni", name, "float32", 64) for name in _OTHERS]


def setting_of(cell: Cell) -> dict[str, int]:
  """The setting of a cell."""
  name, _, _, num_tasks = cell
  setting = _TINY_SETTING if name == "tiny" else SETTINGS[name]
  return setting | {"num_tasks": num_tasks}


def label(cell: Cell, form: str) -> str:
  """The name of a cell's case."""
  return f"{' '.join(map(str, cell))}: {form}"


def of_jsharp(cell: Cell, seconds: float, values: dict[str, Any]) -> dict[str, Any]:
  """Times a meta-step of jsharp."""
  name, algorithm, precision, num_tasks = cell
  same = [v for k, v in values.items() if k.startswith(f"{name} {algorithm} ")]
  flops = next((v["flops per task"] for v in same if "flops per task" in v), None)
  step = compile_step(setting_of(cell), algorithm, precision=precision, flops=flops)
  step.run()
  time = 1 / calls_per_second(step.run, seconds)
  limits = [num_tasks * step.flops / values[f"peak {precision}"]["per second"]]
  if step.traffic is not None:
    limits.append(step.traffic / values["bandwidth"]["per second"])
  return {
    "tasks/s": num_tasks / time,
    "ms": 1000 * time,
    "roofline ms": 1000 * max(limits),
    "share of roofline": max(limits) / time,
    "limit": ("arithmetic", "bytes")[limits.index(max(limits))],
    "compilation s": step.compilation,
    "memory MiB": step.memory / 2**20,
    "flops per task": step.flops,
    "bytes": step.traffic,
  }


class OfTorch:
  """PyTorch's forms, in a process that starts at the first use."""

  def __init__(self, seconds: float, patience: float):
    self._process: Torch | None = None
    self._seconds, self._patience = seconds, patience

  def __call__(self, cell: Cell, form: str, values: dict[str, Any]) -> dict[str, Any]:
    """Times a meta-step; leaves it out if it would take too long."""
    name, algorithm, precision, num_tasks = cell
    before = [
      v["tasks/s"]
      for k, v in values.items()
      if k.startswith(f"{name} {algorithm} ") and k.endswith(f": torch {form}")
      if "tasks/s" in v
    ]
    if before and (expected := num_tasks / max(before)) > self._patience:
      return {"left out": f"a meta-step would take about {expected:.0f} s"}
    if self._process is None:
      device = "cuda" if jax.default_backend() == "gpu" else "cpu"
      self._process = Torch(sys.executable, threads=2, device=device)
    try:
      found = self._process.ask(
        name, setting_of(cell), algorithm, form, self._seconds, precision
      )
    except RuntimeError as error:
      if self._process.ended:
        self._process = None
      return {"left out": str(error)}
    return {"tasks/s": found, "ms": 1000 * num_tasks / found}

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._process.close()


def all_cases(
  of_torch: OfTorch | None, tiny: bool, seconds: float
) -> dict[str, cases.Case]:
  """The cases by name, in order of importance."""
  is_large = jax.default_backend() != "cpu"
  size, numbers = (8192, 2**28) if is_large else (256, 2**20)

  def peak(values: Any, *, options: dict[str, Any]) -> dict[str, float]:
    del values
    product = make_matmul(size, **options)
    product()
    return {"per second": 2 * size**3 * calls_per_second(product, seconds / 3)}

  def bandwidth(values: Any) -> dict[str, float]:
    del values
    copy = make_copy(numbers)
    copy()
    return {"per second": 8 * numbers * calls_per_second(copy, seconds / 3)}

  made: dict[str, cases.Case] = {}
  for precision, options in _PEAKS.items():
    made[f"peak {precision}"] = partial(peak, options=options)
  made["bandwidth"] = bandwidth
  if of_torch is None:
    made["torch"] = lambda _: {"left out": "PyTorch is not installed"}
  for cell in all_cells(tiny):
    made[label(cell, "jsharp")] = partial(of_jsharp, cell, seconds)
    for form in _FORMS if of_torch else ():
      assert of_torch is not None
      made[label(cell, f"torch {form}")] = partial(of_torch, cell, form)
  return made


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  out = pathlib.Path(_OUT.value)
  use_compilation_cache(str(out / "programs"))
  seconds = 0.01 if _TINY.value else _SECONDS.value
  has_torch = importlib.util.find_spec("torch") is not None
  of_torch = OfTorch(seconds, _PATIENCE.value) if has_torch else None
  made = all_cases(of_torch, _TINY.value, seconds)
  cases.run(out / "speed.json", made, about=environment())
  if of_torch:
    of_torch.close()


if __name__ == "__main__":
  app.run(main)
