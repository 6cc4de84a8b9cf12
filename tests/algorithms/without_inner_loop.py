"""Algorithms without an inner loop, in the form of the conformance table's rows."""

import jax
import jax.numpy as jnp

from jsharp import losses
from jsharp.algorithms.black_box import black_box, predict_in_context
from jsharp.algorithms.protonet import predict_with_prototypes, protonet
from jsharp.algorithms.ridge import predict_with_ridge, ridge

WAY = 4


class WithoutInnerLoop:
  """Takes what a row takes, and leaves out what there is no inner loop for.

  Attributes:
    query_loss_fn: the loss of a task's query set under adapted parameters.
  """

  def __init__(self, constructor, apply_fn, predict, **options):
    self._constructor, self._apply_fn = constructor, apply_fn
    self._options, self._predict = options, predict

  def query_loss_fn(self, adapted, task):
    return loss_of_seen_classes(self._predict(adapted, task.query.inputs), task)

  def __call__(
    self,
    loss_fn,
    inner_optimizer,
    outer_optimizer,
    *,
    num_inner_steps,
    **options,
  ):
    return self._constructor(
      self._apply_fn,
      outer_optimizer,
      query_loss_fn=self.query_loss_fn,
      **self._options,
      **options,
    )


def loss_of_seen_classes(logits, task):
  """A class may be missing in a support set; what is then right is undefined."""
  seen = (task.query.targets[:, None] == task.support.targets[None]).any(axis=1)
  logits = jnp.where(seen[:, None], logits, 0.0)
  return losses.cross_entropy(logits, task.query.targets)


def embedding(params, x):
  hidden = jnp.tanh(x @ params["body"])
  return hidden @ params["head"]["w"] + params["head"]["b"][None]


def reader(params, support_inputs, support_targets, query_inputs):
  """The logarithm of a nearest-neighbour softmax: attention with nothing around it."""
  keys, queries = embedding(params, support_inputs), embedding(params, query_inputs)
  labels = jax.nn.one_hot(support_targets, WAY, dtype=keys.dtype)
  return jnp.log(jax.nn.softmax(queries @ keys.T) @ labels + 1e-3)


ROWS = {
  "protonet": WithoutInnerLoop(
    protonet, embedding, predict_with_prototypes(embedding), way=WAY
  ),
  "ridge": WithoutInnerLoop(ridge, embedding, predict_with_ridge(embedding), way=WAY),
  "black_box": WithoutInnerLoop(black_box, reader, predict_in_context(reader)),
}
