"""Criteria, and loss functions made from a criterion and a model.

A criterion is `criterion(outputs, targets) -> (loss, metrics)`, a mean over examples.
`batch_loss` combines it with a model to `loss_fn(params, batch)`. `first_order` makes a
loss whose gradient is a constant in further derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp._labels import one_hot
from jsharp.types import ApplyFn, Batch, LossFn, Metrics, Params

Criterion = Callable[[Any, Any], tuple[jax.Array, Metrics]]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, Metrics]:
  """Mean softmax cross-entropy, with the accuracy as a metric.

  Args:
    logits: `[num_examples, way]`.
    labels: `[num_examples]` integers in `[0, way)`. Other labels raise an error if
      their values are known; in compiled code they make the loss and its gradient NaN.

  Returns:
    The mean loss in nats, and `{"accuracy": fraction of correct predictions}`.

  Raises:
    ValueError: if the shapes do not fit, or a label is known to be out of range.

  Example:
    >>> loss, metrics = cross_entropy(jnp.zeros((2, 5)), jnp.array([0, 3]))
    >>> f"{loss:.4f}", float(metrics["accuracy"])
    ('1.6094', 0.5)
  """
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(
      f"cross_entropy needs logits [n, way] and labels [n], got {logits.shape} "
      f"and {labels.shape}; flatten the examples into one axis"
    )
  losses = optax.losses.softmax_cross_entropy(
    logits, one_hot(labels, logits.shape[-1], logits.dtype)
  )
  wide = trees.at_least_float32(logits.dtype)
  accuracy = (jnp.argmax(logits, axis=-1) == labels).mean(dtype=wide)
  return losses.mean(), {"accuracy": accuracy.astype(logits.dtype)}


def squared_error(
  predictions: jax.Array, targets: jax.Array
) -> tuple[jax.Array, Metrics]:
  """Mean squared error, without a factor 1/2.

  Args:
    predictions: `[num_examples, ...]`.
    targets: the same shape.

  Returns:
    The mean over all entries, and no metrics.

  Raises:
    ValueError: if the shapes differ (broadcasting would hide a mistake).

  Example:
    >>> float(squared_error(jnp.ones((4, 1)), jnp.zeros((4, 1)))[0])
    1.0
  """
  if predictions.shape != targets.shape:
    raise ValueError(
      f"squared_error needs equal shapes, got predictions {predictions.shape} and "
      f"targets {targets.shape}; reshape one of them"
    )
  return jnp.mean(jnp.square(predictions - targets)), {}


def batch_loss(apply_fn: ApplyFn, criterion: Criterion) -> LossFn:
  """The loss of a model on a batch.

  Args:
    apply_fn: `apply_fn(params, inputs) -> outputs`.
    criterion: `criterion(outputs, targets) -> (loss, metrics)`.

  Returns:
    `loss_fn(params, batch) -> (loss, metrics)`.

  Example:
    >>> loss_fn = batch_loss(lambda params, x: params * x, squared_error)
    >>> float(loss_fn(2.0, Batch(jnp.ones((3, 1)), jnp.ones((3, 1))))[0])
    1.0
  """

  def loss_fn(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
    return criterion(apply_fn(params, batch.inputs), batch.targets)

  return loss_fn


def first_order(loss_fn: LossFn) -> LossFn:
  """The same loss and gradient, with all second derivatives set to zero.

  An inner loop on it is first-order whatever its optimizer does with the gradient,
  including SAM links, while learned step sizes keep their derivatives.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)`.

  Returns:
    A loss function of the same kind, at the same cost.

  Example:
    >>> loss_fn = first_order(lambda w, batch: (w**3, {}))
    >>> slope = jax.grad(lambda w: loss_fn(w, None)[0])
    >>> float(slope(2.0)), float(jax.grad(slope)(2.0))
    (12.0, 0.0)
  """

  def first_order_loss_fn(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
    variables, others = trees.inexact(params)
    value_and_grad_fn = jax.value_and_grad(
      lambda point: loss_fn(trees.join(point, others), batch), has_aux=True
    )
    constant = jax.lax.stop_gradient(variables)
    (loss, metrics), grads = jax.lax.stop_gradient(value_and_grad_fn(constant))
    steps = jax.tree.map(jnp.subtract, variables, constant)
    slopes = jax.tree.map(
      lambda g, s: jnp.sum(g * s).real.astype(loss.dtype), grads, steps
    )
    return loss + sum(jax.tree.leaves(slopes)), metrics

  return first_order_loss_fn
