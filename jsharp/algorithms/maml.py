"""MAML: model-agnostic meta-learning (Finn, Abbeel, Levine 2017, arXiv 1703.03400).

    adapted = params;  num_inner_steps times:
      adapted = adapted - inner_lr * grad(support loss)(adapted)
    params = outer_optimizer(params, mean over tasks of
                             grad_params(query loss(adapted)))

The meta-gradient is exact: it flows through every inner step, second order
included. Cost of one meta-step and task: `num_inner_steps` support gradients
and Hessian-vector products, and one query gradient.
"""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp._checks import check_count
from jsharp.algorithms._bundle import bundle
from jsharp.algorithms._options import (
  InnerLoop,
  Made,
  NormOptions,
  Phases,
  Problem,
  SecondOrderOptions,
  Sharpness,
  constant_cost,
  gradient_based,
)
from jsharp.core.adaptation import inner_loop
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.types import LossFn, Mask, MetaAlgorithm, TaskLossFn


def maml(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  num_inner_steps: int,
  query_loss_fn: TaskLossFn | None = None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds MAML; variants differ in the links of its two optimizer chains.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task, written
      without a task axis.
    inner_optimizer: any optax optimizer, `optax.sgd(inner_lr)` in the paper. The
      paper's step sizes belong to a *summed* loss: its 0.4 on 5-way Omniglot is
      2.0 for a mean cross-entropy.
    outer_optimizer: any optax optimizer, `optax.adam(1e-3)` in the paper's code.
    num_inner_steps: inner steps in training.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective;
      `loss_fn` on the query set if None.
    adapted_mask: `params -> pytree of bool`, the leaves that the inner loop
      changes; all if None. The other leaves are still meta-learned.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: if a count is out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jsharp import Batch, Task
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = maml(loss_fn, optax.sgd(0.25), optax.sgd(0.5), num_inner_steps=1)
    >>> batch = Batch(None, jnp.array([[0.0], [2.0]]))
    >>> state, metrics = jax.jit(algorithm.step)(
    ...   algorithm.init(3.0), Task(support=batch, query=batch))
    >>> metrics["loss"].tolist(), float(state.params)
    ([2.25, 0.25], 2.5)
  """
  adapt = inner_loop(
    loss_fn,
    inner_optimizer,
    num_steps=check_count("num_inner_steps", num_inner_steps, minimum=0),
    adapted_mask=adapted_mask,
    execution=execution,
  )
  return bundle(
    adapt,
    query_loss_fn or on_query(loss_fn),
    outer_optimizer,
    execution=execution,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAML(InnerLoop, NormOptions, SecondOrderOptions):
  """MAML, exact second order (Finn et al. 2017)."""

  name: ClassVar[str] = "maml"

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, self.inner_lr)

    def build(loss_fn: LossFn) -> MetaAlgorithm:
      loss_fn, options = self.remembering(loss_fn)
      return self.construct(loss_fn, problem, optimizers["inner_optimizer"], options)

    return gradient_based(problem, build, optimizers["at_test"])

  def construct(
    self,
    loss_fn: LossFn,
    problem: Problem,
    inner_optimizer: optax.GradientTransformation,
    options: dict[str, Any],
  ) -> MetaAlgorithm:
    """Calls the constructor; variants of MAML override this."""
    return maml(
      loss_fn,
      inner_optimizer,
      problem.outer.optimizer(problem.sharpness),
      num_inner_steps=self.num_inner_steps,
      adapted_mask=self.mask(problem),
      execution=problem.execution,
      **options,
    )

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, products = self.cost_of_steps(sharpness)
    cost = self.num_inner_steps * (gradients + 2 * products) * support + query
    return constant_cost(cost, sharpness.loops(self)[1])
