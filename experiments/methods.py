"""The algorithms by their names on the command line: model, constructor, prediction."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from experiments import optimizers
from experiments.common_flags import RHO
from experiments.method_flags import (
  SHARP_MAML,
  WITHOUT_INNER_GRADIENT,
  sharp_loops,
)
from experiments.method_options import (
  Method,
  Networks,
  constructor_options,
  has_rows,
  keeps_statistics,
  method_of,
)
from jsharp import algorithms, losses, models
from jsharp.core import second_order as memory
from jsharp.core.objectives import on_query
from jsharp.models import first_outputs
from jsharp.precision import in_precision
from jsharp.types import LossFn, MetaAlgorithm, Params

_STATISTICS_DECAY = 0.9  # as in MAML++'s code


def make(settings: SimpleNamespace, networks: Networks) -> Method:
  """The algorithm that the flags ask for.

  Raises:
    ValueError: if the flags contradict each other or the experiment.
  """
  check(settings, networks)
  key = jax.random.key(settings.seed)
  if settings.algorithm in ("protonet", "ridge"):
    return _embedding_method(settings, networks, key)
  if settings.algorithm == "black_box":
    return _black_box(settings, networks, key)
  if settings.algorithm == "cavia":
    return _cavia(settings, networks, key)
  if settings.algorithm == "maml_plus_plus" and keeps_statistics(settings, networks):
    return _with_statistics(settings, networks, key)
  init_fn, apply_fn = _functions(
    settings, models.as_functions, networks.plain(networks.num_outputs)
  )

  def build(way: int) -> MetaAlgorithm:
    loss_fn = losses.batch_loss(first_outputs(apply_fn, way), networks.criterion)
    return _gradient_based(settings, networks, loss_fn)

  params = init_fn(key, networks.inputs)
  predict = functools.partial(first_outputs, apply_fn)
  return method_of(settings, networks, params, build, predict)


def check(settings: SimpleNamespace, networks: Networks) -> None:
  """Refuses flags that this algorithm or experiment does not know.

  Raises:
    ValueError: naming the flag and the fix.
  """
  name = settings.algorithm
  if name in ("protonet", "ridge") and networks.criterion is not losses.cross_entropy:
    raise ValueError(
      f"--algorithm={name} classifies, {settings.experiment} is a regression; choose "
      "an algorithm with an inner loop, or black_box"
    )
  asked = settings.sharpness != "none"
  if asked and name in SHARP_MAML:
    raise ValueError(
      f"--algorithm={name} has its sharpness in its name; drop "
      f"--sharpness={settings.sharpness}, or take --algorithm=maml"
    )
  if asked and settings.sharpness != "up" and name in WITHOUT_INNER_GRADIENT:
    raise ValueError(
      f"--sharpness={settings.sharpness} perturbs inner gradients, and {name} has "
      "none; take --sharpness=up"
    )
  for flag, is_read in zip(
    ("inner_rho", "outer_rho"), sharp_loops(settings), strict=True
  ):
    if getattr(settings, flag) != RHO and not is_read:
      raise ValueError(
        f"--{flag}={getattr(settings, flag)} has no effect with --algorithm={name} "
        f"--sharpness={settings.sharpness}; drop it, or choose --sharpness=low, up or "
        "both"
      )
  if (
    name == "maml_plus_plus"
    and settings.num_eval_inner_steps > settings.num_inner_steps
    and has_rows(settings, networks)
  ):
    raise ValueError(
      f"--num_eval_inner_steps={settings.num_eval_inner_steps} must be at most "
      f"--num_inner_steps={settings.num_inner_steps} with --algorithm={name}: later "
      "steps have no rates, copies or statistics; train with more inner steps, or pass "
      "--nolearn_rates --noper_step_norm --norunning_statistics"
    )
  if settings.second_order != "stored" and keeps_statistics(settings, networks):
    raise ValueError(
      f"--second_order={settings.second_order} goes with losses that keep no running "
      "statistics; drop it, or --running_statistics"
    )
  if name == "imaml" and settings.precision == "bfloat16":
    raise ValueError(
      "--precision=bfloat16 does not go with --algorithm=imaml: conjugate gradients on "
      "products of 8 bits leave the solution, the further the more steps they take; "
      "take --precision=float32 or tf32"
    )
  if settings.experiment == "sinusoid" and settings.ensemble > 1:
    raise ValueError(
      f"--ensemble={settings.ensemble} averages class probabilities, and sinusoid is a "
      "regression; drop it"
    )
  if settings.outer_schedule != "constant" and settings.outer_schedule_steps is None:
    raise ValueError(
      f"--outer_schedule={settings.outer_schedule} needs --outer_schedule_steps, such "
      f"as {settings.num_steps}; it is no default, so that a run can be made longer"
    )


def _functions(
  settings: SimpleNamespace, make: Callable[..., Any], module: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """A network's two functions, computed in --precision."""
  init_fn, apply_fn = make(module)
  return init_fn, in_precision(apply_fn, settings.precision)


