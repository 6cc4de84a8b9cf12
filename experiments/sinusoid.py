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
from types import SimpleNamespace
from typing import Any

from absl import flags

from experiments import common_flags, program

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
  common_flags.set_defaults(flag_values, DEFAULTS)


def build(settings: SimpleNamespace) -> Any:
  """Builds the parts of a run from the values of the flags."""
  import jax
  import jax.numpy as jnp

  from experiments import choices, session
  from jsharp import losses, models
  from jsharp.data import sinusoid, task_key
  from jsharp.evaluation import evaluate, mean_and_ci95, task_list

  init_fn, apply_fn = models.as_functions(models.MLP(features=(40, 40, 1)))
  loss_fn = losses.supervised(apply_fn, losses.squared_error)
  algorithm = choices.make_algorithm(settings, loss_fn)
  stepping = [
    choices.make_algorithm(settings, loss_fn, num_eval_inner_steps=num_steps)
    for num_steps in range(settings.num_eval_inner_steps + 1)
  ]
  train_shape = {"shot": settings.shot, "query_shot": settings.query_shot}
  eval_shape = {"shot": settings.shot, "query_shot": settings.eval_query_shot}

  def draw(step: jax.Array, data: None) -> Any:
    del data  # a sine wave is made of its key alone
    key = task_key(settings.seed, step)
    return sinusoid.sample_tasks(key, num_tasks=settings.num_tasks, **train_shape)

  val_task, test_task = (
    task_list(
      lambda key, data: sinusoid.sample_task(key, **eval_shape),
      seed=settings.eval_seed,
      stream=stream,
    )
    for stream in ("val", "test")
  )

  def after_each_step(params: Any, tasks: Any) -> dict[str, jax.Array]:
    by_step = [algorithm.evaluate(params, tasks)["loss"] for algorithm in stepping]
    return {"loss": jnp.stack(by_step, axis=1)}

  evaluate_sines = functools.partial(evaluate, data=None, chunk=100)

  def validate(params: Any, stop: Any) -> dict[str, float]:
    metrics = evaluate_sines(
      algorithm.evaluate,
      params,
      val_task,
      num_tasks=settings.val_tasks,
      stop=stop,
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  def test(params: Any, stop: Any) -> dict[str, Any]:
    metrics = evaluate_sines(
      after_each_step, params, test_task, num_tasks=settings.eval_tasks, stop=stop
    )
    by_step = [mean_and_ci95(losses) for losses in metrics["loss"].T]
    means, half_widths = zip(*by_step, strict=True)
    return {
      "test_mse_by_step": list(means),
      "test_mse_by_step_ci95": list(half_widths),
      "num_eval_tasks": settings.eval_tasks,
    }

  params = init_fn(jax.random.key(settings.seed), jnp.zeros((1, 1)))
  return session.Parts(
    algorithm=algorithm,
    params=params,
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
      "model": "mlp 1-40-40-1, no normalisation",
      "data": "sine waves, amplitude 0.1 to 5, phase 0 to pi, inputs -5 to 5",
    },
  )


if __name__ == "__main__":
  program.start("sinusoid", define_flags, build)
