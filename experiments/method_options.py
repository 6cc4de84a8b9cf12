"""What the flags of single algorithms mean to their constructors."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from experiments import optimizers
from experiments.method_flags import READERS, sharp_loops
from jsharp import algorithms, models
from jsharp.core.execution import Execution
from jsharp.evaluation import evaluator
from jsharp.losses import Criterion
from jsharp.normalization import query_loss, transductive
from jsharp.types import (
  AdaptFn,
  ApplyFn,
  MetaAlgorithm,
  Metrics,
  Params,
  TaskLossFn,
)


class Networks(NamedTuple):
  """The networks that an experiment offers, in the forms that algorithms need.

  Attributes:
    plain: `plain(num_outputs) -> module`; None outputs for the embedding.
    context: `context(size) -> module` with a context of so many numbers.
    head: name of the module that a head-only method adapts.
    inputs: `[1, ...]` float32, for initialisation.
    targets: `[1, ...]`, likewise.
    num_outputs: outputs of the model.
    criterion: `criterion(outputs, targets) -> (loss, metrics)`.
    has_norm: whether the plain module has normalisation layers.
  """

  plain: Callable[[int | None], Any]
  context: Callable[[int], Any]
  head: str
  inputs: jax.Array
  targets: jax.Array
  num_outputs: int
  criterion: Criterion
  has_norm: bool


class Method(NamedTuple):
  """An algorithm with its model, ready for tasks of any way up to the model's.

  Attributes:
    params: the model's initial parameters.
    build: `build(way) -> MetaAlgorithm`.
    predict: `predict(way) -> apply_fn(adapted, inputs, num_statistics=None)`.
    criterion: `criterion(outputs, targets) -> (loss, metrics)`.
    adaptation: the keywords of `MetaAlgorithm.adapt` in validation and test.
    execution: how to execute an evaluation.
  """

  params: Params
  build: Callable[[int], MetaAlgorithm]
  predict: Callable[[int], ApplyFn]
  criterion: Criterion
  adaptation: dict[str, Any]
  execution: Execution

  def adapt(self, way: int, **options: Any) -> AdaptFn:
    """`adapt(params, support) -> adapted` as in validation and test."""
    return functools.partial(self.build(way).adapt, **{**self.adaptation, **options})

  def query_loss_fn(self, way: int) -> TaskLossFn:
    """The loss of a task's query set, transductive."""
    return query_loss(transductive(self.predict(way)), self.criterion)

  def evaluator(
    self, way: int, query_loss_fn: TaskLossFn | None = None, /, **options: Any
  ) -> Callable[[Params, Any], Metrics]:
    """`evaluate_tasks(params, tasks) -> metrics`; options go to `adapt`."""
    return evaluator(
      self.adapt(way, **options),
      query_loss_fn or self.query_loss_fn(way),
      execution=self.execution,
    )


def relevant(settings: SimpleNamespace) -> dict[str, Any]:
  """The values of the flags that this algorithm reads, beside the common ones."""
  name = settings.algorithm
  own = [flag for flag, readers in READERS.items() if name in readers]
  facts = {flag: getattr(settings, flag) for flag in own}
  inner, outer = sharp_loops(settings)
  if inner:
    facts["inner_rho"] = settings.inner_rho
  if outer:
    facts["outer_rho"] = settings.outer_rho
  if inner or outer:
    facts |= {"p": settings.p, "adaptive": settings.adaptive}
    if inner:
      facts["differentiate_perturbation"] = settings.differentiate_perturbation
      facts["sharp_adaptation"] = optimizers.sharp_adaptation(settings)
    if name == "sharp_maml_both":
      facts["reuse_perturbation"] = settings.reuse_perturbation
  return facts


def constructor_options(
  settings: SimpleNamespace, networks: Networks
) -> dict[str, Any]:
  """The arguments of a constructor that are not common to all."""
  norm_stays = networks.has_norm and not settings.adapt_norm
  masked = {"adapted_mask": models.all_but_norm if norm_stays else None}
  head = models.part_mask(networks.head)
  match settings.algorithm:
    case "anil":
      return {"head": head}
    case "boil":
      return {"head": head, **masked}
    case "meta_sgd":
      low, high = map(float, settings.initial_rates)
      key = jax.random.fold_in(jax.random.key(settings.seed), 1)
      return {"inner_lr": (low, high), "key": key, **masked}
    case "maml_plus_plus":
      anneal_steps, num_inner_steps = (
        settings.multi_step_loss_steps,
        settings.num_inner_steps,
      )
      weights = algorithms.annealed_step_weights(
        num_inner_steps, anneal_steps=max(1, anneal_steps)
      )
      own_norm = networks.has_norm and settings.per_step_norm
      return {
        "inner_lr": settings.inner_lr,
        "learn_rates": settings.learn_rates,
        "step_weights": weights if anneal_steps else None,
        "first_order_steps": settings.first_order_steps,
        "per_step": models.norm_mask if own_norm else None,
        **masked,
      }
    case "imaml":
      return {
        "proximity": settings.proximity,
        "num_cg_steps": settings.num_cg_steps,
        **masked,
      }
    case "reptile":  # What its inner loop leaves alone would never be learned.
      flags = ("inner_batch_size", "keep_inner_state")
      return {flag: getattr(settings, flag) for flag in flags}
  return masked


def adaptation(settings: SimpleNamespace) -> dict[str, Any]:
  """The keywords of `MetaAlgorithm.adapt` in validation and test."""
  if settings.algorithm in ("protonet", "ridge", "black_box"):
    return {}
  options: dict[str, Any] = {"num_steps": settings.num_eval_inner_steps}
  if settings.algorithm == "reptile":
    options["batch_size"] = settings.eval_inner_batch_size
  return {**options, **optimizers.at_evaluation(settings)}


def has_rows(settings: SimpleNamespace, networks: Networks) -> bool:
  """Whether MAML++ learns or keeps something for each inner step."""
  own_norm = networks.has_norm and settings.per_step_norm
  return settings.learn_rates or own_norm or keeps_statistics(settings, networks)


def method_of(
  settings: SimpleNamespace,
  networks: Networks,
  params: Params,
  build: Callable[[int], MetaAlgorithm],
  predict: Callable[[int], ApplyFn],
) -> Method:
  """The method that the flags ask for, from its parts."""
  return Method(
    params=params,
    build=build,
    predict=predict,
    criterion=networks.criterion,
    adaptation=adaptation(settings),
    execution=Execution(task_chunk=settings.task_chunk),
  )


def keeps_statistics(settings: SimpleNamespace, networks: Networks) -> bool:
  """Whether running statistics normalise at validation and test."""
  is_plus_plus = settings.algorithm == "maml_plus_plus"
  return is_plus_plus and settings.running_statistics and networks.has_norm


def adapts_norm(settings: SimpleNamespace) -> bool:
  """Whether the inner loop changes the scale and offset of normalisation."""
  match settings.algorithm:
    case "reptile":
      return True
    case "maml_plus_plus":
      return settings.adapt_norm and not settings.per_step_norm
    case "anil" | "cavia" | "protonet" | "ridge" | "black_box":
      return False
  return settings.adapt_norm
