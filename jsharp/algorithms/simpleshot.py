"""SimpleShot: nearest centroid on transformed features (Wang et al. 2019).

    centre = mean feature of the training images
    transformed(x) = unit vector along apply_fn(params, x) - centre
    centroids[k] = mean of transformed(inputs) over support examples of class k
    logits[k] = -|transformed(query) - centroids[k]|^2

"SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning", arXiv
1911.04623. The embedding is first trained as an ordinary classifier of all base
classes. Nothing is learned by gradients: a meta-step embeds its tasks and updates the
centre, the mean feature of the images of all steps so far. The authors use each
training image once; here the images are those of the sampled tasks.

Transformations, `transform`: "centred_l2" is the paper's CL2N, "l2" its L2N, without a
centre, and "none" its UN. Cost of one meta-step and task: a forward pass, a third of a
gradient.

Batch normalisation: the authors' code normalises by running averages, `--norm=frozen`
here.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jsharp._checks import check_choice, check_count
from jsharp.algorithms._bundle import without_gradient, without_inner_loop
from jsharp.algorithms._embedding import (
  WithOwn,
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
from jsharp.algorithms.protonet import WithPrototypes
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.losses import batch_loss, cross_entropy
from jsharp.models.pretraining import unit
from jsharp.options import option
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, Task

Transform = Literal["none", "l2", "centred_l2"]


def simpleshot(
  apply_fn: ApplyFn,
  *,
  way: int,
  transform: Transform = "centred_l2",
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds SimpleShot; `init` takes `WithOwn(embedding's parameters, centre)`.

  A step does not change the embedding. It updates `params.head`, `[dim]`, the mean of
  the features of all images so far. A class without support examples is never
  predicted; see `jsharp.protonet`.

  Args:
    apply_fn: the embedding, `apply_fn(params, inputs) -> [num_examples, dim]`.
    way: the number of classes of a task.
    transform: how features are transformed: "centred_l2", "l2" or "none".
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`; `adapt` returns a
    `WithPrototypes` whose `params` are a `WithOwn`.

  Raises:
    ValueError: if `way` is below 2 or there is no such transformation; at the first
      trace, if the embedding is not a matrix or the support set is smaller than `way`.

  Example:
    >>> algorithm = simpleshot(lambda w, x: w * x, way=2)
    >>> support = Batch(jnp.array([[4.0, 3.0], [0.0, 3.0]]), jnp.array([0, 1]))
    >>> tasks = jax.tree.map(lambda x: x[None], Task(support, support))
    >>> start = WithOwn(jnp.float32(1.0), jnp.zeros(2))
    >>> state, metrics = algorithm.step(algorithm.init(start), tasks)
    >>> state.params.head.tolist()
    [2.0, 3.0]
    >>> algorithm.adapt(state.params, support).prototypes.tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
  """
  way = check_count("way", way, minimum=2)
  predict = predict_by_centroid(apply_fn, transform)

  def adapt(params: WithOwn, support: Batch) -> WithPrototypes:
    features = embed(apply_fn, params.embedding, support.inputs)
    rows = transformed(features, params.head, transform)
    return WithPrototypes(params, *class_means(rows, support.targets, way))

  def mean_feature(params: WithOwn, task: Task) -> jax.Array:
    batches = [
      embed(apply_fn, params.embedding, batch.inputs)
      for batch in (task.support, task.query)
    ]
    return jnp.concatenate(batches).mean(axis=0)

  def centred(params: WithOwn, mean: jax.Array, step: jax.Array) -> WithOwn:
    moved = (mean - params.head) / (step + 1).astype(params.head.dtype)
    return params._replace(head=params.head + moved)

  return without_gradient(
    without_inner_loop("simpleshot", adapt),
    on_query(batch_loss(predict, cross_entropy)),
    gather=mean_feature,
    update=centred,
    execution=execution,
  )


def transformed(features: jax.Array, centre: jax.Array, transform: str) -> jax.Array:
  """Centres features and scales them to unit length, as `transform` says.

  Args:
    features: `[num_examples, dim]`.
    centre: `[dim]`.
    transform: "none", "l2" or "centred_l2".

  Returns:
    An array like `features`.

  Raises:
    ValueError: if there is no such transformation.

  Example:
    >>> transformed(jnp.array([[4.0, 3.0]]), jnp.array([4.0, 0.0]), "centred_l2")
    Array([[0., 1.]], dtype=float32)
  """
  check_choice("transform", transform, ("none", "l2", "centred_l2"))
  if transform == "centred_l2":
    features = features - centre[None]
  return features if transform == "none" else unit(features)


def predict_by_centroid(
  apply_fn: ApplyFn, transform: Transform = "centred_l2"
) -> ApplyFn:
  """The prediction function of SimpleShot, for policies and losses.

  Args:
    apply_fn: the embedding.
    transform: of the features.

  Returns:
    `predict(adapted, inputs, num_statistics=None) -> logits`, `[num_examples, way]`,
    the negative squared distances from the centroids.

  Example:
    >>> predict = predict_by_centroid(lambda w, x: w * x, "none")
    >>> params = WithOwn(jnp.float32(1.0), jnp.zeros(1))
    >>> known = WithPrototypes(params, jnp.array([[0.0], [4.0]]), jnp.array([True] * 2))
    >>> predict(known, jnp.array([[1.0]])).tolist()
    [[-1.0, -9.0]]
  """

  def predict(
    adapted: WithPrototypes, inputs: Any, num_statistics: int | None = None
  ) -> jax.Array:
    embedding, centre = adapted.params
    features = embed(apply_fn, embedding, inputs, num_statistics)
    rows = transformed(features, centre, transform)
    logits = negative_distances(rows, adapted.prototypes)
    return without_absent(logits, adapted.present)

  return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleShot(Algorithm):
  """SimpleShot: nearest centroid on transformed features (Wang et al. 2019)."""

  name: ClassVar[str] = "simpleshot"
  classifies: ClassVar[bool] = True
  any_way: ClassVar[bool] = True
  has_inner_gradient: ClassVar[bool] = False
  has_outer_gradient: ClassVar[bool] = False

  transform: Literal["none", "l2", "centred_l2"] = option(
    "centred_l2",
    "How simpleshot transforms features. none: not at all; l2: to unit length; "
    "centred_l2: to unit length after subtracting the mean training feature.",
  )

  def make(self, problem: Problem) -> Made:
    dtype = problem.inputs.dtype

    def construct(apply_fn: ApplyFn, _: Any, **options: Any) -> MetaAlgorithm:
      return simpleshot(apply_fn, transform=self.transform, **options)

    return made_of_embedding(
      problem,
      construct,
      lambda apply_fn: predict_by_centroid(apply_fn, self.transform),
      own=lambda dim: jnp.zeros(dim, dtype),
    )

  def without_derivative(self) -> str | None:
    return "its step takes no gradient"

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    return constant_cost((support + query) / 3, outer_is_sharp=False)
