"""Building blocks of `MetaAlgorithm` bundles that several algorithms share."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jsharp.core.descent import descend
from jsharp.core.execution import Execution
from jsharp.core.objectives import (
  OverTasksFn,
  after_adaptation,
  over_tasks,
  task_gradient,
)
from jsharp.tree import as_arrays, inexact
from jsharp.types import (
  AdaptFn,
  MetaAlgorithm,
  MetaState,
  Metrics,
  Params,
  Task,
  TaskLossFn,
)


def meta_gradient(
  task_loss_fn: TaskLossFn, *, execution: Execution = Execution()
) -> OverTasksFn:
  """The value and gradient of the meta-objective, averaged over tasks.

  Args:
    task_loss_fn: `task_loss_fn(params, task) -> (loss, metrics)`.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    `(params, tasks) -> ((loss, metrics), grads)` with metrics per task.

  Example:
    >>> fn = meta_gradient(lambda w, t: (w * t, {"loss": w * t}))
    >>> (loss, metrics), grads = fn(1.0, jnp.array([1.0, 3.0]))
    >>> float(loss), metrics["loss"].tolist(), float(grads)
    (2.0, [1.0, 3.0], 2.0)
  """
  gradient_fn = task_gradient(task_loss_fn)

  def one_task(params: Params, task: Task) -> tuple[Any, Metrics]:
    (loss, metrics), grads = gradient_fn(params, task)
    return (loss, grads), metrics

  mapped = over_tasks(one_task, chunk=execution.task_chunk)

  def mean_gradient(params: Params, tasks: Task) -> tuple[Any, Any]:
    (loss, grads), metrics = mapped(params, tasks)
    return (loss, metrics), grads

  return mean_gradient


def meta_step(
  meta_gradient_fn: OverTasksFn,
  outer_optimizer: optax.GradientTransformation,
  *,
  outer_grad_fn: Callable[[Params, Params, Task], Any] | None = None,
) -> Callable[[MetaState, Task], tuple[MetaState, Metrics]]:
  """One step of the outer loop.

  Args:
    meta_gradient_fn: `(params, tasks) -> ((loss, metrics), grads)`.
    outer_optimizer: any optax optimizer; a SAM link in it calls for the
      meta-gradient at the perturbed parameters.
    outer_grad_fn: `(point, params, tasks) -> grads`, which outer links call as
      `grad_fn(point)`; `params` are the parameters before the step. The
      meta-gradient at `point` if None.

  Returns:
    `step(state, tasks) -> (state, metrics)`.

  Example:
    >>> fn = meta_gradient(lambda w, t: (w * t, {"loss": w * t}))
    >>> step = meta_step(fn, optax.sgd(0.5))
    >>> start = MetaState(jnp.int32(0), jnp.float32(1), optax.sgd(0.5).init(1.0))
    >>> state, metrics = step(start, jnp.array([1.0, 3.0]))
    >>> int(state.step), float(state.params)
    (1, 0.0)
  """
  optimizer = optax.with_extra_args_support(outer_optimizer)

  def step(state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    grad_fn: Callable[[Params], Any] | None = None
    if outer_grad_fn is not None:
      grad_fn = lambda point: outer_grad_fn(point, state.params, tasks)  # noqa: E731
    params, opt_state, metrics = descend(
      optimizer,
      lambda point: meta_gradient_fn(point, tasks),
      state.params,
      state.opt_state,
      grad_fn=grad_fn,
      one_program=True,
    )
    return MetaState(state.step + 1, params, opt_state), metrics

  return step


def initialisation(
  outer_optimizer: optax.GradientTransformation,
) -> Callable[[Params], MetaState]:
  """The state before the first meta-step.

  Args:
    outer_optimizer: the optimizer whose state is set up.

  Returns:
    `init(params) -> MetaState`.

  Example:
    >>> int(initialisation(optax.adam(1e-3))(jnp.ones(2)).step)
    0
  """

  def init(params: Params) -> MetaState:
    params = as_arrays(params)
    return MetaState(
      jnp.zeros((), jnp.int32), params, outer_optimizer.init(inexact(params)[0])
    )

  return init


def bundle(
  adapt: AdaptFn,
  query_loss_fn: TaskLossFn,
  outer_optimizer: optax.GradientTransformation,
  *,
  prepare: Callable[[Params], Params] = lambda params: params,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """The bundle of an algorithm whose meta-gradient goes through its `adapt`.

  Args:
    adapt: `adapt(params, support) -> adapted`, as in training. It becomes the bundle's
      `adapt`, unchanged.
    query_loss_fn: `query_loss_fn(adapted, task) -> (loss, metrics)`.
    outer_optimizer: any optax optimizer.
    prepare: `prepare(params) -> params`, which turns a model's initial parameters into
      what is meta-learned; for algorithms that learn more than the model.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Example:
    >>> from jsharp.types import Batch
    >>> algorithm = bundle(
    ...   lambda w, support: w - 0.5 * support.inputs,
    ...   lambda w, task: (w**2, {}), optax.sgd(0.25))
    >>> batch = Batch(jnp.ones(2), None)
    >>> state, _ = algorithm.step(algorithm.init(2.5), Task(batch, batch))
    >>> float(state.params)
    1.5
  """
  gradient_fn = meta_gradient(
    after_adaptation(adapt, query_loss_fn), execution=execution
  )
  init = initialisation(outer_optimizer)
  return MetaAlgorithm(
    init=lambda params: init(prepare(params)),
    step=meta_step(gradient_fn, outer_optimizer),
    adapt=adapt,
  )


def without_inner_loop(name: str, adapt: Callable[[Params, Any], Any]) -> AdaptFn:
  """`adapt` of an algorithm without an inner loop.

  Args:
    name: the algorithm's name, for messages.
    adapt: `adapt(params, support) -> adapted`.

  Returns:
    The same function; it rejects the keywords that algorithms with an inner loop take.

  Raises:
    ValueError: when called, if a keyword is not None.

  Example:
    >>> adapt = without_inner_loop("protonet", lambda params, support: params)
    >>> adapt(1.0, None)
    1.0
    >>> adapt(1.0, None, num_steps=3)
    Traceback (most recent call last):
    ValueError: protonet has no inner loop, so adapt takes no num_steps, got 3; ...
  """

  def fixed(
    params: Params, support: Any, *, num_steps: Any = None, optimizer: Any = None
  ) -> Params:
    for keyword, value in (("num_steps", num_steps), ("optimizer", optimizer)):
      if value is not None:
        raise ValueError(
          f"{name} has no inner loop, so adapt takes no {keyword}, got {value!r}; "
          "leave it out"
        )
    return adapt(params, support)

  return fixed


def without_gradient(
  adapt: AdaptFn,
  query_loss_fn: TaskLossFn,
  *,
  gather: Callable[[Params, Task], Any] = lambda params, task: (),
  update: Callable[[Params, Any, Any], Params] = lambda params, mean, step: params,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """An algorithm whose step computes metrics and, optionally, statistics: no gradient.

  Args:
    adapt: `adapt(params, support) -> adapted`.
    query_loss_fn: `(adapted, task) -> (loss, metrics)`.
    gather: `gather(params, task) -> arrays`, averaged over tasks.
    update: `update(params, mean, step) -> params`, given these averages.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Example:
    >>> from jsharp.types import Batch
    >>> algorithm = without_gradient(
    ...   lambda w, support: w, lambda w, task: (w, {"loss": w}),
    ...   gather=lambda w, task: task.query.inputs,
    ...   update=lambda w, mean, step: mean)
    >>> tasks = Task(Batch(jnp.ones(2), None), Batch(jnp.array([1.0, 3.0]), None))
    >>> state, metrics = algorithm.step(algorithm.init(jnp.float32(5.0)), tasks)
    >>> float(state.params), metrics["loss"].tolist()
    (2.0, [5.0, 5.0])
  """

  def of_task(params: Params, task: Task) -> tuple[Any, Metrics]:
    loss, metrics = query_loss_fn(adapt(params, task.support), task)
    return gather(params, task), {**metrics, "loss": loss}

  mapped = over_tasks(of_task, chunk=execution.task_chunk)

  def step(state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    mean, metrics = mapped(state.params, tasks)
    params = update(state.params, mean, state.step)
    return MetaState(state.step + 1, params, state.opt_state), metrics

  return MetaAlgorithm(
    init=lambda params: MetaState(jnp.int32(0), as_arrays(params), ()),
    step=step,
    adapt=adapt,
  )
