"""Prediction after adaptation, under a policy, as a pure function."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jsharp.nn.batch_norm import KeptStatistics
from jsharp.normalization import support_statistics, transductive
from jsharp.types import Batch, Task

if TYPE_CHECKING:
  from jsharp.learners._learner import Learner

Policy = Literal["inductive", "transductive"]
"""Whose statistics normalise the images to classify; see `FewShotClassifier`."""


def outputs_under(
  learner: "Learner", way: int, policy: Policy
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
  """A learner's outputs under a policy, as a pure function.

  Args:
    learner: the learner.
    way: the number of classes.
    policy: see `FewShotClassifier`.

  Returns:
    `outputs(adapted, support, inputs) -> [n, way]` logits, or values of a regression.
  """
  inductive = policy == "inductive" and depends_on_batch(learner)
  predict = (support_statistics if inductive else transductive)(learner.apply_fn(way))
  return lambda adapted, support, inputs: predict(
    adapted, Task(support, Batch(inputs, None))
  )


def depends_on_batch(learner: "Learner") -> bool:
  """Whether a layer depends on the batch; if none does, the policies are the same."""
  about = learner.description
  return about.network.looks_at_batch and not about.algorithm.uses_running_statistics()


class Naming(NamedTuple):
  """Prediction in two parts, so that the support set is processed once.

  Attributes:
    prepare: `prepare(adapted, support) -> known`: what predictions need from the
      support set.
    predict: `predict(adapted, known, images) -> [n, way]` probabilities.
  """

  prepare: Callable[[Any, Batch], Any]
  predict: Callable[[Any, Any, jax.Array], jax.Array]


def naming(learner: "Learner", way: int, policy: Policy) -> Naming:
  """Prediction under a policy, as pure functions.

  Args:
    learner: the learner.
    way: the number of classes.
    policy: see `FewShotClassifier`.
  """
  apply_fn, outputs = learner.apply_fn(way), outputs_under(learner, way, policy)

  def prepare(adapted: Any, support: Batch) -> Any:
    if policy != "inductive" or not depends_on_batch(learner):
      return None
    kept = KeptStatistics()
    try:
      apply_fn(adapted, support.inputs, num_statistics=kept)
    except TypeError:  # A user's own layer accepts only a number of rows.
      return support
    return kept.layers

  def predict(adapted: Any, known: Any, images: jax.Array) -> jax.Array:
    if known is None:
      logits = apply_fn(adapted, images)
    elif isinstance(known, Batch):
      logits = outputs(adapted, known, images)
    else:
      logits = apply_fn(adapted, images, num_statistics=KeptStatistics(known))
    return jax.nn.softmax(logits.astype(jnp.float32))

  return Naming(prepare, predict)
