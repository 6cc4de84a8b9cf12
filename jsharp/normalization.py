"""Policies that decide whose statistics normalise a query example.

Models here normalise by the statistics of the batch they are given and keep no state.
The choice of that batch decides what an accuracy means:

- `transductive`: the whole query set at once, as in MAML, MAML++ and
  Sharp-MAML. The model sees the unlabelled query set, which is worth about three
  percentage points on mini-ImageNet (Reptile, Nichol et al. 2018, arXiv 1803.02999,
  table 1).
- `support_statistics`: the support set's mean and variance. Inductive.
- `per_query`: each query example alone, in one batch with the support set; Reptile's
  "non-transductive". Inductive, and works with any `apply_fn`.

Every policy maps `apply_fn` to `predict(params, task) -> outputs` for the query set;
`query_loss` turns this into a task loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsharp.types import ApplyFn, Metrics, Params, Task, TaskLossFn

PredictFn = Callable[[Params, Task], Any]


def transductive(apply_fn: ApplyFn) -> PredictFn:
  """Predicts the query set as one batch.

  Args:
    apply_fn: `apply_fn(params, inputs) -> outputs`.

  Returns:
    `predict(params, task) -> outputs`, `[num_query, ...]`.

  Example:
    >>> from jsharp.types import Batch
    >>> task = Task(Batch(jnp.zeros((1, 2)), None), Batch(jnp.ones((3, 2)), None))
    >>> transductive(lambda params, x: x - x.mean(0, keepdims=True))(None, task).sum()
    Array(0., dtype=float32)
  """

  def predict(params: Params, task: Task) -> Any:
    return apply_fn(params, task.query.inputs)

  return predict


def support_statistics(apply_fn: ApplyFn) -> PredictFn:
  """Predicts the query set normalised by the support set's statistics.

  Args:
    apply_fn: `apply_fn(params, inputs, num_statistics=n) -> outputs`, where the
      normalisation statistics come from only the first `n` rows. The models of
      `jsharp.models` accept `num_statistics`.

  Returns:
    `predict(params, task) -> outputs`, `[num_query, ...]`.

  Example:
    >>> from jsharp.types import Batch
    >>> def center(params, x, num_statistics=None):
    ...   return x - x[:num_statistics].mean(0, keepdims=True)
    >>> task = Task(Batch(jnp.zeros((1, 1)), None), Batch(jnp.ones((2, 1)), None))
    >>> support_statistics(center)(None, task).tolist()
    [[1.0], [1.0]]
  """

  def predict(params: Params, task: Task) -> Any:
    num_support = task.support.inputs.shape[0]
    inputs = jnp.concatenate([task.support.inputs, task.query.inputs])
    return apply_fn(params, inputs, num_statistics=num_support)[num_support:]

  return predict


def per_query(apply_fn: ApplyFn) -> PredictFn:
  """Predicts each query example alone, in one batch with the support set.

  Args:
    apply_fn: `apply_fn(params, inputs) -> outputs`.

  Returns:
    `predict(params, task) -> outputs`, `[num_query, ...]`. It processes `num_query *
    (num_support + 1)` examples, for one query example at a time, in the memory of
    `num_support + 1`.

  Example:
    >>> from jsharp.types import Batch
    >>> task = Task(Batch(jnp.zeros((1, 1)), None), Batch(jnp.ones((2, 1)), None))
    >>> per_query(lambda params, x: x - x.mean(0, keepdims=True))(None, task).tolist()
    [[0.5], [0.5]]
  """

  def predict(params: Params, task: Task) -> Any:
    def one(example: jax.Array) -> Any:
      inputs = jnp.concatenate([task.support.inputs, example[None]])
      return apply_fn(params, inputs)[-1]

    return jax.lax.map(one, task.query.inputs)

  return predict


def query_loss(predict: PredictFn, criterion: Any) -> TaskLossFn:
  """The loss on a task's query set under a policy.

  Args:
    predict: `predict(params, task) -> outputs`, one of the policies above.
    criterion: `criterion(outputs, targets) -> (loss, metrics)`.

  Returns:
    `query_loss_fn(params, task) -> (loss, metrics)`.

  Example:
    >>> from jsharp import losses
    >>> from jsharp.types import Batch
    >>> batch = Batch(jnp.ones((2, 1)), jnp.zeros((2, 1)))
    >>> loss_fn = query_loss(transductive(lambda w, x: w * x), losses.squared_error)
    >>> float(loss_fn(3.0, Task(batch, batch))[0])
    9.0
  """

  def query_loss_fn(params: Params, task: Task) -> tuple[jax.Array, Metrics]:
    return criterion(predict(params, task), task.query.targets)

  return query_loss_fn
