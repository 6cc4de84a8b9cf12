"""Baseline and Baseline++: a classifier on a pretrained embedding (Chen et al. 2019).

    features = apply_fn(params, support inputs), constant from here on
    num_inner_steps times:
      weights -= head_lr * grad(cross-entropy of 4 examples)(weights)
    logits = linear(features), or scale * cos(features, weights) of Baseline++

"A Closer Look at Few-shot Classification", arXiv 1904.04232. The embedding is first
trained as an ordinary classifier of all base classes, for Baseline++ with a cosine head
(`--classifier_head=cosine`). Nothing is meta-learned: a step only computes metrics.

As in the authors' code, the head is trained by SGD at 0.01 with momentum and dampening
0.9 and weight decay 0.001, on 4 examples at a time, and cosines are multiplied by 2.
The paper says 100 iterations, its code takes 100 passes: 200 steps for 5-way 1-shot,
the default here, and 700 for 5-shot.

Five things differ from the code. Two make a prediction depend only on the support set:
the cosine head starts from one fixed random draw and the linear head from zero, and the
examples of each iteration follow a fixed rule (`jsharp.algorithms._mini_batches`)
instead of a random order. With fewer than 4 classes, an iteration uses one example per
class. The cosine head is the paper's; the code also learns a factor for each class's
cosine. The first gradient is dampened like the later ones; PyTorch's SGD does not
dampen it.

Batch normalisation: the authors' code normalises by running averages, `--norm=frozen`
here.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_choice, check_count
from jsharp.algorithms._bundle import without_gradient
from jsharp.algorithms._embedding import (
  embed,
  made_of_embedding,
  one_hot_labels,
  without_absent,
)
from jsharp.algorithms._mini_batches import mini_batches
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
from jsharp.models.pretraining import cosines
from jsharp.options import at_least, option, positive
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, Params

SCALE = 2.0
_BATCH_SIZE = 4


class WithClassifier(NamedTuple):
  """A constant embedding with the classifier of one task.

  Attributes:
    params: the parameters of the embedding.
    weights: `[dim, way]`.
    bias: `[way]`; zeros for a cosine head.
    present: `[way]` bool, the classes that have support examples.
  """

  params: Params
  weights: jax.Array
  bias: jax.Array
  present: jax.Array


def baseline(
  apply_fn: ApplyFn,
  *,
  way: int,
  head: Literal["linear", "cosine"] = "cosine",
  num_inner_steps: int = 200,
  head_lr: float = 0.01,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds Baseline (a linear head) or Baseline++ (a cosine head).

  A step does not change the parameters. A class without support examples is never
  predicted; see `jsharp.protonet`.

  Args:
    apply_fn: the embedding, `apply_fn(params, inputs) -> [num_examples, dim]`.
    way: the number of classes of a task.
    head: "linear" or "cosine".
    num_inner_steps: SGD steps on the head.
    head_lr: their step size.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`; `adapt` returns a
    `WithClassifier`. Its argument `optimizer` replaces the head's optimizer.

  Raises:
    ValueError: if an argument is out of range; at the first trace, if the embedding is
      not a matrix or the support set is smaller than `way`.

  Example:
    >>> algorithm = baseline(lambda w, x: w * x, way=2, num_inner_steps=700)
    >>> support = Batch(jnp.array([[4.0, 3.0], [-1.0, 3.0]]), jnp.array([0, 1]))
    >>> adapted = algorithm.adapt(jnp.float32(1.0), support)
    >>> predict = predict_by_classifier(lambda w, x: w * x, "cosine")
    >>> predict(adapted, support.inputs).argmax(axis=1).tolist()
    [0, 1]
  """
  way = check_count("way", way, minimum=2)
  num_inner_steps = check_count("num_inner_steps", num_inner_steps)
  predict = predict_by_classifier(apply_fn, head)

  def adapt(
    params: Params,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
  ) -> WithClassifier:
    features = jax.lax.stop_gradient(embed(apply_fn, params, support.inputs))
    rows = one_hot_labels(support.targets, way, features)
    present = rows.sum(axis=0) > 0
    steps = num_inner_steps if num_steps is None else num_steps
    link = optimizer or _head_optimizer(head_lr)

    def loss_fn(classifier: Any, batch: Any) -> jax.Array:
      features, rows = batch
      logits = without_absent(_logits(head, features, *classifier), present)
      return optax.losses.softmax_cross_entropy(logits, rows).mean()

    def step(carry: Any, chosen: jax.Array) -> tuple[Any, None]:
      classifier, state = carry
      grads = jax.grad(loss_fn)(classifier, (features[chosen], rows[chosen]))
      updates, state = link.update(grads, state, classifier)
      return (optax.apply_updates(classifier, updates), state), None

    classifier = _start(head, features.shape[1], way, features.dtype)
    if steps:
      batches = mini_batches(
        features.shape[0], size=min(_BATCH_SIZE, way), num_batches=steps
      )
      carry = (classifier, link.init(classifier))
      (classifier, _), _ = jax.lax.scan(step, carry, jnp.asarray(batches))
    return WithClassifier(params, *classifier, present)

  return without_gradient(
    adapt, on_query(batch_loss(predict, cross_entropy)), execution=execution
  )


