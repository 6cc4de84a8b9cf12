"""Measures the error of a float32 meta-gradient relative to float64.

Question: does a form of convolution lose significant digits?

    python -m benchmarks.numerics --settings=omni,mini

For each setting, number of inner steps and form of convolution: the length of the
difference between MAML's meta-gradient in float32 and in float64, relative to the
latter's length, for one task at the start of training; median and range over `--seeds`
tasks of random images. "Smooth" is the same for a network with mean pooling instead of
max pooling and softplus instead of ReLU: there rounding cannot change which element of
a window is the largest, or its sign, and derivatives are continuous. "PyTorch" is
PyTorch's own float32 against its float64, with `--torch_python`.
"""

import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from flax import linen as nn

from benchmarks.gradients import in_dtype, meta_gradient, relative_error
from benchmarks.settings import INNER_LR, SETTINGS, check_arguments, make_problem
from benchmarks.tables import begin_table, spread
from benchmarks.torch_process import Torch
from jsharp.algorithms import maml
from jsharp.evaluation.report import git_commit
from jsharp.nn import _channels, _convolved_map
from jsharp.training.devices import execution_for

_SETTINGS = flags.DEFINE_list(
  "settings", ["omni", "mini", "omni_strided"], "As in benchmarks.meta_step."
)
_INNER_STEPS = flags.DEFINE_list("inner_steps", ["1", "5"], "Numbers of inner steps.")
_FORMS = flags.DEFINE_list(
  "forms", ["direct", "im2col", "auto_winograd"], "As in jsharp.nn.conv2d."
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of tasks.", lower_bound=1)
_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", None, "Interpreter with PyTorch, to measure it too."
)


def main(argv: Sequence[str]) -> None:
  check_arguments(argv, _SETTINGS.value)
  jax.config.update("jax_enable_x64", True)
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, "
    f"{jax.devices()[0].device_kind}, commit {git_commit(Path(__file__).parents[1])}\n"
  )
  torch = Torch(_TORCH_PYTHON.value, threads=1) if _TORCH_PYTHON.value else None
  columns = ["setting", "inner steps", "form", "float32", "smooth"]
  begin_table(columns + ["PyTorch"] * bool(torch))
  for name in _SETTINGS.value:
    for steps in map(int, _INNER_STEPS.value):
      report(name, steps, torch)
  if torch:
    torch.close()


def report(name: str, inner_steps: int, torch: Torch | None) -> None:
  """Prints a row for each form."""
  setting = SETTINGS[name] | {"num_tasks": 1, "inner_steps": inner_steps}
  columns: dict[str, list[str]] = {form: [] for form in _FORMS.value}
  for smooth in (False, True):
    exact = meta_gradients(setting, "direct", smooth, jnp.float64)
    for form, cells in columns.items():
      found = meta_gradients(setting, form, smooth, jnp.float32)
      errors = [relative_error(a, b) for a, b in zip(found, exact, strict=True)]
      cells.append(spread(errors, 0, "e"))
  others = []
  if torch:
    errors = torch.ask(name, setting, "maml", "error", _SEEDS.value)
    others = [spread(errors, 0, "e")]
  for form, cells in columns.items():
    print(
      f"| {' | '.join([name, str(inner_steps), form, *cells, *others])} |", flush=True
    )


def meta_gradients(
  setting: dict[str, int], form: Any, smooth: bool, dtype: Any
) -> list[jax.Array]:
  """The meta-gradient of each seed's task as a vector, computed in a dtype."""
  execution = execution_for(convolution=form, one_core_each=True)
  problems = [
    make_problem(setting, seed=seed, execution=execution)
    for seed in range(_SEEDS.value)
  ]

  algorithm = maml(
    problems[0][1],
    optax.sgd(INNER_LR),
    optax.sgd(1.0),
    num_inner_steps=setting["inner_steps"],
    execution=execution,
  )
  gradient = jax.jit(meta_gradient(algorithm))

  with contextlib.ExitStack() as stack:
    if smooth:
      for module in (_channels, _convolved_map):
        stack.enter_context(mock.patch.object(module, "max_pool", mean_pool))
      stack.enter_context(mock.patch.object(nn, "relu", nn.softplus))
    return [
      gradient(*in_dtype((params, tasks), dtype)) for params, _, tasks in problems
    ]


def mean_pool(x: jax.Array, *, sign: jax.Array | None = None) -> jax.Array:
  """As `jsharp.nn.max_pool`, with means."""
  del sign
  h, w = (side // 2 * 2 for side in x.shape[-3:-1])
  x = x[..., :h, :w, :]
  return (
    x[..., ::2, ::2, :] + x[..., 1::2, ::2, :] + x[..., ::2, 1::2, :]
    + x[..., 1::2, 1::2, :]
  ) / 4  # fmt: skip


if __name__ == "__main__":
  app.run(main)
