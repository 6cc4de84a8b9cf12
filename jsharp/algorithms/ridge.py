"""R2-D2: ridge regression on an embedding (Bertinetto et al. 2019, arXiv 1805.08136).

    X = [apply_fn(params, support inputs), 1];  Y = one-hot support labels
    W = X' (X X' + exp(log_penalty) I)^-1 Y
    logits = scale * [apply_fn(params, query inputs), 1] W + offset
    params, log_penalty, scale, offset = outer_optimizer(..., mean over tasks of
                                           grad(cross-entropy(logits, query labels)))

The fit is exact and so is the derivative through it. Cholesky factorisation solves the
smaller of two equivalent systems: with few support examples the form above (Woodbury),
otherwise `W = (X' X + exp(log_penalty) I)^-1 X' Y`. Cost of one meta-step and task: one
gradient through the embedding of support and query set, and O(min(n, dim)^3).

The column of ones is the bias, penalised like the weights, as in the authors' code
(github.com/bertinetto/r2d2). That code divides X and Y by sqrt(n), so its penalty of 50
is `50 * n` here; it starts from a scale of 1e-4 and learns the penalty only on request.
`offset` is one number for all classes, as in the paper: a softmax is invariant to it,
and Adam moves it by rounding errors, without effect.

Batch normalisation: the support set is embedded as a batch of its own, and query
examples as the policy of `jsharp.normalization` says; the authors embed both sets in
one batch.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count
from jsharp.algorithms._bundle import bundle, without_inner_loop
from jsharp.algorithms._embedding import embed, made_of_embedding, one_hot_labels
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
from jsharp.tree import at_least_float32
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, Params, TaskLossFn

_MAX_SIDE = 4096  # A larger dense system costs more than any embedding.


class WithRidge(NamedTuple):
  """The meta-learned parameters of R2-D2.

  Attributes:
    params: the parameters of the embedding.
    log_penalty: scalar, the natural logarithm of the ridge penalty.
    scale: scalar factor of the regression's predictions.
    offset: scalar added to them.
  """

  params: Params
  log_penalty: jax.Array
  scale: jax.Array
  offset: jax.Array


class FittedRidge(NamedTuple):
  """R2-D2 after adaptation: an embedding and a fitted ridge head.

  Attributes:
    params: the parameters of the embedding, unchanged.
    weights: `[dim + 1, way]`, the bias last.
    scale: scalar factor of the regression's predictions.
    offset: scalar added to them.
  """

  params: Params
  weights: jax.Array
  scale: jax.Array
  offset: jax.Array


def ridge(
  apply_fn: ApplyFn,
  outer_optimizer: optax.GradientTransformation,
  *,
  way: int,
  penalty: float = 1.0,
  scale: float = 10.0,
  offset: float = 0.0,
  query_loss_fn: TaskLossFn | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds R2-D2; `adapt` returns a `FittedRidge`.

  `init` takes the embedding's parameters; `state.params`, which `adapt` takes, is a
  `WithRidge`. A class without support examples has the logit `offset` everywhere.

  Args:
    apply_fn: the embedding, `apply_fn(params, inputs) -> [num_examples, dim]`, for
      example that of `Conv4(num_outputs=None)`.
    outer_optimizer: any optax optimizer, `optax.adam(5e-3)` in the authors' code.
    way: the number of classes of a task.
    penalty: initial ridge penalty. In single precision keep it above 1e-7 times the
      largest squared norm of a feature vector times the number of examples; otherwise
      identical examples can make the fit NaN.
    scale: initial factor; the regression's predictions are about 0 and 1, so 10 gives
      a confident softmax.
    offset: initial offset.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective, made
      with `predict_with_ridge`; cross-entropy on the query set if None.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: if `way` is below 2, `penalty` is not positive, or one of the starting
      values is not finite; at the first trace, if the embedding is not a matrix, the
      support set is smaller than `way`, or the system has more than 4096 rows.

  Example:
    >>> from jsharp import Task
    >>> algorithm = ridge(lambda w, x: w * x, optax.sgd(0.1), way=2, scale=1.0)
    >>> batch = Batch(jnp.array([[-1.0], [1.0], [1.0]]), jnp.array([0, 1, 1]))
    >>> state = algorithm.init(1.0)
    >>> fitted = algorithm.adapt(state.params, batch)
    >>> predict_with_ridge(lambda w, x: w * x)(fitted, jnp.array([[2.0]])).round(3)
    Array([[-0.333,  1.2  ]], dtype=float32)
    >>> state, _ = algorithm.step(
    ...   state, jax.tree.map(lambda x: x[None], Task(batch, batch)))
    >>> bool(state.params.log_penalty < 0)  # The support set itself wants less.
    True
  """
  way = check_count("way", way, minimum=2)
  for name, value in (("penalty", penalty), ("scale", scale), ("offset", offset)):
    if not math.isfinite(value) or (name == "penalty" and value <= 0):
      raise ValueError(
        f"{name} must be finite, and the penalty positive, got {name}={value!r}; "
        "leave it out for the default"
      )

  def prepare(params: Params) -> WithRidge:
    start = (jnp.asarray(x, float) for x in (math.log(penalty), scale, offset))
    return WithRidge(params, *start)

  def adapt(params: WithRidge, support: Batch) -> FittedRidge:
    features = embed(apply_fn, params.params, support.inputs)
    one_hot = one_hot_labels(support.targets, way, features)
    weights = ridge_weights(_with_ones(features), one_hot, jnp.exp(params.log_penalty))
    return FittedRidge(params.params, weights, params.scale, params.offset)

  predict = predict_with_ridge(apply_fn)
  return bundle(
    without_inner_loop("ridge", adapt),
    query_loss_fn or on_query(batch_loss(predict, cross_entropy)),
    outer_optimizer,
    prepare=prepare,
    execution=execution,
  )


