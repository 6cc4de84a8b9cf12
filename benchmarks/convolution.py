"""Compares the forms of a convolution on the shapes of common networks.

Question: which form of `jsharp.nn.conv2d` is fastest for a shape, and which one for its
gradients?

    python -m benchmarks.convolution
    python -m benchmarks.convolution --shapes=ordinary

The shapes are those of Conv4 on few-shot tasks, or those of ResNet-20 and WRN-16-4 on
batches of 128 images. Bind the process to one core (`taskset -c 0`) for devices with
one core each.
Figures are GFLOP/s of direct arithmetic, 2 kh kw in out per output pixel, the median of
`--rounds` rounds in which the forms alternate. The form that jsharp chooses by default
is marked with *.
"""

import functools
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from benchmarks.tables import begin_table, by_turns, calls_per_second
from jsharp.evaluation.report import git_commit
from jsharp.nn import _conv_forms
from jsharp.nn._conv_forms import Geometry
from jsharp.nn.convolution import _choose, _suits_winograd
from jsharp.training.devices import execution_for

_SECONDS = flags.DEFINE_float("seconds", 0.1, "Seconds per form and round.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Number of rounds.", lower_bound=1)

_SHAPES = flags.DEFINE_enum(
  "shapes", "few_shot", ["few_shot", "ordinary"], "Which shapes."
)

# Images, map, input and output channels, stride.
SHAPES = {
  "few_shot": [
    (75, 28, 1, 64, 1),
    (75, 14, 64, 64, 1),
    (5, 14, 64, 64, 1),
    (75, 7, 64, 64, 1),
    (5, 7, 64, 64, 1),
    (5, 3, 64, 64, 1),
    (75, 84, 3, 32, 1),
    (75, 42, 32, 32, 1),
    (5, 42, 32, 32, 1),
    (5, 21, 32, 32, 1),
    (5, 10, 32, 32, 1),
    (5, 14, 64, 64, 2),
  ],
  "ordinary": [
    (128, 32, 3, 16, 1),
    (128, 32, 16, 16, 1),
    (128, 32, 16, 32, 2),
    (128, 16, 32, 32, 1),
    (128, 8, 64, 64, 1),
    (128, 32, 16, 64, 1),
    (128, 32, 64, 64, 1),
    (128, 32, 64, 128, 2),
    (128, 16, 128, 128, 1),
    (128, 8, 256, 256, 1),
  ],
}


def speeds(function: Callable[..., Any], operands: list[Any], forms: dict[str, Any]):
  """GFLOP/s of each form."""
  (n, _, _, c), (_, oh, ow, o) = operands[0].shape[1:], operands[2].shape[1:]
  flops = 2 * 9 * c * o * n * oh * ow
  arguments = {
    _conv_forms.forward: operands[:2],
    _conv_forms.input_gradient: operands[:0:-1],
    _conv_forms.weight_gradient: operands[::2],
  }[function]
  timers = {}
  for form, geometry in forms.items():
    jitted = jax.jit(function, static_argnames="geometry")
    compiled = jitted.lower(*arguments, geometry=geometry).compile()
    run = functools.partial(lambda f: jax.block_until_ready(f(*arguments)), compiled)
    timers[form] = functools.partial(calls_per_second, run)
  rates = by_turns(timers, _SECONDS.value, _ROUNDS.value)
  return {
    form: flops * statistics.median(values) / 1e9 for form, values in rates.items()
  }


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  commit = git_commit(Path(__file__).parents[1])
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}; "
    f"{jax.devices()[0].device_kind}, commit {commit}\n"
  )
  columns = ["images, map, channels, stride", "forward", "input gradient"]
  begin_table([*columns, "weight gradient"])
  for n, size, c, o, stride in SHAPES[_SHAPES.value]:
    out = -(-size // stride)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (1, n, size, size, c))
    w = jax.random.normal(keys[1], (1, 3, 3, c, o))
    g = jax.random.normal(keys[2], (1, n, out, out, o))
    chosen = _choose(x[0], w[0], stride, execution_for().convolution)
    cells = []
    for function, mark in (
      (_conv_forms.forward, "direct" if chosen[0] == "strided" else chosen[0]),
      (_conv_forms.input_gradient, "im2col" if chosen[0] == "strided" else chosen[0]),
      (_conv_forms.weight_gradient, chosen[1]),
    ):
      names = ["direct", "im2col"]
      if function is _conv_forms.weight_gradient and stride == 1:
        names.append("shifted")
      if _suits_winograd(x[0], w[0]) and stride == 1:
        names.append("winograd")
      forms = {
        name: Geometry(
          (size, size),
          (3, 3),
          stride,
          form="direct" if name == "shifted" else name,
          weight_form=name,
        )
        for name in names
      }
      found = speeds(function, [x, w, g], forms)
      cells.append(
        ", ".join(f"{k}{'*' if k == mark else ''} {v:.0f}" for k, v in found.items())
      )
    print(
      f"| {n}, {size}x{size}, {c} to {o}, {stride} | {' | '.join(cells)} |", flush=True
    )


if __name__ == "__main__":
  app.run(main)
