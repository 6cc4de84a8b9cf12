"""ANIL: almost no inner loop (Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157).

    adapted = head of params;  num_inner_steps times:
      adapted = adapted - inner_lr * grad_head(support loss)(adapted, body)
    params = outer_optimizer(params, mean over tasks of
                             grad_params(query loss(adapted, body)))

MAML whose inner loop changes only the head; body and head are meta-learned. It computes
the same function as `maml(..., adapted_mask=head)`, but the body's pass over the
support set is hoisted out of the inner loop. Cost of one meta-step and task: one
gradient of the body on the support set, whatever the number of inner steps, one
gradient of everything on the query set, and the inner steps of the head. Any inner
optimizer works: `optax.chain(jsharp.sam(rho), optax.sgd(inner_lr))` perturbs only the
head. The paper's test without a head (NIL) is a `query_loss_fn` on features.
"""

import dataclasses
from typing import ClassVar

import optax

from jsharp._checks import check_count
from jsharp.algorithms._bundle import bundle
from jsharp.algorithms._hoisting import hoisted
from jsharp.algorithms._options import (
  InnerLoop,
  Made,
  Phases,
  Problem,
  Sharpness,
  constant_cost,
  gradient_based,
)
from jsharp.core.adaptation import inner_loop, join, split
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.models import part_mask
from jsharp.types import (
  Batch,
  LossFn,
  Mask,
  MetaAlgorithm,
  Params,
  TaskLossFn,
)


def anil(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  head: Mask,
  num_inner_steps: int,
  query_loss_fn: TaskLossFn | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds ANIL.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task. If it calls the
      model through `jax.jit`, the body's pass cannot be separated from the head's and
      is repeated in every inner step.
    inner_optimizer: any optax optimizer.
    outer_optimizer: any optax optimizer.
    head: `params -> pytree of bool`, the leaves that the inner loop changes, for
      example `jsharp.models.part_mask("head")`; any other part works too.
    num_inner_steps: inner steps in training.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective;
      `loss_fn` on the query set if None.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: if a count is out of range; when called, if `head` selects no leaf.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp import Task
    >>> from jsharp.models import part_mask
    >>> def loss_fn(params, batch):
    ...   prediction = params["head"]["scale"] * params["body"] * batch.inputs
    ...   return jnp.mean((prediction - batch.targets) ** 2), {}
    >>> algorithm = anil(loss_fn, optax.sgd(0.25), optax.sgd(0.5),
    ...   head=part_mask("head"), num_inner_steps=1)
    >>> adapted = algorithm.adapt(
    ...   {"body": 1.0, "head": {"scale": 3.0}}, Batch(jnp.ones(2), jnp.zeros(2)))
    >>> float(adapted["body"]), float(adapted["head"]["scale"])
    (1.0, 1.5)
  """
  num_inner_steps = check_count("num_inner_steps", num_inner_steps, minimum=0)

  def adapt(
    params: Params,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
  ) -> Params:
    adapted, others = split(params, head, name="head")
    head_loss = hoisted(
      lambda adapted: loss_fn(join(adapted, others), support), adapted
    )
    loop = inner_loop(
      lambda adapted, _: head_loss(adapted),
      inner_optimizer,
      num_steps=num_inner_steps,
      execution=execution,
    )
    adapted = loop(adapted, support, num_steps=num_steps, optimizer=optimizer)
    return join(adapted, others)

  return bundle(
    adapt,
    query_loss_fn or on_query(loss_fn),
    outer_optimizer,
    execution=execution,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ANIL(InnerLoop):
  """ANIL: the head alone adapts (Raghu et al. 2020)."""

  name: ClassVar[str] = "anil"

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, self.inner_lr)

    def build(loss_fn: LossFn) -> MetaAlgorithm:
      return anil(
        loss_fn,
        optimizers["inner_optimizer"],
        problem.outer.optimizer(problem.sharpness),
        head=part_mask(problem.network.head),
        num_inner_steps=self.num_inner_steps,
        execution=problem.execution,
      )

    return gradient_based(problem, build, optimizers["at_test"])

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    return constant_cost(support + query, sharpness.loops(self)[1])
