"""The first part of `benchmarks.accelerator`: does the device compute the right things?

    python -m benchmarks.accelerator_checks --out=DIRECTORY

- The meta-gradient of every algorithm, and of MAML with every form of convolution, in
  float32 on the device against float64 on the CPU: relative errors for a few tasks.
  Rounding may decide which element of a pooling window is the largest, and then moves
  a meta-gradient by up to 1e-2 of its length; the smallest of the errors shows whether
  the program is right.
- One step of every sharpness-aware optimizer, likewise.
- Whether a run that is stopped and resumed ends with the same bits.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks import cases
from benchmarks.gradients import in_dtype, meta_gradient, relative_error
from benchmarks.settings import make_tasks
from jsharp import _catalogue, learners, training
from jsharp._machine import num_cores
from jsharp.algorithms import OuterLoop
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.protonet import ProtoNet
from jsharp.core.execution import Execution
from jsharp.evaluation.report import environment
from jsharp.models.conv4 import Conv4Options, Conv4StridedOptions
from jsharp.models.mlp import MLPOptions
from jsharp.types import Batch, Convolution, Task

_OUT = flags.DEFINE_string("out", None, "Directory of the results.", required=True)
_TINY = flags.DEFINE_bool("tiny", False, "A few cases, to test the program.")

_SETTING = {"way": 5, "shot": 1, "query_shot": 3, "num_tasks": 2, "size": 16}
_SETTING["channels"] = 3
_SEEDS = 3
# Random numbers differ between dtypes. Meta-SGD would draw its initial rates.
_OPTIONS = {"meta_sgd": {"initial_rates": (0.1, 0.1)}}
# These draw numbers whenever they adapt, so they are compared in float32.
_DRAWS = ("baseline_plus_plus",)
_STEPS = 12


def describe(algorithm: Any, network: Any) -> Any:
  """A learner whose outer loop takes the meta-gradient as its step."""
  size = _SETTING["size"]
  return learners.Description(
    algorithm=algorithm,
    network=network,
    outer=OuterLoop(outer_optimizer="sgd", outer_lr=1.0),
    num_outputs=_SETTING["way"],
    input_shape=(size, size, _SETTING["channels"]),
  )


def on_device(function: Callable[..., Any], arguments: list[Any]) -> list[Any]:
  """The results for all arguments in float32, with products in float32."""
  with jax.default_matmul_precision("highest"):
    compiled = jax.jit(function)
    return [np.asarray(compiled(*in_dtype(each, np.float32))) for each in arguments]


def on_cpu(
  function: Callable[..., Any], arguments: list[Any], dtype: Any = np.float64
) -> list[Any]:
  """The same in float64, or another dtype, on the CPU."""
  quickly = {"xla_backend_optimization_level": 0}
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    compiled = jax.jit(function, compiler_options=quickly)
    return [np.asarray(compiled(*in_dtype(each, dtype))) for each in arguments]


def errors(
  function: Callable[..., Any],
  exact: Callable[..., Any],
  arguments: list[Any],
  **to: Any,
) -> dict[str, Any]:
  """The relative errors of a function on the device against `exact` on the CPU."""
  pairs = zip(
    on_device(function, arguments), on_cpu(exact, arguments, **to), strict=True
  )
  found = [relative_error(a, b) for a, b in pairs]
  return {"errors": found, "largest": max(found), "smallest": min(found)}


def of_learner(description: Any, convolution: Convolution = "auto") -> dict[str, Any]:
  """Errors of a learner's meta-gradients; of its losses, if it does not meta-learn."""

  def build(execution: Execution) -> Any:
    learner = learners.build(description, execution=execution)
    algorithm = learner.algorithm()

    def losses(params: Any, tasks: Any) -> Any:
      return algorithm.step(algorithm.init(params), tasks)[1]["loss"]

    meta_learns = description.algorithm.meta_learns
    return learner, meta_gradient(algorithm) if meta_learns else losses

  learner, function = build(Execution(convolution=convolution))
  _, exact = build(Execution(convolution="direct"))
  params = jax.device_get(learner.made.params)
  arguments = [(params, make_tasks(_SETTING, seed)) for seed in range(_SEEDS)]
  to = np.float32 if description.algorithm.name in _DRAWS else np.float64
  return errors(function, exact, arguments, dtype=to)