def predict_with_ridge(apply_fn: ApplyFn) -> ApplyFn:
  """The prediction function of R2-D2, for the policies and losses.

  Args:
    apply_fn: the embedding.

  Returns:
    `predict(adapted, inputs, num_statistics=None) -> logits`, `[num_examples, way]`,
    where `adapted` is a `FittedRidge`.

  Example:
    >>> predict = predict_with_ridge(lambda w, x: w * x)
    >>> fitted = FittedRidge(2.0, jnp.array([[1.0], [3.0]]), 10.0, 0.5)
    >>> predict(fitted, jnp.array([[1.0]])).tolist()
    [[50.5]]
  """

  def predict(
    adapted: FittedRidge, inputs: Any, num_statistics: int | None = None
  ) -> jax.Array:
    features = _with_ones(embed(apply_fn, adapted.params, inputs, num_statistics))
    fitted = jnp.matmul(features, adapted.weights, precision="highest")
    scale, offset = (
      jnp.asarray(x, fitted.dtype) for x in (adapted.scale, adapted.offset)
    )
    return scale * fitted + offset

  return predict


def ridge_weights(features: jax.Array, targets: jax.Array, penalty: Any) -> jax.Array:
  """The minimiser W of `|X W - Y|^2 + penalty |W|^2`, differentiable in all three.

  Args:
    features: X, `[n, dim]`.
    targets: Y, `[n, num_outputs]` of the same dtype.
    penalty: positive scalar.

  Returns:
    W, `[dim, num_outputs]` of that dtype; the system is solved in float32 or wider.

  Raises:
    ValueError: if both `n` and `dim` are above 4096.

  Example:
    >>> ridge_weights(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [2.0]]), 5.0)
    Array([[0.5]], dtype=float32)
  """
  n, dim = features.shape
  wide = at_least_float32(features.dtype)
  if features.dtype != wide:
    weights = ridge_weights(features.astype(wide), targets.astype(wide), penalty)
    return weights.astype(features.dtype)
  penalty = jnp.asarray(penalty, features.dtype)
  if not isinstance(n, int):
    # A symbolic dimension of `jax.export`: the system is chosen when the program runs.
    return jax.lax.cond(
      jnp.asarray(n) <= dim, _by_examples, _by_entries, features, targets, penalty
    )
  if min(n, dim) > _MAX_SIDE:
    raise ValueError(
      f"ridge regression on {n} support examples of dim {dim} needs a dense system of "
      f"{min(n, dim)} rows, more than {_MAX_SIDE}; use fewer support examples or a "
      "smaller embedding"
    )
  return (_by_examples if n <= dim else _by_entries)(features, targets, penalty)


def _by_examples(features: jax.Array, targets: jax.Array, penalty: Any) -> jax.Array:
  """`ridge_weights` by a system with one row per example."""
  transposed = features.T
  dual = _solve(features, transposed, penalty, targets)
  return jnp.matmul(transposed, dual, precision="highest")


def _by_entries(features: jax.Array, targets: jax.Array, penalty: Any) -> jax.Array:
  """`ridge_weights` by a system with one row per feature."""
  transposed = features.T
  projected = jnp.matmul(transposed, targets, precision="highest")
  return _solve(transposed, features, penalty, projected)


def _solve(left: jax.Array, right: jax.Array, penalty: Any, to: jax.Array) -> jax.Array:
  gram = jnp.matmul(left, right, precision="highest")
  system = gram + penalty * jnp.eye(gram.shape[0], dtype=gram.dtype)
  return jax.scipy.linalg.solve(system, to, assume_a="pos")


def _with_ones(features: jax.Array) -> jax.Array:
  return jnp.pad(features, ((0, 0), (0, 1)), constant_values=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridge(Algorithm):
  """R2-D2: a closed-form ridge head (Bertinetto et al. 2019)."""

  name: ClassVar[str] = "ridge"
  classifies: ClassVar[bool] = True
  any_way: ClassVar[bool] = True
  has_inner_gradient: ClassVar[bool] = False

  def make(self, problem: Problem) -> Made:
    return made_of_embedding(problem, ridge, predict_with_ridge)

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    return constant_cost(support + query, sharpness.loops(self)[1])
