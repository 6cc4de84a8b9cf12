"""Meta-SGD (Li, Zhou, Chen, Li 2017, arXiv 1707.09835).

    adapted = params;  num_inner_steps times:
      adapted = adapted - rates * grad(support loss)(adapted)        elementwise
    (params, rates) = outer_optimizer((params, rates), mean over tasks of
                                      grad_(params, rates)(query loss(adapted)))

MAML that learns the initialisation of the inner loop and, with one rate per parameter
entry, its direction and step size; a rate may become negative. The paper takes one
inner step. Cost of one meta-step and task: MAML's; the rates' gradient is a product of
two arrays that are computed anyway. The state is twice the parameters.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count, check_rates
from jsharp.algorithms._bundle import bundle
from jsharp.algorithms._options import (
  InnerSteps,
  Made,
  NormOptions,
  Phases,
  Problem,
  SecondOrderOptions,
  Sharpness,
  constant_cost,
  gradient_based,
)
from jsharp.core.adaptation import inner_loop, split
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.core.transforms import learned_rates
from jsharp.options import interval, option
from jsharp.tree import as_arrays
from jsharp.types import (
  Batch,
  LossFn,
  Mask,
  MetaAlgorithm,
  Params,
  TaskLossFn,
)

_RATES = 0x7261  # of the default key


class WithRates(NamedTuple):
  """What Meta-SGD learns.

  Attributes:
    params: the model's parameters.
    rates: a pytree like `params`, with one rate per entry; None in place of the
      leaves that the inner loop does not change.
  """

  params: Params
  rates: Any


def meta_sgd(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  num_inner_steps: int,
  inner_lr: float | Sequence[float] = (0.005, 0.1),
  key: jax.Array | None = None,
  query_loss_fn: TaskLossFn | None = None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds Meta-SGD.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    inner_optimizer: makes the updates that the rates multiply: `optax.sgd(1.0)` in the
      paper, `optax.chain(jsharp.sam(rho), optax.sgd(1.0))` for Sharp-Meta-SGD.
    outer_optimizer: any optax optimizer, for parameters and rates together. A SAM link
      in it perturbs the rates too.
    num_inner_steps: inner steps in training.
    inner_lr: the rates before the first meta-step: one number, or a range
      `(low, high)` from which each is drawn uniformly.
    key: the key of that draw. None uses a fixed key other than `jax.random.key(0)`,
      since parameters are often drawn with the latter.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective;
      `loss_fn` on the query set if None.
    adapted_mask: `params -> pytree of bool`, the leaves that the inner loop changes,
      which are those with rates; all if None.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions. `init(params)` returns a state whose `params` is a
    `WithRates`; `adapt(with_rates, support)` returns only parameters of the model. Its
    `optimizer` makes the updates that the rates multiply, as `inner_optimizer` does.

  Raises:
    ValueError: if a count is out of range, or `inner_lr` is neither a finite number
      nor a range.

  Example:
    >>> from jsharp import Task
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = meta_sgd(
    ...   loss_fn, optax.sgd(1.0), optax.sgd(0.5), num_inner_steps=1, inner_lr=0.25)
    >>> batch = Batch(None, jnp.array([[0.0], [2.0]]))
    >>> state, _ = algorithm.step(algorithm.init(3.0), Task(batch, batch))
    >>> float(state.params.params), float(state.params.rates)
    (2.5, 5.25)
  """
  num_inner_steps = check_count("num_inner_steps", num_inner_steps, minimum=0)
  low, high = check_rates("inner_lr", inner_lr, is_range_allowed=True)
  rates_key = jax.random.fold_in(jax.random.key(0), _RATES) if key is None else key

  def prepare(params: Params) -> WithRates:
    params = as_arrays(params)
    leaves, structure = jax.tree.flatten(split(params, adapted_mask)[0])
    keys = jax.random.split(rates_key, len(leaves))
    rates = [
      jax.random.uniform(k, leaf.shape, leaf.dtype, low, high)
      if low < high
      else jnp.full_like(leaf, low)
      for k, leaf in zip(keys, leaves, strict=True)
    ]
    return WithRates(params, jax.tree.unflatten(structure, rates))

  def adapt(
    with_rates: WithRates,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
  ) -> Params:
    loop = inner_loop(
      loss_fn,
      optax.chain(optimizer or inner_optimizer, learned_rates(with_rates.rates)),
      num_steps=num_inner_steps,
      adapted_mask=adapted_mask,
      execution=execution,
    )
    return loop(with_rates.params, support, num_steps=num_steps)

  return bundle(
    adapt,
    query_loss_fn or on_query(loss_fn),
    outer_optimizer,
    prepare=prepare,
    execution=execution,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaSGD(InnerSteps, NormOptions, SecondOrderOptions):
  """Meta-SGD: a learned rate per parameter (Li et al. 2017)."""

  name: ClassVar[str] = "meta_sgd"

  initial_rates: tuple[float, ...] = option(
    (0.005, 0.1),
    "Range LOW,HIGH from which the initial rates are drawn uniformly.",
    check=interval("needs two numbers LOW,HIGH with LOW <= HIGH, as in 0.005,0.1."),
  )

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, 1.0)
    low, high = self.initial_rates

    def build(loss_fn: LossFn) -> MetaAlgorithm:
      loss_fn, options = self.remembering(loss_fn)
      return meta_sgd(
        loss_fn,
        optimizers["inner_optimizer"],
        problem.outer.optimizer(problem.sharpness),
        num_inner_steps=self.num_inner_steps,
        inner_lr=(low, high),
        key=jax.random.fold_in(problem.key, 1),
        adapted_mask=self.mask(problem),
        execution=problem.execution,
        **options,
      )

    return gradient_based(problem, build, optimizers["at_test"])

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, products = self.cost_of_steps(sharpness)
    cost = self.num_inner_steps * (gradients + 2 * products) * support + query
    return constant_cost(cost, sharpness.loops(self)[1])
