"""Measures size, compilation, step time and memory of the networks of SAM's paper.

Question: does every network of the tables compile and step on this machine, and what
would its row cost?

    python -m benchmarks.networks
    python -m benchmarks.networks --networks=imagenet_resnet50 --batch_size=2
    python -m benchmarks.networks --networks=pyramid_net272_200 --nosam

A step is SAM with weight decay and momentum in float32 (`--nosam`: SGD, half the
program to compile), batch normalisation in training mode and random branches drawn.
Memory is what the compiler reserves in addition to the arguments. Times are for this
batch on this machine.
"""

import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import jsharp
from benchmarks.tables import begin_table
from jsharp.algorithms.supervised import classifier, supervised
from jsharp.evaluation.report import git_commit
from jsharp.models import ImageNetResNet, PyramidNet, ResNet, ShakeShake, WideResNet
from jsharp.types import Batch

NETWORKS = {
  "resnet32": (ResNet(10, depth=32), 32),
  "wide_resnet28x10": (WideResNet(10), 32),
  "shake_shake26_2x96d": (ShakeShake(10), 32),
  "pyramid_net272_200": (PyramidNet(10), 32),
  "pyramid_net272_200_shake_drop": (PyramidNet(10, shake_drop=0.5), 32),
  "imagenet_resnet50": (ImageNetResNet(1000), 224),
  "imagenet_resnet101": (ImageNetResNet(1000, depth=101), 224),
  "imagenet_resnet152": (ImageNetResNet(1000, depth=152), 224),
}
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Which of them.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images per step.", lower_bound=1)
_SAM = flags.DEFINE_bool("sam", True, "Whether a step is SAM's.")


def measured(name: str, batch_size: int, sam: bool) -> list[str]:
  """The cells of a network's row."""
  module, side = NETWORKS[name]
  init_fn, loss_fn = classifier(module)
  optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
  if sam:
    optimizer = optax.chain(jsharp.sam(0.05), optimizer)
  algorithm = supervised(loss_fn, optimizer, key=jax.random.key(1))
  images = jax.random.normal(jax.random.key(0), (batch_size, side, side, 3))
  batch = Batch(images, jnp.arange(batch_size) % 10)
  state = algorithm.init(init_fn(jax.random.key(0), images[:1]))
  size = sum(leaf.size for leaf in jax.tree.leaves(state.params.params))
  started = time.perf_counter()
  step = jax.jit(algorithm.step, donate_argnums=0).lower(state, batch).compile()
  compiled = time.perf_counter() - started
  analysis = step.memory_analysis()
  assert analysis is not None
  state, _ = step(state, batch)
  jax.block_until_ready(state)
  started = time.perf_counter()
  state, metrics = step(state, batch)
  jax.block_until_ready(state)
  seconds = time.perf_counter() - started
  if not bool(jnp.isfinite(metrics["loss"]).all()):
    raise AssertionError(f"{name}: the loss is not finite")
  memory = analysis.temp_size_in_bytes / 2**20
  return [
    name,
    f"{size:,}",
    f"{compiled:.0f}",
    f"{1000 * seconds:.0f}",
    f"{memory:.0f}",
  ]


def main(_: list[str]) -> None:
  """Prints the table."""
  batch_size = _BATCH_SIZE.value
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}; "
    f"{jax.devices()[0].device_kind} x {jax.device_count()}, commit "
    f"{git_commit(Path(__file__).parents[1])}\n"
  )
  step = f"{'SAM' if _SAM.value else 'SGD'} step of {batch_size} images, ms"
  begin_table(["network", "parameters", "compilation, s", step, "memory, MiB"])
  for name in _NETWORKS.value:
    print(f"| {' | '.join(measured(name, batch_size, _SAM.value))} |", flush=True)


if __name__ == "__main__":
  app.run(main)
