"""The meta-learning problems and algorithms that the benchmarks measure."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

from jsharp import algorithms, losses
from jsharp.core.execution import Execution
from jsharp.models import Conv4, ResNet12, as_functions
from jsharp.precision import in_precision
from jsharp.types import Batch, LossFn, MetaAlgorithm, Params, Task

_FIVE_WAY = {"way": 5, "shot": 1, "query_shot": 15, "inner_steps": 5, "num_tasks": 4}
SETTINGS = {
  "omni": _FIVE_WAY | {"size": 28, "channels": 1, "filters": 64, "stride": 1},
  "mini": _FIVE_WAY | {"size": 84, "channels": 3, "filters": 32, "stride": 1},
  "omni_20way": {
    "way": 20, "shot": 1, "query_shot": 1, "inner_steps": 5, "num_tasks": 4,
    "size": 28, "channels": 1, "filters": 64, "stride": 1,
  },
  "mini_5shot": _FIVE_WAY
  | {"shot": 5, "size": 84, "channels": 3, "filters": 32, "stride": 1},
  # MAML's own Omniglot network and meta-batch.
  "omni_strided": {
    "way": 5, "shot": 1, "query_shot": 1, "inner_steps": 1, "num_tasks": 32,
    "size": 28, "channels": 1, "filters": 64, "stride": 2,
  },
  # One task of the deep backbone, selected by stride 0.
  "resnet12": {
    "way": 5, "shot": 5, "query_shot": 15, "inner_steps": 5, "num_tasks": 1,
    "size": 84, "channels": 3, "filters": 640, "stride": 0,
  },
}  # fmt: skip

INNER_LR, OUTER_LR, RHO = 0.1, 1e-3, 5e-4


def check_arguments(argv: Sequence[str], settings: Sequence[str]) -> None:
  """Refuses stray arguments and names that `SETTINGS` lacks.

  Args:
    argv: the arguments that `app.run` passes to `main`.
    settings: the value of `--settings`.

  Raises:
    app.UsageError: names what is wrong and the valid values.
  """
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if unknown := set(settings) - SETTINGS.keys():
    raise app.UsageError(f"--settings: {sorted(unknown)} not in {sorted(SETTINGS)}.")


def make_tasks(setting: dict[str, int], seed: int = 0) -> Task:
  """Random tasks of a setting's shapes."""
  generator = np.random.default_rng(seed)

  def batch(shot: int) -> Batch:
    num_tasks, way, size = setting["num_tasks"], setting["way"], setting["size"]
    shape = (num_tasks, way * shot, size, size, setting["channels"])
    labels = np.tile(np.repeat(np.arange(way, dtype=np.int32), shot), (num_tasks, 1))
    return Batch(generator.random(shape, np.float32), labels)

  tasks = Task(support=batch(setting["shot"]), query=batch(setting["query_shot"]))
  return jax.tree.map(jnp.asarray, tasks)


def make_problem(
  setting: dict[str, int],
  precision: str | None = None,
  *,
  seed: int = 0,
  execution: Execution = Execution(),
) -> tuple[Any, LossFn, Task]:
  """Initial parameters of the setting's network, its loss and tasks.

  Args:
    setting: one of `SETTINGS`.
    precision: as for `jsharp.precision.in_precision`; None for JAX's default.
    seed: of the parameters and the tasks.
    execution: its `convolution` is the network's.
  """
  model: Any
  if setting["stride"]:
    model = Conv4(setting["way"], setting["filters"], setting["stride"])
  else:
    model = ResNet12(setting["way"])
  init_fn, apply_fn = as_functions(model.clone(convolution=execution.convolution))
  if precision is not None:
    apply_fn = in_precision(apply_fn, precision)
  tasks = make_tasks(setting, seed)
  params = init_fn(jax.random.key(seed), tasks.support.inputs[0])
  return params, losses.batch_loss(apply_fn, losses.cross_entropy), tasks


def make_algorithm(name: str, loss_fn: LossFn, setting: dict[str, int], **options: Any):
  """maml, fomaml, anil or a sharp_maml variant with SGD inside and Adam outside."""
  if name == "anil":
    options["head"] = head
  if name in ("sharp_maml_low", "sharp_maml_both"):
    options["inner_rho"] = RHO
  if name in ("sharp_maml_up", "sharp_maml_both"):
    options["outer_rho"] = RHO
  if name.startswith("sharp_maml"):
    name = "sharp_maml"
  algorithm: MetaAlgorithm = getattr(algorithms, name)(
    loss_fn,
    inner_optimizer=optax.sgd(INNER_LR),
    outer_optimizer=optax.adam(OUTER_LR),
    num_inner_steps=setting["inner_steps"],
    **options,
  )
  return algorithm


def head(params: Params) -> Any:
  """Which leaves of Conv4 are its last layer."""
  return {
    name: jax.tree.map(lambda _, of_head=name == "head": of_head, part)
    for name, part in params.items()
  }
