"""Reptile (Nichol, Achiam, Schulman 2018, arXiv 1803.02999).

    adapted = params;  num_inner_steps times:
      adapted = inner_optimizer(adapted, grad(loss of a mini-batch of the support set))
    params = outer_optimizer(params, mean over tasks of (params - adapted))

The meta-gradient is the negative of the inner loop's displacement, so `optax.sgd(1.0)`
moves to the mean of the adapted parameters, and
`optax.sgd(optax.linear_schedule(1.0, 0.0, num_steps))` is the paper's annealed step.
No derivative goes through the inner loop: its memory does not grow with the number of
steps. Cost of one meta-step and task: `num_inner_steps` gradients of a mini-batch, and
one query loss for the metrics.

Differences from the authors' code (github.com/openai/supervised-reptile):
- The code shuffles the support set for each pass; `mini_batches` is a fixed rule.
  Samplers draw the examples of a class in random order, so a mini-batch is random
  anyway.
- The code never resets Adam's moments in training: each task, even within a meta-step,
  continues with the moments of the task before, and evaluation starts from the last.
  `keep_inner_state=True` is the equivalent for tasks that run in parallel: all start
  from the carried state, and the mean of their final states is carried on.
- The paper's settings: Adam with `b1=0`, five tasks, outer step 1 to 0. 5-way Omniglot:
  10 images per class in batches of 10, 5 steps at 1e-3, 100,000 meta-steps; 50 steps in
  batches of 5 at test.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count
from jsharp.algorithms._bundle import initialisation, meta_step
from jsharp.algorithms._mini_batches import mini_batch_loop
from jsharp.algorithms._options import (
  InnerLoop,
  Made,
  Phases,
  Problem,
  Sharpness,
  constant_cost,
  gradient_based,
)
from jsharp.core.adaptation import chosen_steps, join, split
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query, over_tasks
from jsharp.options import at_least, option
from jsharp.tree import inexact
from jsharp.types import (
  Batch,
  LossFn,
  Mask,
  MetaAlgorithm,
  MetaState,
  Metrics,
  Params,
  Task,
  TaskLossFn,
)


class WithInnerState(NamedTuple):
  """The meta-parameters and inner optimizer state of `keep_inner_state=True`.

  Attributes:
    params: the meta-learned parameters.
    inner_state: the state of the inner optimizer that the next tasks start from.
  """

  params: Params
  inner_state: Any


def reptile(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  num_inner_steps: int,
  inner_batch_size: int | None = None,
  keep_inner_state: bool = False,
  query_loss_fn: TaskLossFn | None = None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds Reptile.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task, a mean over the
      examples of `batch`.
    inner_optimizer: any optax optimizer, `optax.adam(1e-3, b1=0.0)` in the paper; a
      SAM link may stand in front.
    outer_optimizer: any optax optimizer. A SAM link in it gets `params - adapted` at
      the perturbed parameters.
    num_inner_steps: inner steps in training, at least 1. With 1 and the whole support
      set this is joint training.
    inner_batch_size: examples per inner step, see `mini_batches`; the whole support
      set if None.
    keep_inner_state: whether the inner optimizer's state is kept from task to task. The
      `params` of the bundle's functions and of the state are then a `WithInnerState`.
      An integer in the state, such as Adam's count, is the same for all tasks.
    query_loss_fn: `(adapted, task) -> (loss, metrics)`, for the metrics; `loss_fn` on
      the query set if None. Nothing is learned from it.
    adapted_mask: `params -> pytree of bool`, the leaves that the inner loop changes;
      all if None. The others are not learned, since `params - adapted` is zero.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`. Metrics are measured on the
    query set after adaptation. `adapt` also takes `batch_size=None`, the examples per
    inner step; None means as in training. An `optimizer` passed to `adapt` starts from
    its initial state for every task, even with `keep_inner_state`.

  Raises:
    ValueError: if a count is out of range; when called with mini-batches, if one is
      larger than the support set, or if the support set's leaves differ in their number
      of rows (scalars excepted).

  Example:
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = reptile(loss_fn, optax.sgd(0.25), optax.sgd(1.0), num_inner_steps=2)
    >>> batch = Batch(None, jnp.array([[0.0], [2.0]]))
    >>> state, metrics = algorithm.step(algorithm.init(4.0), Task(batch, batch))
    >>> float(state.params)  # The mean of 1 and 2.5.
    1.75
  """
  query_loss_fn = query_loss_fn or on_query(loss_fn)
  num_inner_steps = check_count("num_inner_steps", num_inner_steps)
  loop = mini_batch_loop(
    loss_fn,
    inner_optimizer,
    num_steps=num_inner_steps,
    batch_size=inner_batch_size,
    adapted_mask=adapted_mask,
    execution=execution,
    name="inner_batch_size",
  )

  def fresh(params: Params, optimizer: Any = inner_optimizer) -> Any:
    return optimizer.init(split(params, adapted_mask)[0])

  def one_task(start: WithInnerState, task: Task) -> tuple[Any, Any]:
    adapted, inner_state = loop(*start, task.support)
    loss, metrics = query_loss_fn(adapted, task)
    before, after = (inexact(point)[0] for point in (start.params, adapted))
    gradient = jax.tree.map(jnp.subtract, before, after)
    # Floating-point leaves are averaged; the others are the same for all tasks.
    averaged, others = inexact(inner_state if keep_inner_state else ())
    return (loss, gradient, averaged), ({"loss": loss, **metrics}, others)

  mapped = over_tasks(one_task, chunk=execution.task_chunk)

  def adapt(
    start: Any,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
  ) -> Params:
    params, inner_state = start if keep_inner_state else (start, None)
    if optimizer is not None or not keep_inner_state:
      inner_state = fresh(params, optimizer or inner_optimizer)
    adapting_loop = mini_batch_loop(
      loss_fn,
      optimizer or inner_optimizer,
      num_steps=chosen_steps(num_steps, num_inner_steps),
      batch_size=inner_batch_size if batch_size is None else batch_size,
      adapted_mask=adapted_mask,
      execution=execution,
      name="inner_batch_size" if batch_size is None else "batch_size",
    )
    return adapting_loop(params, inner_state, support)[0]

  init_params = initialisation(outer_optimizer)

  def init(params: Params) -> MetaState:
    state = init_params(params)
    if not keep_inner_state:
      return state
    return state._replace(params=WithInnerState(state.params, fresh(state.params)))

  def step(state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    start = state.params
    if not keep_inner_state:
      start = WithInnerState(start, fresh(start))

    def gradient_fn(point: Params, tasks: Task) -> tuple[Any, Any]:
      (loss, gradient, averaged), (metrics, others) = mapped(
        WithInnerState(point, start.inner_state), tasks
      )
      return (loss, (metrics, averaged, others)), gradient

    step_params = meta_step(gradient_fn, outer_optimizer)
    aux: Any
    state, aux = step_params(state._replace(params=start.params), tasks)
    metrics, averaged, others = aux
    if keep_inner_state:
      inner_state = join(averaged, jax.tree.map(lambda x: x[0], others))
      state = state._replace(params=WithInnerState(state.params, inner_state))
    return state, metrics

  return MetaAlgorithm(init, step, adapt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reptile(InnerLoop):
  """Reptile: no second derivative, no query gradient (Nichol et al. 2018)."""

  name: ClassVar[str] = "reptile"

  inner_batch_size: int | None = option(
    None,
    "Support examples per inner step in training, taken in turn. Default: all.",
    check=at_least(1),
  )
  eval_inner_batch_size: int | None = option(
    None,
    "Support examples per inner step at validation and test. Default: as "
    "--inner_batch_size.",
    check=at_least(1),
  )
  keep_inner_state: bool = option(
    False,
    "Keep the inner optimizer's state from task to task, as Reptile's code does.",
  )

  def make(self, problem: Problem) -> Made:
    # No mask: Reptile never learns what its inner loop does not change. eps_root is 0
    # because nothing differentiates through the inner loop.
    optimizers = self.optimizers(problem, self.inner_lr, eps_root=0.0)
    at_test = optimizers["at_test"]
    if self.eval_inner_batch_size is not None:
      at_test = {**at_test, "batch_size": self.eval_inner_batch_size}

    def build(loss_fn: LossFn) -> MetaAlgorithm:
      return reptile(
        loss_fn,
        optimizers["inner_optimizer"],
        problem.outer.optimizer(problem.sharpness),
        num_inner_steps=self.num_inner_steps,
        inner_batch_size=self.inner_batch_size,
        keep_inner_state=self.keep_inner_state,
        execution=problem.execution,
      )

    return gradient_based(problem, build, at_test)

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, _ = self.cost_of_steps(sharpness)
    batch = min(self.inner_batch_size or support, support)
    cost = self.num_inner_steps * gradients * batch
    return constant_cost(cost, sharpness.loops(self)[1])

  def fewest_support(self, way: int) -> int:
    return max(way, self.eval_inner_batch_size or self.inner_batch_size or 1)

  def adapts_norm(self) -> bool:
    return True

  def without_derivative(self) -> str | None:
    if self.inner_optimizer == "adam":
      return "whose inner Adam has no derivative where a gradient is zero"
    return None
