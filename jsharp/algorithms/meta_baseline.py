"""Meta-Baseline: meta-trained centroids on cosine similarity (Chen et al. 2021).

    centroids[k] = mean of apply_fn(params, inputs) over support examples of class k
    logits[k] = temperature * cos(apply_fn(params, query), centroids[k])
    params, temperature = outer_optimizer((params, temperature), mean over tasks of
                                          grad(cross-entropy(logits, query labels)))

"Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot Learning", arXiv 2003.04390.
The embedding is first trained as an ordinary classifier of all base classes; the
temperature starts at 10, as in the authors' code. Nothing is fitted to a task by
gradients. Cost of one meta-step and task: one gradient through the embedding of support
and query set.

Batch normalisation: as in `jsharp.protonet`; the authors' code normalises by running
averages at test, `--norm=frozen` here.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count
from jsharp.algorithms._bundle import bundle, without_inner_loop
from jsharp.algorithms._embedding import (
  WithOwn,
  class_means,
  embed,
  made_of_embedding,
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
from jsharp.algorithms.protonet import WithPrototypes
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.losses import batch_loss, cross_entropy
from jsharp.models.pretraining import cosines
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, TaskLossFn

TEMPERATURE = 10.0


def meta_baseline(
  apply_fn: ApplyFn,
  outer_optimizer: optax.GradientTransformation,
  *,
  way: int,
  query_loss_fn: TaskLossFn | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds Meta-Baseline; `init` takes `WithOwn(embedding's parameters, temperature)`.

  A class without support examples is never predicted; see `jsharp.protonet`.

  Args:
    apply_fn: the embedding, `apply_fn(params, inputs) -> [num_examples, dim]`.
    outer_optimizer: any optax optimizer, SGD with momentum at 0.001 in the paper.
    way: the number of classes of a task.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective, made
      with `predict_by_cosine`; cross-entropy on the query set if None.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`; `adapt` returns a
    `WithPrototypes` whose `params` are a `WithOwn`.

  Raises:
    ValueError: if `way` is below 2; at the first trace, if the embedding is not a
      matrix or the support set is smaller than `way`.

  Example:
    >>> algorithm = meta_baseline(lambda w, x: w * x, optax.sgd(0.1), way=2)
    >>> start = WithOwn(jnp.float32(1.0), jnp.float32(10.0))
    >>> support = Batch(jnp.array([[0.0, 2.0], [3.0, 0.0]]), jnp.array([0, 1]))
    >>> adapted = algorithm.adapt(start, support)
    >>> predict = predict_by_cosine(lambda w, x: w * x)
    >>> predict(adapted, jnp.array([[0.0, 9.0]])).tolist()
    [[10.0, 0.0]]
  """
  way = check_count("way", way, minimum=2)

  def adapt(params: WithOwn, support: Batch) -> WithPrototypes:
    features = embed(apply_fn, params.embedding, support.inputs)
    return WithPrototypes(params, *class_means(features, support.targets, way))

  predict = predict_by_cosine(apply_fn)
  return bundle(
    without_inner_loop("meta_baseline", adapt),
    query_loss_fn or on_query(batch_loss(predict, cross_entropy)),
    outer_optimizer,
    execution=execution,
  )


def predict_by_cosine(apply_fn: ApplyFn) -> ApplyFn:
  """The prediction function of Meta-Baseline, for policies and losses.

  Args:
    apply_fn: the embedding.

  Returns:
    `predict(adapted, inputs, num_statistics=None) -> logits`, `[num_examples, way]`.

  Example:
    >>> predict = predict_by_cosine(lambda w, x: w * x)
    >>> params = WithOwn(jnp.float32(1.0), jnp.float32(10.0))
    >>> known = WithPrototypes(params, 3 * jnp.eye(2), jnp.array([True, True]))
    >>> predict(known, jnp.array([[2.0, 0.0]])).tolist()
    [[10.0, 0.0]]
  """

  def predict(
    adapted: WithPrototypes, inputs: Any, num_statistics: int | None = None
  ) -> jax.Array:
    embedding, temperature = adapted.params
    features = embed(apply_fn, embedding, inputs, num_statistics)
    logits = temperature * cosines(features, adapted.prototypes.T)
    return without_absent(logits, adapted.present)

  return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaBaseline(Algorithm):
  """Meta-Baseline: nearest centroid on cosine similarity (Chen et al. 2021)."""

  name: ClassVar[str] = "meta_baseline"
  classifies: ClassVar[bool] = True
  any_way: ClassVar[bool] = True
  has_inner_gradient: ClassVar[bool] = False

  def make(self, problem: Problem) -> Made:
    dtype = problem.inputs.dtype
    return made_of_embedding(
      problem,
      meta_baseline,
      predict_by_cosine,
      own=lambda dim: jnp.asarray(TEMPERATURE, dtype),
    )

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    return constant_cost(support + query, sharpness.loops(self)[1])