def _head_optimizer(rate: float) -> optax.GradientTransformation:
  return optax.chain(
    optax.add_decayed_weights(1e-3), optax.ema(0.9, debias=False), optax.scale(-rate)
  )


def _start(head: str, dim: int, way: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """Weights and bias before the first step."""
  check_choice("head", head, ("linear", "cosine"))
  weights = jnp.zeros((dim, way), dtype)
  if head == "cosine":
    weights = jax.random.uniform(jax.random.key(0), (dim, way), dtype, -1) / dim**0.5
  return weights, jnp.zeros(way, dtype)


def _logits(
  head: str, features: jax.Array, weights: jax.Array, bias: jax.Array
) -> jax.Array:
  if head == "cosine":
    return SCALE * cosines(features, weights)
  return jnp.matmul(features, weights, precision="highest") + bias[None]


def predict_by_classifier(
  apply_fn: ApplyFn, head: Literal["linear", "cosine"] = "cosine"
) -> ApplyFn:
  """The prediction function of Baseline and Baseline++, for policies and losses.

  Args:
    apply_fn: the embedding.
    head: "linear" or "cosine".

  Returns:
    `predict(adapted, inputs, num_statistics=None) -> logits`, `[num_examples, way]`.

  Example:
    >>> predict = predict_by_classifier(lambda w, x: w * x, "linear")
    >>> weights, bias = jnp.array([[1.0, -1.0]]), jnp.array([0.5, 0.0])
    >>> adapted = WithClassifier(2.0, weights, bias, jnp.array([True, True]))
    >>> predict(adapted, jnp.array([[1.0]])).tolist()
    [[2.5, -2.0]]
  """

  def predict(
    adapted: WithClassifier, inputs: Any, num_statistics: int | None = None
  ) -> jax.Array:
    features = embed(apply_fn, adapted.params, inputs, num_statistics)
    logits = _logits(head, features, adapted.weights, adapted.bias)
    return without_absent(logits, adapted.present)

  return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline(Algorithm):
  """Baseline: a linear classifier on a pretrained embedding (Chen et al. 2019)."""

  name: ClassVar[str] = "baseline"
  classifies: ClassVar[bool] = True
  any_way: ClassVar[bool] = True
  has_inner_gradient: ClassVar[bool] = False
  has_outer_gradient: ClassVar[bool] = False
  meta_learns: ClassVar[bool] = False
  head: ClassVar[Literal["linear", "cosine"]] = "linear"

  num_head_steps: int = option(
    200,
    "Gradient steps of the new classifier of baseline and baseline_plus_plus.",
    check=at_least(1),
  )
  head_lr: float = option(
    0.01,
    "Step size of the new classifier of baseline and baseline_plus_plus.",
    check=positive("0.01 is the published one."),
  )

  def make(self, problem: Problem) -> Made:
    def construct(apply_fn: ApplyFn, _: Any, **options: Any) -> MetaAlgorithm:
      return baseline(
        apply_fn,
        head=self.head,
        num_inner_steps=self.num_head_steps,
        head_lr=self.head_lr,
        **options,
      )

    return made_of_embedding(
      problem,
      construct,
      lambda apply_fn: predict_by_classifier(apply_fn, self.head),
      {"num_steps": self.num_head_steps},
    )

  def without_derivative(self) -> str | None:
    return "nothing is meta-learned"

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    return constant_cost((support + query) / 3, outer_is_sharp=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselinePlusPlus(Baseline):
  """Baseline++: a cosine classifier on a pretrained embedding (Chen et al. 2019)."""

  name: ClassVar[str] = "baseline_plus_plus"
  head: ClassVar[Literal["linear", "cosine"]] = "cosine"
