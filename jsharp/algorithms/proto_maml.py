"""Proto-MAML: MAML whose head starts as prototypes (Triantafillou et al. 2020).

    prototypes[k] = mean of apply_fn(params, inputs) over support examples of class k
    adapted = params, weights = 2 * prototypes, bias[k] = -|prototypes[k]|^2
    num_inner_steps times:
      adapted, weights, bias -= inner_lr * grad(support loss)(adapted, weights, bias)
    logits = apply_fn(adapted, query inputs) @ weights + bias
    params = outer_optimizer(params, mean over tasks of
                             grad_params(cross-entropy(logits, query labels)))

"Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", arXiv
1903.03096, section 3. Before the first inner step it is a prototypical network, up to
the term `-|features|^2`, which is the same for all classes; then body and head adapt as
in MAML. No head is meta-learned, so one trained learner handles any number of classes.

The meta-gradient is exact: it flows through every inner step and, as in the paper,
through the prototypes that the head starts from. The authors' results use the
first-order form, where inner gradients are constants and the prototypes are not: pass
`inner_loss=jsharp.losses.first_order`. Cost of one meta-step and task: MAML's, and one
more gradient on the support set, for the prototypes.

The inner loss is the mean over support examples, as in the authors' code
(github.com/google-research/meta-dataset), so a class with more examples has more weight
in the inner steps, though not in the prototypes.

Step sizes. The logits are squared distances between embeddings, so their scale follows
the embedding's: a flattened map of `n` numbers around 1 gives logits of order `n`. Two
things follow, here as in the published code. With one example per class, each support
example is its own prototype; where classes are tens of nats apart the support gradient
vanishes, and the learner is a prototypical network. With several examples, one step
moves the logits by up to `inner_lr * |features|^2` through the weights alone, so a
large embedding needs a small step: in short runs on 5-way 5-shot tasks of drawn
characters, steps up to 1 worked for a spatial average (32 numbers), while a flattened
map of 288 numbers needed 0.01 or less. The default, 0.01, is the published code's too.
Body and head take the same step, as in the paper.

Batch normalisation: for prototypes and inner steps the support set is a batch of its
own; query examples are normalised as the policy of `jsharp.normalization` says. The
authors' code normalises the query set by the support set's statistics.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import optax

from jsharp._checks import check_count
from jsharp.algorithms._adapted_head import Head, adapted_head, predict_with_head
from jsharp.algorithms._bundle import bundle
from jsharp.algorithms._embedding import class_means, embed, made_of_embedding
from jsharp.algorithms._options import (
  Algorithm,
  InnerLoop,
  Made,
  NormOptions,
  Phases,
  Problem,
  SecondOrderOptions,
  Sharpness,
  constant_cost,
)
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.losses import batch_loss, cross_entropy, first_order
from jsharp.options import option
from jsharp.types import (
  ApplyFn,
  Batch,
  LossFn,
  Mask,
  MetaAlgorithm,
  Params,
  TaskLossFn,
)


def proto_maml(
  apply_fn: ApplyFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  way: int,
  num_inner_steps: int,
  inner_loss: Callable[[LossFn], LossFn] = lambda loss_fn: loss_fn,
  query_loss_fn: TaskLossFn | None = None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds Proto-MAML; `init` and the state use the embedding's parameters.

  A class without support examples is never predicted: its logit is 1000 below the
  lowest logit of the other classes, and it does not influence the inner steps.
  Everything stays finite, so `way` may exceed the number of classes of some tasks.

  Args:
    apply_fn: the embedding, `apply_fn(params, inputs) -> [num_examples, dim]`, for
      example that of `Conv4(num_outputs=None)`.
    inner_optimizer: any optax optimizer, `optax.sgd(inner_lr)` in the paper. It sees
      `WithHead(params, weights, bias, None)`.
    outer_optimizer: any optax optimizer, Adam in the paper.
    way: the number of classes of a task.
    num_inner_steps: inner steps in training; with none it is a prototypical network.
    inner_loss: `inner_loss(loss_fn) -> loss_fn`, applied to the support loss before the
      inner loop differentiates it: `jsharp.losses.first_order` for the first-order
      form, `jsharp.core.recomputed` or `forward_over_reverse` for less memory.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective, made
      with `predict_with_head`; cross-entropy on the query set if None.
    adapted_mask: `params -> pytree of bool`, the leaves of the embedding that the inner
      loop changes in addition to the head; all if None. The other leaves are still
      meta-learned.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`; `adapt` returns a `WithHead`.

  Raises:
    ValueError: if a count is out of range; at the first trace, if the embedding is not
      a matrix or the support set is smaller than `way`.

  Example:
    >>> import jax
    >>> from jsharp import Task
    >>> algorithm = proto_maml(
    ...   lambda w, x: w * x, optax.sgd(0.1), optax.sgd(0.1), way=2, num_inner_steps=1)
    >>> support = Batch(jnp.array([[0.0], [2.0], [3.0]]), jnp.array([0, 0, 1]))
    >>> start = algorithm.adapt(1.0, support, num_steps=0)
    >>> start.weights.tolist(), start.bias.tolist()
    ([[2.0, 6.0]], [-1.0, -9.0])
    >>> adapted = algorithm.adapt(1.0, support)
    >>> bool(adapted.params < 1.0), adapted.weights.shape, adapted.present.tolist()
    (True, (1, 2), [True, True])
    >>> tasks = jax.tree.map(lambda x: x[None], Task(support, support))
    >>> state, metrics = algorithm.step(algorithm.init(1.0), tasks)
    >>> metrics["loss"].shape
    (1,)
  """
  way = check_count("way", way, minimum=2)

  def start(params: Params, support: Batch) -> tuple[Params, Head]:
    features = embed(apply_fn, params, support.inputs)
    prototypes, present = class_means(features, support.targets, way)
    return params, (2 * prototypes.T, -jnp.square(prototypes).sum(axis=1), present)

  adapt = adapted_head(
    apply_fn,
    start,
    inner_optimizer,
    way=way,
    num_inner_steps=check_count("num_inner_steps", num_inner_steps, minimum=0),
    inner_loss=inner_loss,
    adapted_mask=adapted_mask,
    execution=execution,
  )
  loss_fn = batch_loss(predict_with_head(apply_fn), cross_entropy)
  return bundle(
    adapt,
    query_loss_fn or on_query(loss_fn),
    outer_optimizer,
    execution=execution,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtoMAML(InnerLoop, NormOptions, SecondOrderOptions):
  """Proto-MAML: MAML whose head starts as prototypes (Triantafillou et al. 2020)."""

  name: ClassVar[str] = "proto_maml"
  classifies: ClassVar[bool] = True
  any_way: ClassVar[bool] = True
  # MAML's step size on Omniglot, 2, is too large for a head made from features.
  own_defaults: ClassVar[tuple[str, ...]] = ("inner_lr",)

  first_order: bool = option(
    False,
    "Treat inner gradients as constants in the meta-gradient, as in the authors' "
    "results; the prototypes are differentiated either way.",
  )

  def complete(self) -> None:
    super().complete()
    if self.first_order and self.second_order != "stored":
      raise ValueError(
        f"--second_order={self.second_order} differentiates through inner gradients, "
        "and --first_order does not; drop one of them"
      )

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, self.inner_lr)

    def construct(
      apply_fn: ApplyFn, outer_optimizer: optax.GradientTransformation, **options: Any
    ) -> MetaAlgorithm:
      return proto_maml(
        apply_fn,
        optimizers["inner_optimizer"],
        outer_optimizer,
        num_inner_steps=self.num_inner_steps,
        inner_loss=first_order if self.first_order else self.inner_loss,
        adapted_mask=self.mask(problem),
        **options,
      )

    return made_of_embedding(
      problem, construct, predict_with_head, optimizers["at_test"]
    )

  def inner_loss(self, loss_fn: LossFn) -> LossFn:
    """The support loss, with derivatives as `first_order` and `second_order` say."""
    return self.remembering(loss_fn)[0]

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, products = self.cost_of_steps(sharpness)
    per_step = gradients if self.first_order else gradients + 2 * products
    cost = (self.num_inner_steps * per_step + 1) * support + query
    return constant_cost(cost, sharpness.loops(self)[1])

  def exact(self) -> "ProtoMAML":
    return self.replace(first_order=False)

  def leaner(self) -> list[Algorithm]:
    return [self] if self.first_order else super().leaner()