def _gradient_based(
  settings: SimpleNamespace,
  networks: Networks,
  loss_fn: Callable[..., Any],
  **options: Any,
) -> MetaAlgorithm:
  name = settings.algorithm
  options = {
    "num_inner_steps": settings.num_inner_steps,
    "task_chunk": settings.task_chunk,
    **constructor_options(settings, networks),
    **options,
  }
  loss_fn, options = _remembering(settings, loss_fn, options)
  if name in SHARP_MAML:
    inner, outer = sharp_loops(settings)
    return algorithms.sharp_maml(
      loss_fn,
      optimizers.inner(settings),
      optimizers.outer(settings),
      inner_rho=settings.inner_rho if inner else None,
      outer_rho=settings.outer_rho if outer else None,
      p=settings.p,
      adaptive=settings.adaptive,
      differentiate_perturbation=settings.differentiate_perturbation,
      reuse_perturbation=settings.reuse_perturbation,
      sharp_adaptation=optimizers.sharp_adaptation(settings),
      **options,
    )
  constructor = getattr(algorithms, name)
  return constructor(
    loss_fn,
    optimizers.inner(settings),
    optimizers.outer(settings),
    **options,
  )


def _remembering(
  settings: SimpleNamespace, loss_fn: LossFn, options: dict[str, Any]
) -> tuple[LossFn, dict[str, Any]]:
  """The loss and the options for --second_order; the query's loss stays as it is."""
  if settings.second_order == "stored":
    return loss_fn, options
  options = {"query_loss_fn": on_query(loss_fn), **options}
  return getattr(memory, settings.second_order)(loss_fn), options


def _with_statistics(
  settings: SimpleNamespace, networks: Networks, key: jax.Array
) -> Method:
  init_fn, apply_fn = _functions(
    settings, models.with_statistics, networks.plain(networks.num_outputs)
  )

  def predict(adapted: Any, inputs: Any, num_statistics: int | None = None) -> Any:
    del num_statistics  # The statistics are not those of any batch.
    return apply_fn(adapted.params, inputs, statistics=adapted.statistics)[0]

  def build(way: int) -> MetaAlgorithm:
    def cut(params: Params, inputs: Any, statistics: Any) -> tuple[Any, Any]:
      outputs, statistics = apply_fn(params, inputs, statistics=statistics)
      return outputs[..., :way], statistics

    loss_fn = algorithms.batch_loss_with_statistics(cut, networks.criterion)
    return _gradient_based(
      settings, networks, loss_fn, statistics_decay=_STATISTICS_DECAY
    )

  params = init_fn(key, networks.inputs)
  predictor = functools.partial(first_outputs, predict)
  return method_of(settings, networks, params, build, predictor)


def _embedding_method(
  settings: SimpleNamespace, networks: Networks, key: jax.Array
) -> Method:
  init_fn, apply_fn = _functions(settings, models.as_functions, networks.plain(None))
  constructor, prediction = {
    "protonet": (algorithms.protonet, algorithms.predict_with_prototypes),
    "ridge": (algorithms.ridge, algorithms.predict_with_ridge),
  }[settings.algorithm]

  def build(way: int) -> MetaAlgorithm:
    return constructor(
      apply_fn, optimizers.outer(settings), way=way, task_chunk=settings.task_chunk
    )

  params = init_fn(key, networks.inputs)
  return method_of(settings, networks, params, build, lambda way: prediction(apply_fn))


def _black_box(settings: SimpleNamespace, networks: Networks, key: jax.Array) -> Method:
  module = models.AttentionLearner(
    networks.plain(None),
    num_outputs=networks.num_outputs,
    width=settings.width,
    num_layers=settings.num_layers,
    num_heads=settings.num_heads,
  )
  init_fn, apply_fn = _functions(settings, models.as_learner_functions, module)
  predict = algorithms.predict_in_context(apply_fn)

  def build(way: int) -> MetaAlgorithm:
    loss_fn = losses.batch_loss(first_outputs(predict, way), networks.criterion)
    return algorithms.black_box(
      apply_fn,
      optimizers.outer(settings),
      query_loss_fn=lambda adapted, task: loss_fn(adapted, task.query),
      task_chunk=settings.task_chunk,
    )

  params = init_fn(key, networks.inputs, networks.targets, networks.inputs)
  predictor = functools.partial(first_outputs, predict)
  return method_of(settings, networks, params, build, predictor)


def _cavia(settings: SimpleNamespace, networks: Networks, key: jax.Array) -> Method:
  is_regression = networks.criterion is losses.squared_error
  size = settings.context_size or (5 if is_regression else 100)
  init_fn, apply_fn = _functions(
    settings, models.as_context_functions, networks.context(size)
  )

  def build(way: int) -> MetaAlgorithm:
    loss_fn = losses.batch_loss(first_outputs(apply_fn, way), networks.criterion)
    loss_fn, options = _remembering(settings, loss_fn, {})
    return algorithms.cavia(
      loss_fn,
      optimizers.inner(settings),
      optimizers.outer(settings),
      context=jnp.zeros(size),
      num_inner_steps=settings.num_inner_steps,
      task_chunk=settings.task_chunk,
      **options,
    )

  params = init_fn(key, networks.inputs)
  predictor = functools.partial(first_outputs, apply_fn)
  return method_of(settings, networks, params, build, predictor)
