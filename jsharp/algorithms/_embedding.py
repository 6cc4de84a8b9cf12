"""What algorithms that fit a head on an embedding share: features and labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsharp.algorithms._options import Made, Problem
from jsharp.types import ApplyFn, MetaAlgorithm, Params


def embed(
  apply_fn: ApplyFn, params: Params, inputs: Any, num_statistics: int | None = None
) -> jax.Array:
  """Embeds the inputs as one normalisation batch.

  Args:
    apply_fn: `apply_fn(params, inputs) -> features`, and with `num_statistics=n` too
      if a policy asks for the statistics of the first `n` rows.
    params: its parameters.
    inputs: `[num_examples, ...]`.
    num_statistics: see `jsharp.normalization.support_statistics`; None for all rows.

  Returns:
    `[num_examples, dim]`.

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
  return features


def one_hot_labels(labels: Any, way: int, like: jax.Array) -> jax.Array:
  """The labels of a support set as targets of a fit.

  Args:
    labels: `[num_examples]` integers in `[0, way)`; another value is a row of zeros.
    way: the number of classes.
    like: the features `[num_examples, dim]` that they belong to.

  Returns:
    `[num_examples, way]` zeros and ones of the features' dtype.

  Raises:
    ValueError: if the labels are no vector of integers as long as the features, or
      there are fewer examples than classes, so that one class surely has none.

  Example:
    >>> one_hot_labels(jnp.array([1, 0]), 2, jnp.ones((2, 3))).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
  """
  labels = jnp.asarray(labels)
  if labels.shape != like.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"support.targets must be integer labels of shape {like.shape[:1]}, one per "
      f"support example, got {labels.dtype} {labels.shape}; use class indices"
    )
  if labels.size < way:
    raise ValueError(
      f"way={way} classes cannot be told apart with {labels.size} support examples: "
      "each needs one at least; pass the way of the tasks, or more examples"
    )
  return jax.nn.one_hot(labels, way, dtype=like.dtype)


def made_of_embedding(
  problem: Problem,
  constructor: Callable[..., MetaAlgorithm],
  prediction: Callable[[ApplyFn], ApplyFn],
) -> Made:
  """An algorithm that fits a head on the network without its own.

  Args:
    problem: what it is built for.
    constructor: `constructor(apply_fn, outer_optimizer, *, way, execution)`.
    prediction: `prediction(apply_fn) -> predict(adapted, inputs)`.

  Returns:
    What `Algorithm.make` returns.
  """
  init_fn, apply_fn = problem.functions(problem.module(None))

  def algorithm(way: int) -> MetaAlgorithm:
    return constructor(
      apply_fn,
      problem.outer.optimizer(problem.sharpness),
      way=way,
      execution=problem.execution,
    )

  return Made(
    params=init_fn(problem.key, problem.inputs),
    algorithm=algorithm,
    predict=lambda way: prediction(apply_fn),
    at_test={},
  )
