r"""Few-shot regression of sine waves.

How close does a small network come to a sine wave of unknown amplitude and phase
after a few gradient steps on five or ten of its points?

  python -m experiments.sinusoid \
    --flagfile=experiments/flagfiles/maml_sinusoid_5shot.txt

Finn, Abbeel and Levine (2017, table 2) report a mean squared error of 0.67, 0.38 and
0.35 after 1, 5 and 10 steps on 5 points. 70,000 meta-steps of 25 tasks: minutes on
two CPU cores.
"""

import functools
import math
from types import SimpleNamespace
from typing import Any

from absl import flags

from experiments import common_flags, method_flags, program, validators

DEFAULTS = {
  "shot": 5,
  "num_tasks": 25,
  "num_steps": 70_000,
  "num_eval_inner_steps": 10,
  "eval_every": 1000,
  "log_every": 500,
}


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags of this experiment."""
  common_flags.define_meta_learning(flag_values)
  method_flags.define_methods(flag_values)
  flags.DEFINE_float(
    "max_phase",
    math.pi,
    "Phases are uniform from 0 to this, in radians: pi in MAML, 2 pi in Reptile's "
    "demonstration.",
    flag_values=flag_values,
  )
  flags.DEFINE_integer(
    "hidden_width", 40, "Units of either hidden layer.", flag_values=flag_values
  )
  flags.DEFINE_enum(
    "activation",
    "relu",
    ("relu", "tanh"),
    "Of the hidden layers: relu in MAML, tanh in Reptile's demonstration.",
    flag_values=flag_values,
  )
  validators.positive(("max_phase",), flag_values, "pi is the papers' value.")
  validators.positive(("hidden_width",), flag_values, "give a number of at least 1.")
  common_flags.set_defaults(flag_values, DEFAULTS)


def build(settings: SimpleNamespace) -> Any:
  """Builds the parts of a run from the values of the flags."""
  import jax
  import jax.numpy as jnp

  from experiments import choices, methods, session
  from jsharp.data import sinusoid, task_key
  from jsharp.evaluation.tasks import evaluate, mean_and_ci95, task_list

  method = methods.make(settings, _networks(settings))
  algorithm, evaluate_tasks = method.build(1), method.evaluator(1)
  stepping = [method.evaluator(1, **chosen) for chosen in _measured_steps(settings)]
  phases = (0.0, settings.max_phase)
  train_shape = {"shot": settings.shot, "query_shot": settings.query_shot}
  eval_shape = {"shot": settings.shot, "query_shot": settings.eval_query_shot}

  def draw(step: jax.Array, data: None, part: tuple[Any, int] = (0, 1)) -> Any:
    del data  # a sine wave is made of its key alone
    index, count = part
    num_tasks = settings.num_tasks // count
    return sinusoid.sample_tasks(
      task_key(settings.seed, step),
      num_tasks=num_tasks,
      first_task=index * num_tasks,
      phases=phases,
      **train_shape,
    )

  val_task, test_task = (
    task_list(
      lambda key, data: sinusoid.sample_task(key, phases=phases, **eval_shape),
      seed=settings.eval_seed,
      stream=stream,
    )
    for stream in ("val", "test")
  )

  def after_each_step(params: Any, tasks: Any) -> dict[str, jax.Array]:
    by_step = [evaluate_one(params, tasks)["loss"] for evaluate_one in stepping]
    return {"loss": jnp.stack(by_step, axis=1)}

  evaluate_sines = functools.partial(evaluate, data=None, chunk=100)

  def validate(params: Any, stop: Any) -> dict[str, float]:
    metrics = evaluate_sines(
      evaluate_tasks,
      params,
      val_task,
      num_tasks=settings.val_tasks,
      stop=stop,
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  def test(trained: Any, stop: Any) -> dict[str, Any]:
    metrics = evaluate_sines(
      after_each_step,
      trained.best_params,
      test_task,
      num_tasks=settings.eval_tasks,
      stop=stop,
    )
    by_step = [mean_and_ci95(losses) for losses in metrics["loss"].T]
    means, half_widths = zip(*by_step, strict=True)
    return {
      "test_mse_by_step": list(means),
      "test_mse_by_step_ci95": list(half_widths),
      "num_eval_tasks": settings.eval_tasks,
      "per_task": metrics,
    }

  width, activation = settings.hidden_width, settings.activation
  return session.Parts(
    algorithm=algorithm,
    params=method.params,
    sample_tasks=draw,
    data=None,
    **choices.loop(settings),
    validate=validate,
    score=lambda metrics: -metrics["loss"],
    test=test,
    identity={},
    protocol={
      **choices.protocol(settings),
      "task": {**train_shape, "eval_query_shot": settings.eval_query_shot},
      "model": f"mlp 1-{width}-{width}-1, {activation}, no normalisation",
      "data": f"sine waves, amplitude 0.1 to 5, phase 0 to {settings.max_phase:.4g}, "
      "inputs -5 to 5",
    },
  )


def _networks(settings: SimpleNamespace) -> Any:
  import jax
  import jax.numpy as jnp

  from experiments import method_options
  from jsharp import losses, models

  hidden = (settings.hidden_width, settings.hidden_width)
  activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[settings.activation]

  def plain(num_outputs: int | None) -> Any:
    features = hidden if num_outputs is None else (*hidden, num_outputs)
    return models.MLP(features=features, activation=activation)

  def context(size: int) -> Any:
    return models.ContextMLP(
      features=(*hidden, 1), activation=activation, context_size=size
    )

  return method_options.Networks(
    plain=plain,
    context=context,
    head=f"dense_{len(hidden)}",
    inputs=jnp.zeros((1, 1)),
    targets=jnp.zeros((1, 1)),
    num_outputs=1,
    criterion=losses.squared_error,
    has_norm=False,
  )


def _measured_steps(settings: SimpleNamespace) -> list[dict[str, int]]:
  """The numbers of inner steps after which the error is reported, as keywords."""
  if settings.algorithm in method_flags.WITHOUT_INNER_GRADIENT:
    return [{}]
  return [{"num_steps": n} for n in range(settings.num_eval_inner_steps + 1)]


if __name__ == "__main__":
  program.start("sinusoid", define_flags, build)
