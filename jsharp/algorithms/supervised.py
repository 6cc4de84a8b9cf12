"""Ordinary training in the form of a meta-algorithm: a batch in place of tasks.

    grads at params on the batch -> optimizer -> params
    statistics and metrics: those of the pass at params, whatever passes follow

The bundle works with `jsharp.training.loop.train` (on several devices with
`divide="batch"`) and `jsharp.evaluation.tasks.evaluate`, with examples in place of
tasks. The optimizer is called as everywhere in jsharp (`jsharp.core.descent`), so
`optax.chain(jsharp.sam(0.05), optax.sgd(0.1))` is SAM.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jsharp import tree as trees
from jsharp._labels import one_hot
from jsharp.algorithms._bundle import without_inner_loop
from jsharp.core.descent import descend
from jsharp.core.objectives import over_tasks
from jsharp.models.initial import initialised
from jsharp.options import Options, Role, at_least, between, option, positive
from jsharp.perturbations import SharpGroups
from jsharp.perturbations.loss import sharpen
from jsharp.types import Batch, MetaAlgorithm, MetaState, Metrics, Params, Variables

ExampleLossFn = Callable[..., tuple[Metrics, Any]]
"""`loss_fn(variables, batch, train) -> (metrics, statistics)`.

Metrics are per example, `[batch]`, with "loss" among them. The loss of a network that
draws random numbers in training takes a key as a fourth argument."""


def supervised(
  loss_fn: ExampleLossFn,
  optimizer: optax.GradientTransformation,
  *,
  centre: Callable[[Params, Any], Params] | None = None,
  groups: SharpGroups | None = None,
  statistics_batch_size: int | None = None,
  weight_decay: float = 0.0,
  hold: Callable[[Params], Params] | None = None,
  key: jax.Array | None = None,
) -> MetaAlgorithm:
  """Minimises the mean loss of batches with any optax optimizer.

  Metrics and statistics come from the pass at the parameters themselves. Statistics
  from other points that the optimizer evaluates (SAM's perturbed parameters, a line
  search) are discarded. All passes of a step use the same random numbers, so the
  optimizer compares losses of the same network.

  Args:
    loss_fn: `loss_fn(variables, batch, train) -> (metrics, statistics)`, metrics per
      example; `train` is a Python bool.
    optimizer: an optax optimizer; it is given `value=`, `grad=`, `value_fn=` and
      `grad_fn=`, the loss and its gradient on the same batch.
    centre: for an optimizer that moves perturbed parameters,
      `centre(params, opt_state)` returns the parameters to evaluate. The state then
      holds these as its parameters, and the perturbed ones with the optimizer's state.
    groups: for m-sharpness: the batch is divided into groups, each group's gradient is
      taken at its own perturbation, one group after the other, and the optimizer, which
      must not contain SAM, is given their mean. Statistics are averaged over groups.
    statistics_batch_size: for ghost batch normalisation (Hoffer et al. 2017, arXiv
      1705.08741): the batch is divided into groups of this many examples, and each is
      normalised by its own statistics, one group after the other. Loss, gradient and
      running statistics are the means over the groups. None for the size of `groups`,
      or the whole batch.
    weight_decay: adds half of it times the squared norm of the parameters to the loss,
      in all passes of a step, as SAM's published code does, but not to the metrics. It
      therefore influences the direction of a perturbation, which
      `optax.add_decayed_weights` after SAM does not.
    hold: `hold(params)`, which applies `jax.lax.stop_gradient` to frozen parameters.
      They then have no gradient, neither of the loss nor of the decay, and are not
      perturbed. The optimizer must not change them either.
    key: for a network that draws random numbers in training: the loss is then called
      as `loss_fn(variables, batch, True, key of the step)`, with one key per group.

  Returns:
    The bundle. `init(variables)`; `step(state, batch)`, whose metrics are `[batch]`;
    `adapt` returns its argument. `state.params` is a `Variables`.
    `examples_evaluator` measures it.

  Raises:
    ValueError: if `groups` and `statistics_batch_size` are of different sizes; from
      `step`, if the groups do not divide the batch, or an array of it has no row for
      every example.

  Example:
    >>> def loss_fn(variables, batch, train):
    ...   errors = variables.params * batch.inputs - batch.targets
    ...   return {"loss": errors**2}, variables.statistics
    >>> algorithm = supervised(loss_fn, optax.sgd(0.1))
    >>> state = algorithm.init(Variables(jnp.float32(0.0), ()))
    >>> state, metrics = algorithm.step(state, Batch(jnp.ones(2), jnp.ones(2)))
    >>> print(f"{state.params.params:.2f}", metrics["loss"])
    0.20 [1. 1.]
  """
  optimizer = optax.with_extra_args_support(optimizer)
  size = statistics_batch_size
  if groups is not None:
    if size not in (None, groups.size):
      raise ValueError(
        f"statistics_batch_size={size}, but groups of {groups.size} examples share a "
        "perturbation, and each is normalised by its own statistics; pass None"
      )
    size = groups.size

  def init(variables: Variables) -> MetaState:
    opt_state = optimizer.init(trees.inexact(variables.params)[0])
    if centre is None:
      return MetaState(jnp.int32(0), variables, opt_state)
    # Copied, because a step donates its buffers, and no two may be the same.
    moved = jax.tree.map(jnp.array, variables.params)
    return MetaState(jnp.int32(0), variables, (moved, opt_state))

  def step(state: MetaState, batch: Batch) -> tuple[MetaState, Metrics]:
    variables, opt_state = state.params, state.opt_state
    params = variables.params
    if centre is not None:
      params, opt_state = opt_state

    def mean_loss(
      params: Params, statistics: Any, batch: Batch, *keys: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
      if hold is not None:
        params = hold(params)
      point = Variables(params, statistics)
      metrics, statistics = loss_fn(point, batch, True, *keys)
      loss = metrics["loss"].mean()
      if weight_decay:
        decayed, _ = trees.inexact(params)
        loss += weight_decay / 2 * trees.inner_product(decayed, decayed)
      return loss, (metrics, statistics)

    data: Any = (variables.statistics, batch)
    if key is not None:
      data += (jax.random.fold_in(key, state.step),)
    loss: Callable[..., Any] = mean_loss
    if groups is not None:
      loss = sharpen(
        mean_loss, groups.ascent, has_aux=True, second_order=groups.second_order
      )
    differentiate = trees.value_and_grad(loss, has_aux=True)
    if size is not None:
      differentiate = _in_groups(differentiate, size)
    params, opt_state, (metrics, statistics) = descend(
      optimizer,
      lambda params: differentiate(params, *data),
      params,
      opt_state,
      one_program=True,
    )
    if centre is not None:
      params, opt_state = centre(params, opt_state), (params, opt_state)
    return MetaState(state.step + 1, Variables(params, statistics), opt_state), metrics

  adapt = without_inner_loop("supervised", lambda params, support: params)
  return MetaAlgorithm(init, step, adapt)


def _in_groups(of_group: Callable[..., Any], group_size: int) -> Callable[..., Any]:
  """The mean over groups of the results of `value_and_grad`."""

  def one_group(variables: Variables, group: Any) -> tuple[Any, Metrics]:
    (loss, (metrics, statistics)), grads = of_group(*variables, *group)
    return (loss, statistics, grads), metrics

  over_groups = over_tasks(one_group, chunk=1)

  def value_and_grad(
    params: Params, statistics: Any, batch: Batch, key: jax.Array | None = None
  ) -> tuple[Any, Any]:
    size = batch.targets.shape[0]
    if size % group_size:
      raise ValueError(
        f"groups of {group_size} examples do not divide a batch of {size}; choose a "
        "divisor"
      )
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
      if jnp.shape(leaf)[:1] != (size,):
        raise ValueError(
          f"batch{jax.tree_util.keystr(path)} has the shape {jnp.shape(leaf)}, not one "
          f"row for each of the {size} examples, so it cannot be divided into groups; "
          "give it one row per example, or make it part of the loss"
        )
    count = size // group_size
    data: Any = (jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch),)
    if key is not None:
      data += (jax.random.split(key, count),)
    # On several devices, these must be arguments of the function that is divided.
    variables = Variables(params, statistics)
    (loss, statistics, grads), metrics = over_groups(variables, data)
    metrics = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), metrics)
    return (loss, (metrics, statistics)), grads

  return value_and_grad


def examples_evaluator(
  loss_fn: ExampleLossFn,
) -> Callable[[Variables, Batch], Metrics]:
  """Measures examples one by one, for `jsharp.evaluation.tasks.evaluate`.

  Args:
    loss_fn: `loss_fn(variables, batch, train) -> (metrics, statistics)`.

  Returns:
    `evaluate_examples(variables, batch) -> metrics`, per example, with `train=False`.

  Example:
    >>> def loss_fn(variables, batch, train):
    ...   errors = variables.params * batch.inputs - batch.targets
    ...   return {"loss": errors**2}, variables.statistics
    >>> evaluate_examples = examples_evaluator(loss_fn)
    >>> batch = Batch(jnp.ones(2), jnp.array([1.0, 2.0]))
    >>> evaluate_examples(Variables(jnp.float32(0.0), ()), batch)["loss"].tolist()
    [1.0, 4.0]
  """
  return lambda variables, batch: loss_fn(variables, batch, False)[0]


_STREAMS = ("dropout", "shake")
_TOP = 5


def classifier(
  module: nn.Module, *, transform: Callable[..., Any] = lambda apply_fn: apply_fn
) -> tuple[Callable[[jax.Array, Any], Variables], ExampleLossFn]:
  """Initialiser and cross-entropy of a Linen module with running statistics.

  Args:
    module: called as `module(inputs, train)`, with logits `[batch, num_classes]` as
      its result and no state but parameters and `batch_stats`. Random numbers that it
      draws in training come from its streams "dropout" and "shake".
    transform: applied to the module's function
      `apply_fn(params, inputs, *, statistics, train, key) -> (logits, statistics)`,
      such as
      `lambda apply_fn: jsharp.precision.in_precision(apply_fn, "bfloat16")`.

  Returns:
    `init_fn(key, inputs) -> Variables`, and the `loss_fn` for `supervised` with the
    per-example metrics "loss" (nats) and "accuracy" (0 or 1). Targets are `[batch]`
    integers.

  Example:
    >>> from jsharp.models import ResNet
    >>> init_fn, loss_fn = classifier(ResNet(num_outputs=3, depth=8))
    >>> images = jnp.zeros([2, 8, 8, 1])
    >>> variables = init_fn(jax.random.key(0), images)
    >>> metrics, _ = loss_fn(variables, Batch(images, jnp.array([0, 2])), False)
    >>> metrics["loss"].round(4).tolist()
    [1.0986000299453735, 1.0986000299453735]
  """
  init_fn, apply_fn = classifier_functions(module)
  return init_fn, example_loss(transform(apply_fn))


def classifier_functions(
  module: nn.Module,
) -> tuple[Callable[[jax.Array, Any], Variables], Callable[..., Any]]:
  """A Linen module with running statistics as two pure functions.

  Args:
    module: as for `classifier`.

  Returns:
    `init_fn(key, inputs) -> Variables` and
    `apply_fn(params, inputs, *, statistics, train, key) -> (logits, statistics)`. `key`
    may be None or left out for a module that draws no random numbers.

  Example:
    >>> from jsharp.models import ResNet
    >>> init_fn, apply_fn = classifier_functions(ResNet(num_outputs=3, depth=8))
    >>> images = jnp.zeros([2, 8, 8, 1])
    >>> params, statistics = init_fn(jax.random.key(0), images)
    >>> apply_fn(params, images, statistics=statistics, train=False)[0].shape
    (2, 3)
  """

  def init_fn(key: jax.Array, inputs: Any) -> Variables:
    made = initialised(module, key, inputs, False)
    return Variables(made["params"], made.get("batch_stats", {}))

  def apply_fn(
    params: Params,
    inputs: Any,
    *,
    statistics: Any,
    train: bool,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    collections = {"params": params, "batch_stats": statistics}
    mutable = ["batch_stats"] if train else []
    streams = None if key is None else dict.fromkeys(_STREAMS, key)
    logits, changed = module.apply(
      collections, inputs, train, mutable=mutable, rngs=streams
    )
    return logits, changed.get("batch_stats", statistics)

  return init_fn, apply_fn


def example_loss(
  apply_fn: Callable[..., Any], *, label_smoothing: float = 0.0
) -> ExampleLossFn:
  """Cross-entropy and accuracy of each example.

  In evaluation with more than five classes, also "top5_accuracy": whether the class is
  among the five most probable ones.

  Args:
    apply_fn: from `classifier_functions`.
    label_smoothing: the fraction of each training target that is spread evenly over all
      classes (Szegedy et al. 2016, arXiv 1512.00567); 0 for none.

  Returns:
    The `loss_fn` that `classifier` returns. Targets are `[batch]` integers, or
    `[batch, num_classes]` class weights, as mixup produces; the accuracy is then the
    weight of the predicted class. A network that draws random numbers in training needs
    a key as fourth argument.

  Example:
    >>> loss_fn = example_loss(lambda params, x, *, statistics, train: (x, statistics))
    >>> batch = Batch(jnp.array([[0.0, 9.0]]), jnp.array([1]))
    >>> loss_fn(Variables((), ()), batch, False)[0]["accuracy"].tolist()
    [1.0]
  """

  def loss_fn(
    variables: Variables, batch: Batch, train: bool, key: jax.Array | None = None
  ) -> tuple[Metrics, Any]:
    params, statistics = variables
    drawn = {} if key is None else {"key": key}
    logits, statistics = apply_fn(
      params, batch.inputs, statistics=statistics, train=train, **drawn
    )
    targets = batch.targets
    if targets.ndim == 1:
      targets = one_hot(targets, logits.shape[-1], logits.dtype)
    answers = jax.nn.one_hot(
      jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype
    )
    right = (answers * targets).sum(axis=-1)
    if train and label_smoothing:
      targets = optax.smooth_labels(targets, label_smoothing)
    losses = optax.losses.softmax_cross_entropy(logits, targets)
    metrics = {"loss": losses, "accuracy": right}
    if not train and logits.shape[-1] > _TOP:
      _, best = jax.lax.top_k(logits, _TOP)
      shares = jnp.take_along_axis(targets, best, axis=-1)
      metrics["top5_accuracy"] = shares.sum(axis=-1)
    return metrics, statistics

  return loss_fn


def estimate_statistics(
  loss_fn: ExampleLossFn, variables: Variables, batches: Batch
) -> Any:
  """Recomputes running averages for given parameters, as means over batches.

  Between two trained networks, or a step away from one, the averages from training no
  longer match the activations (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).

  Args:
    loss_fn: from `classifier` or `example_loss`.
    variables: the parameters, and running averages whose values do not matter.
    batches: training batches, `[num_batches, batch, ...]`.

  Returns:
    The running averages.

  Example:
    >>> from jsharp.models import ResNet
    >>> init_fn, loss_fn = classifier(ResNet(num_outputs=3, depth=8))
    >>> images = jax.random.normal(jax.random.key(0), [2, 4, 8, 8, 1])
    >>> batches = Batch(images, jnp.zeros([2, 4], int))
    >>> variables = init_fn(jax.random.key(1), images[0])
    >>> found = estimate_statistics(loss_fn, variables, batches)
    >>> jax.tree.structure(found) == jax.tree.structure(variables.statistics)
    True
  """

  def after(old: float, batch: Batch) -> Any:
    filled = jax.tree.map(lambda x: jnp.full_like(x, old), variables.statistics)
    return loss_fn(Variables(variables.params, filled), batch, True)[1]

  first = jax.tree.map(lambda x: x[0], batches)
  of_old = jax.tree.map(jnp.subtract, after(1, first), after(0, first))
  each = jax.lax.map(lambda batch: after(0, batch), batches)
  return jax.tree.map(lambda seen, old: seen.mean(0) / (1 - old), each, of_old)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrdinaryTraining(Options):
  """Epochs, batches and the SGD optimizer of ordinary training.

  Example:
    >>> OrdinaryTraining(momentum=1.0)
    Traceback (most recent call last):
    ValueError: momentum=1.0: must be at least 0 and below 1; 0.9 is usual.
  """

  role: ClassVar[Role] = Role.TRAINING

  num_epochs: int = option(20, "Passes over the training images.", check=at_least(1))
  batch_size: int = option(
    32,
    "Images per step; an incomplete batch at the end of an epoch is dropped.",
    check=at_least(1),
  )
  lr: float = option(
    0.1,
    "Step size at the start.",
    check=positive("usual values lie between 0.01 and 0.5."),
  )
  schedule: Literal["cosine", "constant"] = option(
    "cosine", "cosine: falls to 0 over the whole run, without warm-up; or constant."
  )
  momentum: float = option(
    0.9, "Momentum of SGD.", check=between(0, 1, "0.9 is usual.", below=True)
  )
  nesterov: bool = option(True, "Nesterov's momentum, as in SAM's code.")
  weight_decay: float = option(
    0.0005,
    "Weight decay: this factor times the parameters, all of them, is added to the "
    "gradient that SGD receives.",
    check=at_least(0, "0.0005 is usual."),
  )
  decay_in_loss: bool = option(
    False,
    "Make the weight decay a part of the loss, in all passes of a step, as in SAM's "
    "code. By default the decay of the unperturbed parameters is added after SAM.",
  )
  statistics_batch_size: int | None = option(
    None,
    "Ghost batch normalisation: the number of images that are normalised together in "
    "training. Groups of this size in a batch are computed one after the other, or on "
    "several devices; running averages follow the mean over the groups. With "
    "--batch_size divided by --num_devices, the statistics are those of a device. "
    "Default: --perturbation_batch_size, or else the whole batch, on any number of "
    "devices.",
    check=at_least(1),
    added=True,
  )
  label_smoothing: float = option(
    0.0,
    "Label smoothing: the fraction of each training target that is spread over all "
    "classes.",
    check=between(0, 1, "0.1 is usual.", below=True),
  )
  clip_gradient: float | None = option(
    None,
    "Clip the norm of the gradient that SGD receives to this value; SAM's code uses 5. "
    "Default: no clipping.",
    check=positive("leave the flag out to train without clipping."),
  )
  eval_every: int = option(
    1, "Epochs from one validation to the next.", check=at_least(1)
  )

  def optimizer(self, num_steps: int) -> optax.GradientTransformation:
    """Weight decay, clipping and SGD, for a run of this many steps.

    In a chain after a perturbation, the decay is that of the unperturbed parameters and
    does not influence the perturbation. With `decay_in_loss` it is not here but part of
    the loss, in both passes, as in SAM's code.
    """
    rate: Any = self.lr
    if self.schedule == "cosine":
      rate = optax.cosine_decay_schedule(self.lr, num_steps)
    links = []
    if self.weight_decay and not self.decay_in_loss:
      links.append(optax.add_decayed_weights(self.weight_decay))
    if self.clip_gradient is not None:
      links.append(optax.clip_by_global_norm(self.clip_gradient))
    links.append(optax.sgd(rate, self.momentum or None, nesterov=self.nesterov))
    return optax.chain(*links)
