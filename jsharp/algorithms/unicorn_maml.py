"""UNICORN-MAML: MAML with one row of the head for all classes (Ye and Chao 2022).

    adapted = params, weights[:, k] = row for every class k, bias = 0
    num_inner_steps times:
      adapted, weights, bias -= inner_lr * grad(support loss)(adapted, weights, bias)
    logits = apply_fn(adapted, query inputs) @ weights + bias
    params, row = outer_optimizer((params, row), mean over tasks of
                                  grad(cross-entropy(logits, query labels)))

"How to Train Your MAML to Excel in Few-Shot Classification", arXiv 2106.16245, section
5. MAML meta-learns a row of the head for each output, although the class that an output
stands for is drawn at random in each task: its accuracy depends on the order of the
classes. Here all outputs start from the same row, so the prediction for a class does
not depend on its number, and one trained learner handles any number of classes.

The meta-gradient is exact. The gradient with respect to the row is the gradient with
respect to the head's weights, summed over classes. There is no shared bias to learn:
adding one number to all logits changes no probability.

The authors start from a pretrained ResNet-12 and take 5 to 20 inner steps at 0.05.
Cost of one meta-step and task: MAML's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count
from jsharp.algorithms._adapted_head import Head, adapted_head, predict_with_head
from jsharp.algorithms._bundle import bundle
from jsharp.algorithms._embedding import WithOwn, made_of_embedding, one_hot_labels
from jsharp.algorithms._options import (
  InnerLoop,
  Made,
  NormOptions,
  Phases,
  Problem,
  SecondOrderOptions,
  Sharpness,
  constant_cost,
)
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.losses import batch_loss, cross_entropy
from jsharp.types import ApplyFn, Batch, LossFn, Mask, MetaAlgorithm, Params, TaskLossFn


def unicorn_maml(
  apply_fn: ApplyFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  way: int,
  num_inner_steps: int,
  inner_loss: Callable[[LossFn], LossFn] = lambda loss_fn: loss_fn,
  query_loss_fn: TaskLossFn | None = None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds UNICORN-MAML; `init` takes `WithOwn(embedding's parameters, row)`.

  A class without support examples is never predicted; see `jsharp.proto_maml`.

  Args:
    apply_fn: the embedding, `apply_fn(params, inputs) -> [num_examples, dim]`, for
      example that of `Conv4(num_outputs=None)`. The row is `[dim]`.
    inner_optimizer: any optax optimizer, `optax.sgd(inner_lr)` in the paper. It sees
      `WithHead(params, weights, bias, None)`.
    outer_optimizer: any optax optimizer, SGD with momentum in the paper.
    way: the number of classes of a task.
    num_inner_steps: inner steps in training.
    inner_loss: `inner_loss(loss_fn) -> loss_fn`, applied to the support loss before the
      inner loop differentiates it, as in `jsharp.proto_maml`.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective, made
      with `predict_with_head`; cross-entropy on the query set if None.
    adapted_mask: `params -> pytree of bool`, the leaves of the embedding that the inner
      loop changes in addition to the head; all if None.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`; `adapt` returns a `WithHead`.

  Raises:
    ValueError: if a count is out of range; at the first trace, if the labels are not
      those of `way` classes or the embedding is not a matrix.

  Example:
    >>> algorithm = unicorn_maml(
    ...   lambda w, x: w * x, optax.sgd(0.1), optax.sgd(0.1), way=3, num_inner_steps=1)
    >>> start = WithOwn(jnp.float32(1.0), jnp.array([0.5]))
    >>> support = Batch(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([0, 1, 2]))
    >>> algorithm.adapt(start, support, num_steps=0).weights.tolist()
    [[0.5, 0.5, 0.5]]
    >>> adapted = algorithm.adapt(start, support)
    >>> bool(adapted.weights[0, 2] > adapted.weights[0, 0])
    True
  """
  way = check_count("way", way, minimum=2)

  def start(params: WithOwn, support: Batch) -> tuple[Params, Head]:
    row = params.head
    if row.ndim != 1:
      raise ValueError(
        f"params.head must be one row [dim] for all classes, got {list(row.shape)}"
      )
    examples = jnp.zeros((jnp.shape(support.targets)[0], 1), row.dtype)
    present = one_hot_labels(support.targets, way, examples).sum(axis=0) > 0
    weights = jnp.broadcast_to(row[:, None], (row.shape[0], way))
    return params.embedding, (weights, jnp.zeros(way, row.dtype), present)

  adapt = adapted_head(
    apply_fn,
    start,
    inner_optimizer,
    way=way,
    num_inner_steps=check_count("num_inner_steps", num_inner_steps),
    inner_loss=inner_loss,
    adapted_mask=adapted_mask,
    execution=execution,
  )
  loss_fn = batch_loss(predict_with_head(apply_fn), cross_entropy)
  return bundle(
    adapt, query_loss_fn or on_query(loss_fn), outer_optimizer, execution=execution
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnicornMAML(InnerLoop, NormOptions, SecondOrderOptions):
  """UNICORN-MAML: one row of the head for all classes (Ye and Chao 2022)."""

  name: ClassVar[str] = "unicorn_maml"
  classifies: ClassVar[bool] = True
  any_way: ClassVar[bool] = True
  any_loss: ClassVar[bool] = False

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, self.inner_lr)

    def construct(
      apply_fn: ApplyFn, outer_optimizer: optax.GradientTransformation, **options: Any
    ) -> MetaAlgorithm:
      return unicorn_maml(
        apply_fn,
        optimizers["inner_optimizer"],
        outer_optimizer,
        num_inner_steps=self.num_inner_steps,
        inner_loss=lambda loss_fn: self.remembering(loss_fn)[0],
        adapted_mask=self.mask(problem),
        **options,
      )

    def row(dim: int) -> jax.Array:
      key = jax.random.fold_in(problem.key, 1)
      return jax.random.normal(key, (dim,), problem.inputs.dtype) / dim**0.5

    return made_of_embedding(
      problem, construct, predict_with_head, optimizers["at_test"], own=row
    )

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, products = self.cost_of_steps(sharpness)
    cost = self.num_inner_steps * (gradients + 2 * products) * support + query
    return constant_cost(cost, sharpness.loops(self)[1])
