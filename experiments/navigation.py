r"""Few-shot control: walking to a goal that is never observed.

How high is the return of a policy after 0, 1, 2 and 3 gradient steps on its own
trajectories towards a new goal, which it knows only from its rewards?

  python -m experiments.navigation \
    --flagfile=experiments/flagfiles/maml_navigation.txt

Finn, Abbeel and Levine (2017, section 5.3 and figure 4) use goals in a square. The
algorithms are those of the other experiments, unchanged: the loss rolls the policy out.
A run takes minutes on two CPU cores.
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
  from jsharp.training import NonFiniteLossError
  from jsharp.training.runs import ControlRun

_ENVIRONMENT = Choice(
  "environment",
  "environment",
  "The environment. navigation: a point in the plane; half_cheetah_dir and "
  "half_cheetah_vel: brax's half-cheetah by direction and by velocity (needs the extra "
  "brax); or your own as module:Class.",
  "navigation",
)
_UPDATE = Choice(
  "outer update",
  "outer_update",
  "Outer update on the trajectories of a meta-step. one_step: a step of "
  "--outer_optimizer; trpo: the longest natural gradient step within --max_kl; ppo: "
  "several steps of --outer_optimizer with clipped likelihood ratios, as in ProMP.",
  "one_step",
  strict=True,
)
_LEARNER: Mapping[str, str | Choice] = {
  **_few_shot.LEARNER,
  "network": "jsharp.models.policy:PolicyNetwork",
  "gradient": "jsharp.control.tasks:PolicyGradient",
}


def _describe(parts: dict[str, Any]) -> ControlRun:
  from jsharp.training.runs import ControlRun

  return ControlRun(**parts)


def _words(description: ControlRun) -> list[str]:
  number = description.tasks.trajectories
  words = [description.environment.name, *description.words, f"{number}trajectories"]
  update = description.update.name
  return words if update == "one_step" else [*words, update]


def build(description: ControlRun, execution: Execution) -> Parts:
  """Builds the parts of a run on goals from its description."""
  import jax
  import jax.numpy as jnp

  from jsharp import control
  from jsharp.control.drawing import draw_paths
  from jsharp.core.objectives import on_query
  from jsharp.data import sample_many, task_key
  from jsharp.evaluation import evaluate, evaluator, task_list
  from jsharp.learners import PolicyLearner

  environment, tasks = description.environment, description.tasks
  training, testing = description.training, description.testing
  control.check_environment(environment)
  made = description.made(execution)
  algorithm = made.algorithm(2 * environment.action_size)
  apply_fn = made.predict(2 * environment.action_size)
  query_loss = on_query(description.policy.loss(apply_fn))
  usual_steps = made.at_test.get("num_steps") or 1

  def judge(num_steps: int) -> Any:
    options = {**made.at_test, "num_steps": num_steps}
    adapt = functools.partial(algorithm.adapt, **options)
    return evaluator(adapt, query_loss, execution=execution)

  stepping = [judge(number) for number in range(usual_steps + 1)]

  def draw(step: Any, data: None, part: tuple[Any, int] = (0, 1)) -> Any:
    del data  # A task depends only on its key.
    index, count = part
    num_tasks = training.num_tasks // count
    return sample_many(
      lambda key: control.sample_task(environment, key, **tasks.training()),
      task_key(description.run.seed, step),
      num_tasks=num_tasks,
      first_task=index * num_tasks,
    )

  val_task, test_task = (
    task_list(
      lambda key, data: control.sample_task(environment, key, **tasks.testing()),
      seed=testing.eval_seed,
      stream=stream,
    )
    for stream in ("val", "test")
  )

  def after_each_step(params: Any, tasks: Any) -> dict[str, Any]:
    found = [evaluate_tasks(params, tasks)["return"] for evaluate_tasks in stepping]
    return {"return": jnp.stack(found, axis=1)}

  measure = functools.partial(evaluate, data=None, chunk=10, execution=execution)

  def validate(params: Any, stop: Any) -> dict[str, float]:
    metrics = measure(
      stepping[-1], params, val_task, num_tasks=training.val_tasks, stop=stop
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  def test(trained: Any, stop: Any) -> dict[str, Any]:
    metrics = measure(
      after_each_step,
      trained.best_params,
      test_task,
      num_tasks=testing.eval_tasks,
      stop=stop,
    )
    return _few_shot.figures_by_step(
      "return", metrics["return"], metrics, testing.eval_tasks
    )

  def pictures(params: Any) -> dict[str, Any]:
    @functools.partial(jax.jit, static_argnames="num_steps")
    def walked(params: Any, index: Any, num_steps: int) -> Any:
      task = test_task(index, None)
      options = {**made.at_test, "num_steps": num_steps}
      adapted = algorithm.adapt(params, task.support, **options)
      found = control.roll_out(environment, apply_fn, adapted, task.query)
      return found, task.query.targets[0]

    if environment.observation_size != 2:
      return {}
    steps = sorted({0, 1, usual_steps})
    each = [[walked(params, index, number) for number in steps] for index in range(3)]
    names = [f"{number} step" + "s" * (number != 1) for number in steps]
    return {"paths.png": draw_paths(each, names)}

  def cause(error: NonFiniteLossError, params: Any) -> str | None:
    tasks = draw(error.step - 1, None)
    for number in error.tasks or range(training.num_tasks):
      task = jax.tree.map(lambda x, i=number: x[i], tasks)
      for steps, batch in ((0, task.support), (None, task.query)):
        acting = algorithm.adapt(params, task.support, num_steps=steps)
        found = control.roll_out(environment, apply_fn, acting, batch)
        if told := control.not_finite(environment, found, batch.targets[0]):
          return f"{told}. The state before meta-step {error.step} is kept"
    return None

  return Parts(
    algorithm=algorithm,
    params=made.params,
    sample_tasks=draw,
    data=None,
    loop=description.loop(),
    chosen_by=f"validation on {training.val_tasks} tasks",
    validate=validate,
    score="return",
    test=test,
    fingerprints={},
    protocol=description.protocol(),
    learners=lambda params: {
      "": PolicyLearner(description.policy, params, made),
    },
    pictures=pictures,
    cause=cause,
    title=f"{environment.name}: {' '.join(description.words)}",
    curves={"labels": {"return": "return after adaptation"}},
  )


EXPERIMENT = Experiment(
  Program(
    "navigation",
    (
      Group(
        "tasks",
        {"environment": _ENVIRONMENT, "tasks": "jsharp.control.tasks:GoalTasks"},
      ),
      Group("learner", _LEARNER),
      Group("training", {**_few_shot.TRAINING, "update": _UPDATE}),
      Group("testing", _few_shot.TESTING),
      Group("machine", _few_shot.MACHINE),
    ),
    {
      "num_tasks": 20,
      "num_steps": 500,
      "num_eval_inner_steps": 3,
      "inner_lr": 0.1,
      "outer_lr": 0.003,
      "eval_every": 50,
      "log_every": 10,
      "val_tasks": 40,
      "eval_tasks": 40,
    },
    __doc__ or "",
  ),
  _describe,
  _words,
  build,
  leaner=True,
  measure=Measure(None, 1.0, "return"),
)

if __name__ == "__main__":
  _program.main(EXPERIMENT)
