"""Parameters and statistics that each inner step has a copy of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsharp.core.adaptation import join, split
from jsharp.losses import Criterion
from jsharp.types import Batch, Mask, Metrics, Params

StatisticsLossFn = Callable[[Params, Batch, Any], tuple[jax.Array, tuple[Metrics, Any]]]
"""`loss_fn(params, batch, statistics) -> (loss, (metrics, statistics))`.

Given None it normalises by the batch and returns the batch's statistics; given
statistics it normalises by those."""


def batch_loss_with_statistics(
  apply_fn: Callable[..., tuple[Any, Any]], criterion: Criterion
) -> StatisticsLossFn:
  """The loss of a model on a batch, which also returns the normalisation statistics.

  Args:
    apply_fn: `apply_fn(params, inputs, statistics) -> (outputs, statistics)`, as from
      `jsharp.models.with_statistics`.
    criterion: `criterion(outputs, targets) -> (loss, metrics)`.

  Returns:
    `loss_fn(params, batch, statistics) -> (loss, (metrics, statistics))`.

  Example:
    >>> from jsharp.losses import squared_error
    >>> def apply_fn(params, x, mean):
    ...   mean = x.mean() if mean is None else mean
    ...   return params * (x - mean), mean
    >>> loss_fn = batch_loss_with_statistics(apply_fn, squared_error)
    >>> loss, (_, mean) = loss_fn(2.0, Batch(jnp.array([0.0, 2.0]), jnp.zeros(2)), None)
    >>> float(loss), float(mean)
    (4.0, 1.0)
  """

  def loss_fn(
    params: Params, batch: Batch, statistics: Any
  ) -> tuple[jax.Array, tuple[Metrics, Any]]:
    outputs, statistics = apply_fn(params, batch.inputs, statistics)
    loss, metrics = criterion(outputs, batch.targets)
    return loss, (metrics, statistics)

  return loss_fn


def rows_of(tree: Any, num_rows: int) -> Any:
  """`num_rows` copies of every leaf along a new leading axis.

  Args:
    tree: a pytree of arrays.
    num_rows: the length of that axis.

  Returns:
    The pytree with leaves `[num_rows, ...]`.

  Example:
    >>> rows_of({"scale": jnp.ones(3)}, 2)["scale"].shape
    (2, 3)
  """
  return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], num_rows, 0), tree)


def row(tree: Any, i: Any) -> Any:
  """Row `i` of every leaf.

  Args:
    tree: a pytree of arrays `[num_rows, ...]`.
    i: the row, which may be traced.

  Returns:
    The pytree with leaves `[...]`.

  Example:
    >>> row({"scale": jnp.array([1.0, 2.0])}, 1)
    {'scale': Array(2., dtype=float32)}
  """
  return jax.tree.map(lambda x: x[i], tree)


def copied(params: Params, mask: Mask | None, num_rows: int) -> tuple[Params, Params]:
  """Splits off the leaves that get copies, and copies them.

  Args:
    params: any pytree.
    mask: `params -> pytree of bool`, the leaves with copies; none if None.
    num_rows: the number of copies.

  Returns:
    `(shared, copies)`, both like `params`, with None in place of each leaf that the
    other one holds; copies are `[num_rows, ...]`.

  Raises:
    ValueError: if the mask selects no leaf.

  Example:
    >>> params = {"w": 1.0, "z": jnp.float32(3)}
    >>> copied(params, lambda params: {"w": False, "z": True}, 2)
    ({'w': 1.0, 'z': None}, {'w': None, 'z': Array([3., 3.], dtype=float32)})
  """
  if mask is None:
    return params, jax.tree.map(lambda _: None, params)
  selected = mask(params)
  if not any(jax.tree.leaves(selected)):
    raise ValueError(
      "per_step selects no leaf; return True for at least one leaf of params, or leave "
      "it None"
    )
  copies, shared = split(params, lambda _: selected)
  return shared, rows_of(copies, num_rows)


def at_step(
  shared: Params, copies: Params, adapted_mask: Mask | None
) -> tuple[Params, Callable[[Any, Params], Params]]:
  """The leaves that the inner loop changes, and a function that adds the others.

  Args:
    shared: the model's parameters, None in place of those in `copies`.
    copies: the others, `[num_rows, ...]` each; None in place of those in `shared`.
    adapted_mask: which leaves of `shared` are adapted; all if None.

  Returns:
    `(adapted, complete)`: a pytree like `shared` with None for what is not adapted, and
    `complete(i, adapted) -> params` with all leaves, row i of the copies among them.

  Raises:
    ValueError: if no leaf is adapted.

  Example:
    >>> adapted, complete = at_step(
    ...   {"w": 1.0, "z": None}, {"w": None, "z": jnp.array([2.0, 3.0])}, None)
    >>> adapted
    {'w': 1.0, 'z': None}
    >>> {name: float(x) for name, x in complete(1, adapted).items()}
    {'w': 1.0, 'z': 3.0}
  """

  def mask(params: Params) -> Any:
    allowed = jax.tree.map(lambda _: True, params)
    if adapted_mask is not None:
      allowed = adapted_mask(params)
    return jax.tree.map(lambda allow, x: bool(allow) and x is not None, allowed, shared)

  adapted, others = split(join(shared, row(copies, 0)), mask)
  return adapted, lambda i, adapted: join(adapted, join(row(copies, i), others))


def averaged(kept: Any, seen: Any, *, decay: float, step: Any) -> Any:
  """A running mean: equal weights first, exponential after `1 / (1 - decay)` steps.

  The initial value of `kept` has no influence.

  Args:
    kept: the mean before meta-step `step`.
    seen: the values of this meta-step, a pytree like `kept`.
    decay: how much of `kept` remains, in `[0, 1)`.
    step: int32 scalar, 0 for the first meta-step.

  Returns:
    The new mean.

  Example:
    >>> averaged(jnp.float32(9), jnp.float32(1), decay=0.9, step=jnp.int32(0)).item()
    1.0
    >>> averaged(jnp.float32(1), jnp.float32(3), decay=0.9, step=jnp.int32(1)).item()
    2.0
  """
  new = jnp.maximum(1 - decay, 1 / (step + 1).astype(float))
  return jax.tree.map(
    lambda k, s: (1 - new).astype(k.dtype) * k + new.astype(k.dtype) * s, kept, seen
  )
