"""Prototypical networks (Snell, Swersky, Zemel 2017, arXiv 1703.05175).

    prototypes[k] = mean of apply_fn(params, inputs) over support examples of class k
    logits[k] = -|apply_fn(params, query) - prototypes[k]|^2
    params = outer_optimizer(params, mean over tasks of
                             grad_params(cross-entropy(logits, query labels)))

Nothing is fitted to a task by gradients. Up to a term that is the same for all classes,
the logits are those of a linear classifier on the embedding with weights
`2 * prototypes[k]` and biases `-|prototypes[k]|^2`. Cost of one meta-step and task: one
gradient through the embedding of support and query set.

Batch normalisation: the prototypes are computed from the support set as a batch of its
own. Query examples are embedded as the policy of `jsharp.normalization` says: by
default as one batch of their own (transductive). The authors' code
(github.com/jakesnell/prototypical-networks) differs: it embeds both sets in one batch
in training and with running statistics at test.

The paper trains with more classes per task than it tests with (30-way and 20-way for
5-way 1-shot and 5-shot mini-ImageNet): build one algorithm for each `way`; the
parameters are the same.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import optax

from jsharp._checks import check_count
from jsharp.algorithms._bundle import bundle, without_inner_loop
from jsharp.algorithms._embedding import (
  class_means,
  embed,
  made_of_embedding,
  negative_distances,
  without_absent,
)
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
from jsharp.losses import batch_loss, cross_entropy
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, Params, TaskLossFn


class WithPrototypes(NamedTuple):
  """A prototypical network after adaptation: an embedding and the class means.

  Attributes:
    params: the parameters of the embedding, unchanged.
    prototypes: `[way, dim]`.
    present: `[way]` bool, the classes that have support examples.
  """

  params: Params
  prototypes: jax.Array
  present: jax.Array


def protonet(
  apply_fn: ApplyFn,
  outer_optimizer: optax.GradientTransformation,
  *,
  way: int,
  query_loss_fn: TaskLossFn | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds a prototypical network; `adapt` returns a `WithPrototypes`.

  A class without support examples is never predicted: its logit is 1000 below the
  lowest logit of the other classes. Everything stays finite, so `way` may exceed the
  number of classes of some tasks.

  Args:
    apply_fn: the embedding, `apply_fn(params, inputs) -> [num_examples, dim]`, for
      example that of `Conv4(num_outputs=None)`.
    outer_optimizer: any optax optimizer, `optax.adam(1e-3)` in the paper.
    way: the number of classes of a task.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective, made
      with `predict_with_prototypes`; cross-entropy on the query set if None.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: if `way` is below 2; at the first trace, if the embedding is not a
      matrix or the support set is smaller than `way`.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp import Task
    >>> algorithm = protonet(lambda w, x: w * x, optax.sgd(0.1), way=2)
    >>> support = Batch(jnp.array([[0.0], [2.0], [10.0]]), jnp.array([0, 0, 1]))
    >>> query = Batch(jnp.array([[4.0], [8.0]]), jnp.array([0, 1]))
    >>> algorithm.adapt(1.0, support).prototypes.tolist()
    [[1.0], [10.0]]
    >>> tasks = jax.tree.map(lambda x: x[None], Task(support, query))
    >>> _, metrics = algorithm.step(algorithm.init(1.0), tasks)
    >>> metrics["accuracy"].tolist()
    [1.0]
  """
  way = check_count("way", way, minimum=2)

  def adapt(params: Params, support: Batch) -> WithPrototypes:
    features = embed(apply_fn, params, support.inputs)
    return WithPrototypes(params, *class_means(features, support.targets, way))

  predict = predict_with_prototypes(apply_fn)
  return bundle(
    without_inner_loop("protonet", adapt),
    query_loss_fn or on_query(batch_loss(predict, cross_entropy)),
    outer_optimizer,
    execution=execution,
  )


def predict_with_prototypes(apply_fn: ApplyFn) -> ApplyFn:
  """The prediction function of a prototypical network, for the policies and losses.

  An embedding with batch normalisation normalises the `inputs` of one call together.
  Images passed one at a time are each normalised alone, which lowers accuracy.
  `jsharp.normalization.per_query` and `support_statistics` add the support set to the
  batch, as `Learner.classifier()` does; an answer then depends on no other image.

  Args:
    apply_fn: the embedding.

  Returns:
    `predict(adapted, inputs, num_statistics=None) -> logits`, `[num_examples, way]`,
    where `adapted` is a `WithPrototypes`.

  Example:
    >>> import jax.numpy as jnp
    >>> predict = predict_with_prototypes(lambda w, x: w * x)
    >>> prototypes = jnp.array([[0.0], [4.0]])
    >>> adapted = WithPrototypes(1.0, prototypes, jnp.array([True, True]))
    >>> predict(adapted, jnp.array([[1.0]])).tolist()
    [[-1.0, -9.0]]
  """

  def predict(
    adapted: WithPrototypes, inputs: Any, num_statistics: int | None = None
  ) -> jax.Array:
    features = embed(apply_fn, adapted.params, inputs, num_statistics)
    logits = negative_distances(features, adapted.prototypes)
    return without_absent(logits, adapted.present)

  return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtoNet(Algorithm):
  """Prototypical networks: class means of an embedding (Snell et al. 2017)."""

  name: ClassVar[str] = "protonet"
  classifies: ClassVar[bool] = True
  any_way: ClassVar[bool] = True
  has_inner_gradient: ClassVar[bool] = False

  def make(self, problem: Problem) -> Made:
    return made_of_embedding(problem, protonet, predict_with_prototypes)

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    return constant_cost(support + query, sharpness.loops(self)[1])