def of_optimizer(name: str) -> dict[str, Any]:
  """Errors of one step of a sharpness-aware optimizer on a network's loss."""
  options: Any = _catalogue.find("sharpness-aware optimizer", name)()
  optimizer = options.wrap(optax.sgd(0.1), steps_per_epoch=10)

  def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.tanh(jnp.tanh(x @ params["v"]) @ params["w"]) ** 2)

  def step(params: Any, x: jax.Array) -> jax.Array:
    value, grads = jax.value_and_grad(loss)(params, x)
    updates, _ = optimizer.update(
      grads,
      optimizer.init(params),
      params,
      value=value,
      grad_fn=lambda params: jax.grad(loss)(params, x),
    )
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(updates)])

  def problem(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    params = {"v": random.normal(size=(20, 30)), "w": random.normal(size=(30, 5))}
    return params, random.normal(size=(40, 20))

  return errors(step, step, [problem(seed) for seed in range(_SEEDS)])


def resumed(description: Any) -> dict[str, bool]:
  """Whether a run in two parts, and the same run again, end with the same bits."""
  learner = learners.build(description.replace(outer=OuterLoop()))
  side, count = _SETTING["size"], _SETTING["num_tasks"]

  def sample_tasks(step: jax.Array, data: Any) -> Task:
    images = jax.random.uniform(
      jax.random.fold_in(data, step), (count, 10, side, side, _SETTING["channels"])
    )
    labels = jnp.tile(jnp.arange(5), (count, 1))
    return Task(Batch(images[:, :5], labels), Batch(images[:, 5:], labels))

  def last_bits(ends: list[int]) -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
      for end in ends:
        with training.RunDirectory.open(directory, identity={"check": 1}) as run:
          result = training.train(
            learner.algorithm(),
            learner.made.params,
            sample_tasks,
            jax.random.key(3),
            run=run,
            num_steps=end,
            num_tasks=count,
            log_every=3,
            eval_every=_STEPS,
            progress=False,
          )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result.state)]

  whole = last_bits([_STEPS])
  return {
    "resumed is bitwise": last_bits([_STEPS // 2, _STEPS]) == whole,
    "repeated is bitwise": last_bits([_STEPS]) == whole,
  }


def all_cases(tiny: bool) -> dict[str, cases.Case]:
  """The cases by name, in order of importance."""
  made: dict[str, Callable[[], Any]] = {}
  partial = functools.partial
  if tiny:
    protonet = describe(ProtoNet(), MLPOptions())
    made["resume"] = partial(resumed, protonet)
    made["algorithm protonet"] = partial(of_learner, protonet)
    made["optimizer sam"] = partial(of_optimizer, "sam")
  else:
    conv4, strided = (
      network(num_filters=16) for network in (Conv4Options, Conv4StridedOptions)
    )
    made["resume"] = partial(resumed, describe(MAML(), strided))
    for name in _catalogue.outlines("algorithm"):
      algorithm = _catalogue.find("algorithm", name)(**_OPTIONS.get(name, {}))
      made[f"algorithm {name}"] = partial(of_learner, describe(algorithm, conv4))
    for form in get_args(Convolution):
      made[f"convolution {form}"] = partial(of_learner, describe(MAML(), conv4), form)
      if form in ("direct", "im2col"):
        of_form = partial(of_learner, describe(MAML(), strided), form)
        made[f"convolution {form}, stride 2"] = of_form
    for name in _catalogue.outlines("sharpness-aware optimizer"):
      made[f"optimizer {name}"] = partial(of_optimizer, name)

  def ignoring_values(case: Callable[[], Any]) -> cases.Case:
    return lambda values: case()

  return {name: ignoring_values(case) for name, case in made.items()}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  out = pathlib.Path(_OUT.value)
  training.use_compilation_cache(str(out / "programs"))
  cases.run(
    out / "checks.json",
    all_cases(_TINY.value),
    about=environment(),
    threads=min(num_cores(), 8),
  )


if __name__ == "__main__":
  app.run(main)
