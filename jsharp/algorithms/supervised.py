"""Ordinary training in the form of a meta-algorithm: a batch in place of tasks.

    grads at params on the batch -> optimizer -> params
    statistics and metrics: those of the pass at params, whatever passes follow

The bundle goes through `jsharp.training.loop.train` and
`jsharp.evaluation.tasks.evaluate` as it is, with examples where those have tasks. The
optimizer is called as everywhere in jsharp (`jsharp.core.descent`), so
`optax.chain(jsharp.sam(0.05), optax.sgd(0.1))` is SAM.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jsharp.algorithms._bundle import without_inner_loop
from jsharp.core.descent import descend
from jsharp.types import Batch, MetaAlgorithm, MetaState, Metrics, Params, Variables

ExampleLossFn = Callable[[Variables, Batch, bool], tuple[Metrics, Any]]
"""`loss_fn(variables, batch, train) -> (metrics, statistics)`.

Metrics are per example, `[batch]`, with "loss" among them."""


def supervised(
  loss_fn: ExampleLossFn,
  optimizer: optax.GradientTransformation,
  *,
  centre: Callable[[Params, Any], Params] | None = None,
) -> MetaAlgorithm:
  """Minimises the mean loss of batches with any optax optimizer.

  Metrics and statistics come from the pass at the parameters themselves; what a
  normalisation layer averages at points that the optimizer tries (SAM's perturbed
  ones, a line search) is thrown away.

  Args:
    loss_fn: `loss_fn(variables, batch, train) -> (metrics, statistics)`, metrics per
      example; `train` is a Python bool.
    optimizer: an optax optimizer; it is given `value=`, `grad=`, `value_fn=` and
      `grad_fn=`, the loss and its gradient on the same batch.
    centre: for an optimizer that moves perturbed parameters,
      `centre(params, opt_state)`: those that are to be evaluated. The state then holds
      them as its parameters and the perturbed ones beside the optimizer's state.

  Returns:
    The bundle. `init(variables)`; `step(state, batch)`, whose metrics are `[batch]`;
    `adapt` returns its argument. `state.params` is a `Variables`.
    `examples_evaluator` measures it.

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

  def init(variables: Variables) -> MetaState:
    opt_state = optimizer.init(variables.params)
    if centre is None:
      return MetaState(jnp.int32(0), variables, opt_state)
    # A copy: a step's buffers are reused, and no two may be the same one.
    moved = jax.tree.map(jnp.array, variables.params)
    return MetaState(jnp.int32(0), variables, (moved, opt_state))

  def step(state: MetaState, batch: Batch) -> tuple[MetaState, Metrics]:
    variables, opt_state = state.params, state.opt_state
    params = variables.params
    if centre is not None:
      params, opt_state = opt_state

    def mean_loss(params: Params) -> tuple[jax.Array, tuple[Metrics, Any]]:
      point = Variables(params, variables.statistics)
      metrics, statistics = loss_fn(point, batch, True)
      return metrics["loss"].mean(), (metrics, statistics)

    params, opt_state, (metrics, statistics) = descend(
      optimizer, jax.value_and_grad(mean_loss, has_aux=True), params, opt_state
    )
    if centre is not None:
      params, opt_state = centre(params, opt_state), (params, opt_state)
    return MetaState(state.step + 1, Variables(params, statistics), opt_state), metrics

  adapt = without_inner_loop("supervised", lambda params, support: params)
  return MetaAlgorithm(init, step, adapt)


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


def classifier(
  module: nn.Module, *, transform: Callable[..., Any] = lambda apply_fn: apply_fn
) -> tuple[Callable[[jax.Array, Any], Variables], ExampleLossFn]:
  """Initialiser and cross-entropy of a Linen module with running statistics.

  Args:
    module: called as `module(inputs, train)`, with logits `[batch, num_classes]` as
      its result and no state but parameters and `batch_stats`.
    transform: what is done to the module's function
      `apply_fn(params, inputs, *, statistics, train) -> (logits, statistics)`, such as
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

  def init_fn(key: jax.Array, inputs: Any) -> Variables:
    # Compiled: hundreds of small kernels otherwise take seconds on a CPU.
    made = jax.jit(lambda key: module.init(key, inputs, False))(key)
    return Variables(made["params"], made.get("batch_stats", {}))

  @transform
  def apply_fn(
    params: Params, inputs: Any, *, statistics: Any, train: bool
  ) -> tuple[jax.Array, Any]:
    collections = {"params": params, "batch_stats": statistics}
    mutable = ["batch_stats"] if train else []
    logits, changed = module.apply(collections, inputs, train, mutable=mutable)
    return logits, changed.get("batch_stats", statistics)

  def loss_fn(variables: Variables, batch: Batch, train: bool) -> tuple[Metrics, Any]:
    params, statistics = variables
    logits, statistics = apply_fn(
      params, batch.inputs, statistics=statistics, train=train
    )
    one_hot = jax.nn.one_hot(batch.targets, logits.shape[-1], dtype=logits.dtype)
    losses = optax.losses.softmax_cross_entropy(logits, one_hot)
    right = (jnp.argmax(logits, axis=-1) == batch.targets).astype(logits.dtype)
    return {"loss": losses, "accuracy": right}, statistics

  return init_fn, loss_fn
