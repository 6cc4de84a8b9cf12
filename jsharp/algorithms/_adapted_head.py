"""Linear heads that are initialised per task and adapted together with the body."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp.algorithms._embedding import embed, without_absent
from jsharp.core.adaptation import inner_loop
from jsharp.core.execution import Execution
from jsharp.losses import batch_loss, cross_entropy
from jsharp.types import AdaptFn, ApplyFn, Batch, LossFn, Mask, Metrics, Params


class WithHead(NamedTuple):
  """An embedding and the linear head of one task: what the inner loop adapts.

  Attributes:
    params: the adapted parameters of the embedding.
    weights: `[dim, way]`.
    bias: `[way]`.
    present: `[way]` bool, the classes that have support examples; None in the pytree
      that the inner optimizer updates.
  """

  params: Params
  weights: jax.Array
  bias: jax.Array
  present: jax.Array


_NOTHING: Any = None  # Replaces `present` where the pytree is differentiated.


Head = tuple[jax.Array, jax.Array, jax.Array]
"""`weights` `[dim, way]`, `bias` `[way]`, and `present` `[way]` bool."""


def adapted_head(
  apply_fn: ApplyFn,
  start: Callable[[Any, Batch], tuple[Params, Head]],
  inner_optimizer: optax.GradientTransformation,
  *,
  way: int,
  num_inner_steps: int,
  inner_loss: Callable[[LossFn], LossFn],
  adapted_mask: Mask | None,
  execution: Execution,
) -> AdaptFn:
  """`adapt` of an algorithm whose inner loop adapts a body with a head.

  Args:
    apply_fn: the embedding.
    start: `start(params, support) -> (embedding parameters, head)`; the meta-gradient
      flows through it.
    inner_optimizer: updates `WithHead(params, weights, bias, None)`.
    way: the number of classes.
    num_inner_steps: inner steps, at least 0.
    inner_loss: `inner_loss(loss_fn) -> loss_fn`, applied to the support loss before the
      inner loop differentiates it.
    adapted_mask: the leaves of the embedding that are adapted; all if None.
    execution: how inner steps are repeated.

  Returns:
    `adapt(params, support, *, num_steps=None, optimizer=None) -> WithHead`.
  """
  loss_fn = batch_loss(predict_with_head(apply_fn), cross_entropy)

  def support_loss_fn(adapted: WithHead, support: Batch) -> tuple[Any, Metrics]:
    labels = jnp.asarray(support.targets)
    present = (labels[:, None] == jnp.arange(way)[None]).any(axis=0)
    return loss_fn(adapted._replace(present=present), support)

  def with_head(start: WithHead) -> Any:
    mask = adapted_mask or functools.partial(jax.tree.map, lambda _: True)
    selected: Any = True
    return WithHead(mask(start.params), selected, selected, _NOTHING)

  loop = inner_loop(
    inner_loss(support_loss_fn),
    inner_optimizer,
    num_steps=num_inner_steps,
    adapted_mask=with_head,
    execution=execution,
  )

  def adapt(
    params: Any,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
  ) -> WithHead:
    embedding, (weights, bias, present) = start(params, support)
    begun = WithHead(embedding, weights, bias, _NOTHING)
    adapted: WithHead = loop(begun, support, num_steps=num_steps, optimizer=optimizer)
    return adapted._replace(present=present)

  return adapt


def predict_with_head(apply_fn: ApplyFn) -> ApplyFn:
  """The prediction function of an embedding with a linear head.

  Args:
    apply_fn: the embedding.

  Returns:
    `predict(adapted, inputs, num_statistics=None) -> logits`, `[num_examples, way]`,
    where `adapted` is a `WithHead`.

  Example:
    >>> predict = predict_with_head(lambda w, x: w * x)
    >>> head = jnp.array([[2.0, 6.0]]), jnp.array([-1.0, -9.0])
    >>> adapted = WithHead(3.0, *head, jnp.array([True, True]))
    >>> predict(adapted, jnp.array([[1.0]])).tolist()
    [[5.0, 9.0]]
  """

  def predict(
    adapted: WithHead, inputs: Any, num_statistics: int | None = None
  ) -> jax.Array:
    features = embed(apply_fn, adapted.params, inputs, num_statistics)
    logits = jnp.matmul(features, adapted.weights, precision="highest")
    return without_absent(logits + adapted.bias[None], adapted.present)

  return predict
