"""Measures ordinary training steps, SGD and SAM, alternating with PyTorch.

Question: how many images per second does one machine train on, and how does it compare
with PyTorch on the same machine at the same time?

    python -m benchmarks.supervised_step --torch_python=/path/to/torch-venv/bin/python

The networks are WRN-16-4 and ResNet-20 on 32x32 images with ten classes, float32, with
running batch statistics, Nesterov momentum and weight decay. SAM's radius is 0.05; its
second pass does not change the running statistics. PyTorch's side
(`benchmarks/torch_supervised_step.py`) has the same layers, channels last. After one
untimed step each, the forms alternate, `--seconds` at a time for `--rounds` rounds, so
that other load on the machine affects all equally; the ratio is taken within rounds.
Memory is what the compiled step occupies on a device, including its arguments.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import jsharp
from benchmarks.tables import begin_table, by_turns, calls_per_second, spread
from benchmarks.torch_process import Torch
from jsharp.algorithms.supervised import classifier, supervised
from jsharp.models import ResNet, WideResNet
from jsharp.training.devices import (
  compiler_options,
  divide_batch,
  execution_for,
  replicate,
  rows_divided,
  task_mesh,
)
from jsharp.types import Batch

NETWORKS: dict[str, Callable[..., Any]] = {
  "wrn_16_4": partial(WideResNet, num_outputs=10, depth=16, widen=4),
  "resnet_20": partial(ResNet, num_outputs=10, depth=20),
}
OPTIMIZERS = {"sgd": [], "sam": [jsharp.sam(0.05)]}


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string(
    "torch_python", None, "Interpreter with PyTorch; without it only jsharp is timed."
  )
  flags.DEFINE_list("networks", list(NETWORKS), "Which networks, comma-separated.")
  flags.DEFINE_list("methods", list(OPTIMIZERS), "Which optimizers, comma-separated.")
  flags.DEFINE_list(
    "convolutions", ["default"], "jsharp's forms of convolution, timed side by side."
  )
  flags.DEFINE_list("torch_forms", ["eager"], "PyTorch's forms: eager, compiled.")
  flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
  flags.DEFINE_integer("num_devices", 1, "Devices that share a batch.", lower_bound=1)
  flags.DEFINE_integer("threads", 2, "PyTorch's threads.", lower_bound=1)
  flags.DEFINE_float("seconds", 5.0, "Seconds per form and round.", lower_bound=0)
  flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=1)


def make_step(
  network: str,
  method: str,
  batch_size: int,
  *,
  convolution: str = "default",
  num_devices: int = 1,
) -> tuple[Callable[[], None], float, float, int]:
  """A compiled step on random images.

  Returns:
    The step, which keeps its own state and blocks until it is done; seconds of
    compilation; MiB of memory; the number of parameters.
  """
  named: Any = {} if convolution == "default" else {"convolution": convolution}
  execution = execution_for(**named)
  module = NETWORKS[network](convolution=execution.convolution)
  init_fn, loss_fn = classifier(module)
  algorithm = supervised(
    loss_fn,
    optax.chain(
      *OPTIMIZERS[method],
      optax.add_decayed_weights(5e-4),
      optax.sgd(0.1, momentum=0.9, nesterov=True),
    ),
  )
  images = jax.random.uniform(jax.random.key(0), (batch_size, 32, 32, 3))
  batch = Batch(images, jnp.arange(batch_size) % 10)
  variables = init_fn(jax.random.key(1), images[:1])
  state = algorithm.init(variables)
  step = algorithm.step
  if num_devices > 1:
    mesh = task_mesh(num_devices, num_tasks=batch_size, num_tasks_name="batch_size")
    state = replicate(state, mesh)
    batch = jax.device_put(batch, rows_divided(batch, mesh))
    step = divide_batch(step, lambda step, data: data, mesh)
  start = time.perf_counter()
  compiled: Any = (
    jax.jit(step, donate_argnums=0, compiler_options=compiler_options(execution))
    .lower(state, batch)
    .compile()
  )
  compilation = time.perf_counter() - start
  sizes = compiled.memory_analysis()

  def run() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(compiled(state, batch))

  memory = (sizes.temp_size_in_bytes + sizes.argument_size_in_bytes) / 2**20
  num_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables.params))
  return run, compilation, memory, num_parameters


def report(network: str, method: str, torch: Torch | None) -> None:
  """Measures all forms by turns and prints a row for each."""
  values = flags.FLAGS
  count = values.batch_size
  about: dict[str, tuple[float, float]] = {}
  timers: dict[str, Callable[[float], float]] = {}
  num_parameters = 0
  for convolution in values.convolutions:
    label = f"jsharp, {convolution}"
    run, compilation, memory, num_parameters = make_step(
      network,
      method,
      count,
      convolution=convolution,
      num_devices=values.num_devices,
    )
    about[label] = compilation, memory
    timers[label] = lambda s, run=run: count * calls_per_second(run, s)  # type: ignore[misc]
  setting = {"batch_size": count, "num_parameters": num_parameters}
  for form in values.torch_forms if torch else ():
    assert torch is not None
    timers[f"torch {form}"] = partial(torch.ask, network, setting, method, form)
  rates = by_turns(timers, values.seconds, values.rounds)
  others = [found for label, found in rates.items() if label.startswith("torch")]
  best = [max(found) for found in zip(*others, strict=True)]
  for label, found in rates.items():
    cells = [network, method, label, spread(found, 0)]
    if label in about:
      ratios = [a / b for a, b in zip(found, best, strict=True)] if best else []
      cells.append(spread(ratios, 2) if ratios else "")
      cells += [f"{about[label][0]:.1f}", f"{about[label][1]:.0f}"]
    else:
      cells += [""] * 3
    print(f"| {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str]) -> None:
  values = flags.FLAGS
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  for name, known in (("networks", NETWORKS), ("methods", OPTIMIZERS)):
    if unknown := set(values[name].value or ()) - set(known):
      raise app.UsageError(f"--{name}: {sorted(unknown)} not in {sorted(known)}.")
  if values.num_devices > 1:
    jax.config.update("jax_num_cpu_devices", values.num_devices)
  torch = None
  if values.torch_python:
    torch = Torch(
      values.torch_python, values.threads, script="torch_supervised_step.py"
    )
  columns = ["network", "method", "form", "images/s, median (range)"]
  columns += ["jsharp / faster torch", "compilation, s", "memory, MiB"]
  begin_table(columns)
  for network in values.networks:
    for method in values.methods:
      report(network, method, torch)
  if torch:
    torch.close()


if __name__ == "__main__":
  define_flags()
  app.run(main)
