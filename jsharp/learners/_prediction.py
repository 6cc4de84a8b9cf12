"""Prediction after adaptation, under a policy, as a pure function."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from jsharp.nn.batch_norm import KeptStatistics
from jsharp.normalization import support_statistics, transductive
from jsharp.types import Batch, Task

if TYPE_CHECKING:
  from jsharp.learners._learner import Learner

Policy = Literal["inductive", "transductive"]
"""Whose statistics normalise the images that are named; see `FewShotClassifier`."""


def outputs_under(
  learner: "Learner", way: int, policy: Policy
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
  """A learner's outputs under a policy, as a pure function.

  Args:
    learner: whose network predicts.
    way: the number of classes.
    policy: see `FewShotClassifier`.

  Returns:
    `outputs(adapted, support, inputs) -> [n, way]` logits, or numbers of a regression.
  """
  inductive = policy == "inductive" and depends_on_batch(learner)
  predict = (support_statistics if inductive else transductive)(learner.apply_fn(way))
  return lambda adapted, support, inputs: predict(
    adapted, Task(support, Batch(inputs, None))
  )


def adapted_probabilities(
  learner: "Learner", way: int, policy: Policy, adapted: Any, support: Batch
) -> Callable[[jax.Array], jax.Array]:
  """The prediction of an adapted learner, with everything of the support set inside.

  Args:
    learner: whose network predicts.
    way: the number of classes.
    policy: see `FewShotClassifier`.
    adapted: from `Learner.adapt`.
    support: what it was adapted to. Its statistics are computed here, once.

  Returns:
    `predict(images) -> [n, way]` probabilities.
  """
  apply_fn, layers = learner.apply_fn(way), None
  if policy == "inductive" and depends_on_batch(learner):

    @jax.jit
    def keep(adapted: Any, inputs: jax.Array) -> Any:
      kept = KeptStatistics()
      apply_fn(adapted, inputs, num_statistics=kept)
      return kept.layers

    try:
      layers = keep(adapted, support.inputs)
    except TypeError as error:
      raise ValueError(
        f"a layer of {learner.description.network.name} does not take statistics of "
        f"another pass ({error}); normalise with jsharp.nn.BatchNorm in it, take the "
        "transductive policy, or export the learner itself"
      ) from error

  def predict(images: jax.Array) -> jax.Array:
    whose = {} if layers is None else {"num_statistics": KeptStatistics(layers)}
    logits = apply_fn(adapted, images, **whose)
    return jax.nn.softmax(logits.astype(jnp.float32))

  return predict


def depends_on_batch(learner: "Learner") -> bool:
  """Whether a layer looks at the batch; without one the two policies are the same."""
  about = learner.description
  return about.network.has_norm and not about.algorithm.uses_running_statistics()


def probabilities(
  learner: "Learner", way: int, policy: Policy
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
  """Prediction under a policy, as a pure function.

  Args:
    learner: whose network predicts.
    way: the number of classes.
    policy: see `FewShotClassifier`.

  Returns:
    `predict(adapted, support, images) -> [n, way]` probabilities.
  """
  outputs = outputs_under(learner, way, policy)

  def predict(adapted: Any, support: Batch, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(outputs(adapted, support, images).astype(jnp.float32))

  return predict
