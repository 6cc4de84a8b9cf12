"""Shared by algorithms that fit a head on an embedding: features, labels, means."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsharp._labels import as_known, one_hot
from jsharp.algorithms._options import Made, Problem
from jsharp.tree import at_least_float32
from jsharp.types import ApplyFn, MetaAlgorithm, Params

_BEHIND = 1e3
"""The logit of a class without support examples: this many nats below the lowest."""


def embed(
  apply_fn: ApplyFn, params: Params, inputs: Any, num_statistics: int | None = None
) -> jax.Array:
  """Embeds the inputs as one normalisation batch.

  Args:
    apply_fn: `apply_fn(params, inputs) -> features`. It must accept `num_statistics=n`
      if a policy normalises by the first `n` rows.
    params: its parameters.
    inputs: `[num_examples, ...]`.
    num_statistics: see `jsharp.normalization.support_statistics`; None for all rows.

  Returns:
    `[num_examples, dim]`, in float32 or wider: in half precision, distances between
    features overflow or lose all their digits.

  Raises:
    ValueError: if the features are not one vector per example.

  Example:
    >>> embed(lambda w, x: w * x, 2.0, jnp.ones((3, 4))).shape
    (3, 4)
  """
  extra = {} if num_statistics is None else {"num_statistics": num_statistics}
  features = jnp.asarray(apply_fn(params, inputs, **extra))
  if features.ndim != 2 or not jnp.issubdtype(features.dtype, jnp.floating):
    raise ValueError(
      "apply_fn must embed inputs as a float array [num_examples, dim], got "
      f"{features.dtype} {features.shape}; flatten each example to one vector, for "
      "example Conv4(num_outputs=None)"
    )
  return features.astype(at_least_float32(features.dtype))


def one_hot_labels(labels: Any, way: int, like: jax.Array) -> jax.Array:
  """One-hot encodes the labels of a support set.

  Args:
    labels: `[num_examples]` integers in `[0, way)`. Any other value raises an error or,
      where labels are traced, becomes a row of NaN; see `jsharp._labels.one_hot`.
    way: the number of classes.
    like: the features `[num_examples, dim]` that they belong to.

  Returns:
    `[num_examples, way]` zeros and ones of the features' dtype.

  Raises:
    ValueError: if the labels are not an integer vector with one entry per feature
      vector, if there are fewer examples than classes, or if a label is outside
      `[0, way)` and known when the function is traced.

  Example:
    >>> one_hot_labels(jnp.array([1, 0]), 2, jnp.ones((2, 3))).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
  """
  labels = as_known(labels)
  if labels.shape != like.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"support.targets must be integer labels of shape {like.shape[:1]}, one per "
      f"support example, got {labels.dtype} {labels.shape}; use class indices"
    )
  if labels.size < way:
    raise ValueError(
      f"way={way} classes cannot be told apart with {labels.size} support examples: "
      "each needs at least one; pass the way of the tasks, or more examples"
    )
  return one_hot(labels, way, like.dtype)


def class_means(
  features: jax.Array, labels: Any, way: int
) -> tuple[jax.Array, jax.Array]:
  """The mean feature of each class in a support set.

  Args:
    features: `[num_examples, dim]`.
    labels: `[num_examples]` integers in `[0, way)`, see `one_hot_labels`.
    way: the number of classes.

  Returns:
    `[way, dim]` means, and `[way]` bool: which classes have examples. A class without
    examples gets the mean of all examples, which barely moves the centre of the means.

  Raises:
    ValueError: see `one_hot_labels`.

  Example:
    >>> means, present = class_means(
    ...   jnp.array([[0.0], [2.0], [10.0]]), jnp.array([0, 0, 1]), 2)
    >>> means.tolist(), present.tolist()
    ([[1.0], [10.0]], [True, True])
  """
  rows = one_hot_labels(labels, way, features)
  counts = rows.sum(axis=0)[:, None]
  sums = jnp.matmul(rows.T, features, precision="highest")
  means = jnp.where(
    counts == 0, features.mean(axis=0, keepdims=True), sums / jnp.maximum(counts, 1)
  )
  return means, counts[:, 0] > 0


def negative_distances(features: jax.Array, prototypes: jax.Array) -> jax.Array:
  """Negative squared distances from prototypes.

  Coordinates are relative to the centre of the prototypes, so an offset shared by all
  embeddings costs no precision. No `[num_examples, way, dim]` array is formed.

  Args:
    features: `[num_examples, dim]`.
    prototypes: `[way, dim]`.

  Returns:
    `[num_examples, way]`.

  Example:
    >>> negative_distances(jnp.array([[1.0]]), jnp.array([[0.0], [4.0]])).tolist()
    [[-1.0, -9.0]]
  """
  # Distances do not depend on the centre, so their derivative with respect to it is 0.
  centre = jax.lax.stop_gradient(prototypes.mean(axis=0, keepdims=True))
  features, prototypes = features - centre, prototypes - centre
  products = jnp.matmul(features, prototypes.T, precision="highest")
  return (
    2 * products
    - jnp.square(features).sum(axis=1, keepdims=True)
    - jnp.square(prototypes).sum(axis=1)[None]
  )


def without_absent(logits: jax.Array, present: jax.Array) -> jax.Array:
  """Lowers the logits of classes without support examples, so none is ever predicted.

  Args:
    logits: `[num_examples, way]`.
    present: `[way]` bool, the classes that have support examples.

  Returns:
    `[num_examples, way]`. The logit of an absent class is 1000 below the lowest logit
    of the other classes and is treated as a constant in derivatives. It stays finite
    and does not affect the probabilities or gradients of the other classes.

  Example:
    >>> without_absent(jnp.array([[5.0, 9.0, 7.0]]), jnp.array([True, False, True]))
    Array([[   5., -995.,    7.]], dtype=float32)
  """
  lowest = jnp.where(present[None], logits, jnp.inf).min(axis=1, keepdims=True)
  return jnp.where(present[None], logits, jax.lax.stop_gradient(lowest) - _BEHIND)


class WithOwn(NamedTuple):
  """An embedding, and what an algorithm learns in addition to it.

  Attributes:
    embedding: parameters of the embedding.
    head: the algorithm's own parameters: a shared row, a temperature or a centre.
  """

  embedding: Params
  head: jax.Array


def embedding_size(apply_fn: ApplyFn, params: Params, inputs: Any) -> int:
  """The dimension of the embedding of one example.

  Example:
    >>> embedding_size(lambda w, x: w * x, 2.0, jnp.ones((1, 4)))
    4
  """
  size: int = jax.eval_shape(lambda: embed(apply_fn, params, inputs)).shape[-1]
  return size


def made_of_embedding(
  problem: Problem,
  constructor: Callable[..., MetaAlgorithm],
  prediction: Callable[[ApplyFn], ApplyFn],
  at_test: Mapping[str, Any] | None = None,
  *,
  own: Callable[[int], jax.Array] | None = None,
) -> Made:
  """An algorithm that fits a head on a network stripped of its output layer.

  Args:
    problem: what it is built for.
    constructor: `constructor(apply_fn, outer_optimizer, *, way, execution)`.
    prediction: `prediction(apply_fn) -> predict(adapted, inputs)`.
    at_test: keyword arguments of `adapt` at test; none if None.
    own: `own(dim)`, the initial value of the algorithm's own parameters for an
      embedding of dimension `dim`; the parameters are then a `WithOwn`.

  Returns:
    What `Algorithm.make` returns.
  """
  init_fn, apply_fn = problem.functions(problem.module(None))
  params = init_fn(problem.key, problem.inputs)
  if own is not None:
    params = WithOwn(params, own(embedding_size(apply_fn, params, problem.inputs)))

  def algorithm(way: int) -> MetaAlgorithm:
    return constructor(
      apply_fn,
      problem.outer.optimizer(problem.sharpness),
      way=way,
      execution=problem.execution,
    )

  return Made(
    params=params,
    algorithm=algorithm,
    predict=lambda way: prediction(apply_fn),
    at_test=dict(at_test or {}),
  )
