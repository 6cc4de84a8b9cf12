r"""Few-shot regression of sine waves.

How closely does a small network fit a sine wave of unknown amplitude and phase after a
few gradient steps on five or ten of its points?

  python -m experiments.sinusoid \
    --flagfile=experiments/flagfiles/maml_sinusoid_5shot.txt

Finn, Abbeel and Levine (2017, table 2) report a mean squared error of 0.67, 0.38 and
0.35 after 1, 5 and 10 steps on 5 points. 70,000 meta-steps of 25 tasks: minutes on
two CPU cores.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments import _few_shot, _program
from experiments._program import Experiment, Measure, Parts
from jsharp._flags import Choice, Group, Program

if TYPE_CHECKING:
  from jsharp.core.execution import Execution
  from jsharp.training.runs import SineRun

_LEARNER: Mapping[str, str | Choice] = {
  **_few_shot.LEARNER,
  "network": "jsharp.models.mlp:SineNetwork",
}


def _describe(parts: dict[str, Any]) -> SineRun:
  from jsharp.training.runs import SineRun

  return SineRun(**parts)


def _words(description: SineRun) -> list[str]:
  return ["sinusoid", *description.words, f"{description.tasks.shot}shot"]


def build(description: SineRun, execution: Execution) -> Parts:
  """Builds the parts of a run on sine waves from its description."""
  import jax.numpy as jnp

  from jsharp import losses
  from jsharp.core.objectives import on_query
  from jsharp.data import sinusoid, task_key
  from jsharp.evaluation import evaluate, task_list
  from jsharp.evaluation.side_by_side import side_by_side

  tasks, testing = description.tasks, description.testing
  training, network = description.training, description.network
  ready = side_by_side(
    description.learner(problem="regression", num_outputs=1, input_shape=(1,)),
    seed=description.run.seed,
    execution=execution,
  )
  (learner,) = ready.learners
  query_loss = on_query(losses.batch_loss(learner.apply_fn(1), losses.squared_error))
  judged = ready.evaluator(1, query_loss)
  steps = [{"num_steps": n} for n in range((learner.num_eval_steps or -1) + 1)]
  stepping = [ready.evaluator(1, query_loss, **step) for step in steps or [{}]]
  phases = (0.0, tasks.max_phase)
  train_shape: dict[str, Any] = {"shot": tasks.shot, "query_shot": tasks.query_shot}
  eval_shape: dict[str, Any] = {"shot": tasks.shot, "query_shot": tasks.eval_query_shot}

  def draw(step: Any, data: None, part: tuple[Any, int] = (0, 1)) -> Any:
    del data  # A sine wave depends only on its key.
    index, count = part
    num_tasks = training.num_tasks // count
    return sinusoid.sample_tasks(
      task_key(description.run.seed, step),
      num_tasks=num_tasks,
      first_task=index * num_tasks,
      phases=phases,
      **train_shape,
    )

  val_task, test_task = (
    task_list(
      lambda key, data: sinusoid.sample_task(key, phases=phases, **eval_shape),
      seed=testing.eval_seed,
      stream=stream,
    )
    for stream in ("val", "test")
  )

  def after_each_step(params: Any, tasks: Any) -> dict[str, Any]:
    by_step = [evaluate_tasks(params, tasks)["loss"] for evaluate_tasks in stepping]
    return {"loss": jnp.stack(by_step, axis=1)}

  evaluate_sines = functools.partial(
    evaluate, data=None, chunk=100, execution=execution
  )

  def validate(params: Any, stop: Any) -> dict[str, float]:
    metrics = evaluate_sines(
      judged, params, val_task, num_tasks=training.val_tasks, stop=stop
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  def test(trained: Any, stop: Any) -> dict[str, Any]:
    metrics = evaluate_sines(
      after_each_step,
      trained.best_params,
      test_task,
      num_tasks=testing.eval_tasks,
      stop=stop,
    )
    return _few_shot.figures_by_step(
      "mse", metrics["loss"], metrics, testing.eval_tasks
    )

  width, activation = network.hidden_width, network.activation
  return Parts(
    algorithm=learner.algorithm(1),
    params=learner.made.params,
    sample_tasks=draw,
    data=None,
    loop=description.loop(),
    chosen_by=f"validation on {training.val_tasks} tasks",
    validate=validate,
    score=lambda metrics: -metrics["loss"],
    test=test,
    fingerprints={},
    protocol={
      **description.protocol(),
      "task": {**train_shape, "eval_query_shot": tasks.eval_query_shot},
      "model": f"mlp 1-{width}-{width}-1, {activation}, no normalisation",
      "data": f"sine waves, amplitude 0.1 to 5, phase 0 to {tasks.max_phase:.4g}, "
      "inputs -5 to 5",
    },
    learners=ready.trained,
    title=f"sinusoid: {' '.join(description.words)}",
  )


EXPERIMENT = Experiment(
  Program(
    "sinusoid",
    (
      Group("tasks", {"tasks": "jsharp.data.sinusoid:SineTasks"}),
      Group("learner", _LEARNER),
      Group("training", _few_shot.TRAINING),
      Group("testing", _few_shot.TESTING),
      Group("machine", _few_shot.MACHINE),
    ),
    {
      "num_tasks": 25,
      "num_steps": 70_000,
      "num_eval_inner_steps": 10,
      "eval_every": 1000,
      "log_every": 500,
    },
    __doc__ or "",
  ),
  _describe,
  _words,
  build,
  leaner=True,
  measure=Measure(None, 1.0, "mean squared error"),
)

if __name__ == "__main__":
  _program.main(EXPERIMENT)
