"""Black-box meta-learning by attention, after SNAIL (Mishra et al. 2018).

    outputs = apply_fn(params, support inputs, support targets, query inputs)
    params = outer_optimizer(params, mean over tasks of
                             grad_params(criterion(outputs, query targets)))

Nothing is fitted to a task: the network reads the support set as an input, and
adaptation only stores it. Cost of one meta-step and task: one gradient of a forward
pass over both sets; at test every prediction reads the support set again.

SNAIL (Mishra, Rohaninejad, Chen, Abbeel, arXiv 1707.03141) reads a causal sequence
with the query example at its end, by attention and dilated temporal convolutions. The
network here, `jsharp.models.AttentionLearner`, has attention only: no temporal
convolutions, no order and no causal mask. One pass answers all query examples of a
task, and none attends to another. The paper's results do not carry over.

Batch normalisation in the embedding: the support set is a batch of its own, and query
examples are normalised as the policy of `jsharp.normalization` says. Under `per_query`
the support set is therefore used twice: normalised by itself, as the tokens to attend
to; and in the batch of the one query example, where it contributes to the statistics
and its own predictions are dropped.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import optax

from jsharp.algorithms._bundle import bundle, without_inner_loop
from jsharp.algorithms._options import (
  Algorithm,
  Made,
  Phases,
  Problem,
  Sharpness,
  constant_cost,
)
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.losses import Criterion, batch_loss, cross_entropy
from jsharp.models import AttentionLearner, as_learner_functions, first_outputs
from jsharp.options import at_least, option
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, Params, TaskLossFn


class InContext(NamedTuple):
  """A black-box learner after adaptation: its parameters and the support set.

  Attributes:
    params: the parameters of the network, unchanged.
    support: the support set.
  """

  params: Params
  support: Batch


def black_box(
  apply_fn: Callable[..., Any],
  outer_optimizer: optax.GradientTransformation,
  *,
  criterion: Criterion = cross_entropy,
  query_loss_fn: TaskLossFn | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds a black-box learner; `adapt` returns an `InContext`.

  Args:
    apply_fn: `apply_fn(params, support_inputs, support_targets, query_inputs) ->
      outputs`, as from `jsharp.models.as_learner_functions`.
    outer_optimizer: any optax optimizer.
    criterion: `criterion(outputs, targets) -> (loss, metrics)` on the query set.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective, made
      with `predict_in_context`; `criterion` on the query set if None.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp import Batch, Task
    >>> from jsharp.losses import squared_error
    >>> apply_fn = lambda w, inputs, targets, x: w * targets.mean() + 0 * x
    >>> algorithm = black_box(apply_fn, optax.sgd(0.25), criterion=squared_error)
    >>> batch = Batch(jnp.ones((1, 2)), jnp.full((1, 2), 1.0))
    >>> state, metrics = algorithm.step(algorithm.init(0.0), Task(batch, batch))
    >>> metrics["loss"].tolist(), float(state.params)
    ([1.0], 0.5)
  """
  predict = predict_in_context(apply_fn)
  return bundle(
    without_inner_loop("black_box", InContext),
    query_loss_fn or on_query(batch_loss(predict, criterion)),
    outer_optimizer,
    execution=execution,
  )


def predict_in_context(apply_fn: Callable[..., Any]) -> ApplyFn:
  """The prediction function of a black-box learner, for the policies and losses.

  Args:
    apply_fn: `apply_fn(params, support_inputs, support_targets, query_inputs) ->
      outputs`; it is given `num_statistics` too if a policy sets it.

  Returns:
    `predict(adapted, inputs, num_statistics=None) -> outputs`, where `adapted` is an
    `InContext`.

  Example:
    >>> predict = predict_in_context(lambda w, inputs, targets, x: w * x + targets)
    >>> predict(InContext(2.0, Batch(None, 1.0)), 3.0)
    7.0
  """

  def predict(
    adapted: InContext, inputs: Any, num_statistics: int | None = None
  ) -> jax.Array:
    extra = {} if num_statistics is None else {"num_statistics": num_statistics}
    support = adapted.support
    return apply_fn(adapted.params, support.inputs, support.targets, inputs, **extra)

  return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBox(Algorithm):
  """Attention over the support set (after Mishra et al. 2018)."""

  name: ClassVar[str] = "black_box"
  has_inner_gradient: ClassVar[bool] = False
  backbone: ClassVar[str] = "embedding"

  width: int = option(64, "Width of a token.", check=at_least(1))
  num_layers: int = option(3, "Layers of the transformer.", check=at_least(1))
  num_heads: int = option(4, "Heads per layer.", check=at_least(1))

  def make(self, problem: Problem) -> Made:
    module = AttentionLearner(
      problem.module(None),
      num_outputs=problem.num_outputs,
      width=self.width,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
    )
    init_fn, apply_fn = problem.functions(module, as_learner_functions)
    predict = predict_in_context(apply_fn)

    def algorithm(way: int) -> MetaAlgorithm:
      loss_fn = batch_loss(first_outputs(predict, way), problem.criterion)
      return black_box(
        apply_fn,
        problem.outer.optimizer(problem.sharpness),
        query_loss_fn=on_query(loss_fn),
        execution=problem.execution,
      )

    return Made(
      params=init_fn(problem.key, problem.inputs, problem.targets, problem.inputs),
      algorithm=algorithm,
      predict=functools.partial(first_outputs, predict),
      at_test={},
    )

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    return constant_cost(support + query, sharpness.loops(self)[1])
