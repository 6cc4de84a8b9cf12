"""A meta-gradient that changes with the meta-step: loss weights, derivative order."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsharp._checks import check_count
from jsharp.core.execution import Execution
from jsharp.core.objectives import over_tasks, task_gradient
from jsharp.losses import first_order
from jsharp.types import LossFn, Metrics, Params, Task

StepWeightsFn = Callable[[Any], jax.Array]
"""`weights(step) -> [num_inner_steps]`."""

Order = Callable[[LossFn], LossFn]
"""Maps a loss to itself, or to the loss without second derivatives."""

PhasedLossFn = Callable[
  [Order, jax.Array | None, Params, Task], tuple[jax.Array, tuple[Metrics, Any]]
]
"""`(order, weights, params, task) -> (loss, (metrics, averaged))`.

Weights are None where only the loss after the last inner step counts."""


def annealed_step_weights(
  num_inner_steps: int, *, anneal_steps: int, steps_per_epoch: int = 1
) -> Callable[[Any], jax.Array]:
  """Weights of the losses after each inner step, annealed towards the last one.

  With `f` the elapsed fraction of `anneal_steps` and `S` inner steps, the last weight
  is `min((1 + f (S - 1)) / S, 1 - 0.03 (S - 1) / S)` and every other weight
  `max((1 - f) / S, 0.03 / S)`; from `anneal_steps` on they are 1 and 0. This is the
  schedule in the code of MAML++'s authors (github.com/AntreasAntoniou/
  HowToTrainYourMAMLPytorch), where `f` moves once per epoch of 500 meta-steps and
  annealing takes 15 epochs on mini-ImageNet and 10 on Omniglot.

  Args:
    num_inner_steps: the number of weights.
    anneal_steps: the number of meta-steps after which only the last loss counts.
    steps_per_epoch: meta-steps between changes of the weights.

  Returns:
    `weights(step) -> [num_inner_steps]`, which sum to 1.

  Raises:
    ValueError: if a count is below 1.

  Example:
    >>> weights = annealed_step_weights(4, anneal_steps=10)
    >>> for step in (0, 5, 10):
    ...   print([f"{w:.3f}" for w in weights(step)])
    ['0.250', '0.250', '0.250', '0.250']
    ['0.125', '0.125', '0.125', '0.625']
    ['0.000', '0.000', '0.000', '1.000']
  """
  num_inner_steps = check_count("num_inner_steps", num_inner_steps)
  anneal_steps = check_count("anneal_steps", anneal_steps)
  steps_per_epoch = check_count("steps_per_epoch", steps_per_epoch)
  last, least = jnp.arange(num_inner_steps) == num_inner_steps - 1, 0.03

  def weights(step: Any) -> jax.Array:
    begun = jnp.asarray(step) // steps_per_epoch * steps_per_epoch
    fraction = begun.astype(float) / anneal_steps
    others = jnp.maximum(1 - fraction, least) / num_inner_steps
    others = jnp.where(begun < anneal_steps, others, 0)
    return jnp.where(last, 1 - (num_inner_steps - 1) * others, others)

  return weights


def phased_gradient(
  task_loss_fn: PhasedLossFn,
  *,
  step_weights: StepWeightsFn | None,
  num_inner_steps: int,
  first_order_steps: int,
  execution: Execution = Execution(),
) -> Callable[[jax.Array, Params, Task], tuple[Any, Any]]:
  """The value and gradient of a meta-objective that depends on the meta-step.

  Each combination of derivative order and of one or all losses is a branch of
  `jax.lax.cond` outside the map over tasks, so a step computes only its own branch.

  Args:
    task_loss_fn: `(order, weights, params, task) -> (loss, (metrics, averaged))`.
    step_weights: `step -> [num_inner_steps]`; only the last loss counts if None.
    num_inner_steps: the number of losses.
    first_order_steps: the number of meta-steps whose `order` is `first_order`.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    `(step, params, tasks) -> ((loss, (metrics, averaged)), grads)`; metrics are per
    task, everything else is a mean over tasks.

  Raises:
    ValueError: if there is not one weight per inner step.

  Example:
    >>> def task_loss_fn(order, weights, w, task):
    ...   loss = order(lambda w, x: (w * x, {}))(w, task)[0]
    ...   return (loss if weights is None else weights[0] * loss), ({"loss": loss}, ())
    >>> fn = phased_gradient(task_loss_fn, num_inner_steps=2, first_order_steps=1,
    ...   step_weights=lambda step: jnp.array([0.5, 0.5]))
    >>> (loss, (metrics, _)), grad = fn(0, jnp.float32(4), jnp.array([1.0, 3.0]))
    >>> float(loss), float(grad), metrics["loss"].tolist()
    (4.0, 1.0, [4.0, 12.0])
  """
  if step_weights is not None:
    shape = jax.eval_shape(step_weights, jnp.int32(0)).shape
    if shape != (num_inner_steps,):
      raise ValueError(
        f"step_weights must return weights of shape [num_inner_steps] = "
        f"({num_inner_steps},), got {shape}; return one weight per inner step"
      )

  def phase(order: Order, weights: jax.Array | None) -> Callable[[Params, Task], Any]:
    value_and_grad_fn = task_gradient(functools.partial(task_loss_fn, order, weights))

    def one_task(params: Params, task: Task) -> tuple[Any, Metrics]:
      (loss, (metrics, averaged)), grads = value_and_grad_fn(params, task)
      return (loss, grads, averaged), metrics

    return over_tasks(one_task, chunk=execution.task_chunk)

  def of_order(order: Order, step: Any) -> Callable[[Params, Task], Any]:
    last = phase(order, None)
    if step_weights is None:
      return last
    weights = step_weights(step)
    every = phase(order, weights)

    def last_weighted(params: Params, tasks: Task) -> Any:
      (loss, grads, averaged), metrics = last(params, tasks)
      loss, grads = jax.tree.map(
        lambda x: weights[-1].astype(x.dtype) * x, (loss, grads)
      )
      return (loss, grads, averaged), metrics

    return lambda params, tasks: jax.lax.cond(
      jnp.any(weights[:-1] != 0), every, last_weighted, params, tasks
    )

  def gradient_fn(step: jax.Array, params: Params, tasks: Task) -> tuple[Any, Any]:
    run = exact = of_order(lambda loss_fn: loss_fn, step)
    if first_order_steps:
      early = of_order(first_order, step)
      run = functools.partial(jax.lax.cond, step < first_order_steps, early, exact)
    (loss, grads, averaged), metrics = run(params, tasks)
    return (loss, (metrics, averaged)), grads

  return gradient_fn
