"""MAML++ (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502), each part optional.

    adapted_0 = params;  for i = 0, ..., num_inner_steps - 1, elementwise per leaf:
      g_i = grad(support loss)(adapted_i, per_step[i])
      adapted_(i+1) = adapted_i - rates[i] * g_i
    objective = sum_i weights(step)[i] * query loss(adapted_(i+1), per_step[i+1])
    (params, per_step, rates) = outer_optimizer(..., mean over tasks of
                                                grad(objective))

The parts, as the paper names them, and the arguments that control them here:

- multi-step loss: `step_weights`, for example `annealed_step_weights`;
- derivative-order annealing: `first_order_steps`, 25,000 in the paper (50 epochs);
  the authors' released settings are second order throughout;
- per-layer per-step learning rates: `learn_rates`, one rate per leaf and step, starting
  at `inner_lr`, whose default is what the released code uses;
- per-step scale and offset of batch normalisation: `per_step`, which accepts any
  leaves;
- per-step running statistics: `statistics_decay`. In the paper and here, evaluation
  normalises by them, which makes it inductive; the released code averages but never
  uses them, as `adapt(..., use_running_statistics=False)` does. With one example per
  class they did badly here (docs/results.md), since training adapts by the batch's
  statistics;
- cosine annealing of the outer step size is part of the outer optimizer:
  `optax.adam(optax.cosine_decay_schedule(1e-3, num_steps, alpha=0.01))`.

Row i of per-step parts belongs to the parameters after i inner steps, so there are
`num_inner_steps + 1` rows: the support loss of step i and the query loss after i steps
use row i. The released code has one row less: its query loss after step i uses the row
of the support loss before it.

Cost of one meta-step and task: MAML's, with `num_inner_steps` query gradients instead
of one while earlier losses have a weight. Losses of weight zero and second derivatives
that are switched off are not computed: each phase is a separate branch, and with both
kinds of phases the step takes up to four times as long to compile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count, check_rates
from jsharp.algorithms._options import (
  Algorithm,
  InnerLoop,
  Made,
  NormOptions,
  Phases,
  Problem,
  SecondOrderOptions,
  Sharpness,
  gradient_based,
)
from jsharp.algorithms._per_step import (
  at_step,
  averaged,
  batch_loss_with_statistics,
  copied,
  row,
  rows_of,
)
from jsharp.algorithms._phases import (
  Order,
  StepWeightsFn,
  annealed_step_weights,
  phased_gradient,
)
from jsharp.core.adaptation import chosen_steps, optimised
from jsharp.core.descent import descend
from jsharp.core.execution import Execution
from jsharp.core.transforms import learned_step_rates
from jsharp.models import Network, first_outputs, norm_mask, with_statistics
from jsharp.options import at_least, option
from jsharp.tree import as_arrays, inexact
from jsharp.types import (
  Batch,
  LossFn,
  Mask,
  MetaAlgorithm,
  MetaState,
  Metrics,
  Params,
  Task,
  TaskLossFn,
  Variables,
)


class PlusPlusParams(NamedTuple):
  """What MAML++ carries from meta-step to meta-step.

  Attributes:
    params: the model's parameters, None in place of the leaves in `per_step`.
    per_step: the other leaves, `[num_inner_steps + 1, ...]` each.
    rates: `[num_inner_steps]` per adapted leaf; None where there are none.
    statistics: `[num_inner_steps + 1, ...]` per statistic; None if none are kept. They
      are running averages, which the outer optimizer does not update.
  """

  params: Params
  per_step: Params
  rates: Any
  statistics: Any


def maml_plus_plus(
  loss_fn: Callable[..., Any],
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  num_inner_steps: int,
  inner_lr: float = 0.1,
  learn_rates: bool = True,
  step_weights: StepWeightsFn | None = None,
  first_order_steps: int = 0,
  per_step: Mask | None = None,
  statistics_decay: float | None = None,
  query_loss_fn: TaskLossFn | None = None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds MAML++.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task; with
      `statistics_decay`, `loss_fn(params, batch, statistics) -> (loss, (metrics,
      statistics))`, as from `jsharp.algorithms.batch_loss_with_statistics`.
    inner_optimizer: makes the updates that the rates multiply: `optax.sgd(1.0)` in the
      paper, `optax.chain(jsharp.sam(rho), optax.sgd(1.0))` for Sharp-MAML++.
    outer_optimizer: any optax optimizer, for parameters and rates together. A SAM link
      in it perturbs the rates too.
    num_inner_steps: inner steps in training.
    inner_lr: the rate of every leaf and step before the first meta-step.
    learn_rates: whether rates are learned; otherwise all stay at `inner_lr`.
    step_weights: `step -> [num_inner_steps]`, the weight at a meta-step of the query
      loss after each inner step; only the last loss counts if None.
    first_order_steps: for this many meta-steps the meta-gradient is FOMAML's.
    per_step: `params -> pytree of bool`, leaves with a copy for each inner step. They
      are meta-learned and not adapted, whatever `adapted_mask` says.
    statistics_decay: the decay of the running statistics per meta-step, 0.9 in the
      released code; None keeps none. They average the statistics of training's support
      losses (rows 0 to `num_inner_steps - 1`) and of the last query loss (the last row)
      over tasks, and over meta-steps: with equal weights first, exponentially after
      `1 / (1 - statistics_decay)` meta-steps.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective;
      `loss_fn` on the query set if None, and always with `statistics_decay`.
    adapted_mask: `params -> pytree of bool`, the leaves that the inner loop changes;
      all if None.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions. `state.params` is a `PlusPlusParams`;
    `adapt(plus_plus_params, support)` returns the model's adapted parameters with the
    row for the query set. If anything is kept per step, its `num_steps` is at most
    `num_inner_steps`; its `optimizer` makes the updates that the rates multiply. With
    `statistics_decay`, `init` takes `Variables(params, statistics)`, as from
    `jsharp.models.with_statistics`, and `adapt` returns one. It normalises by the
    running statistics, or, with `use_running_statistics=False`, by the batch; the
    returned statistics are then None. The metric "loss" is the loss after the last
    inner step, whatever the weights.

  Raises:
    ValueError: if an argument is out of range or does not go with another one.

  Example:
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = maml_plus_plus(loss_fn, optax.sgd(1.0), optax.sgd(0.5),
    ...   num_inner_steps=2, inner_lr=0.25, step_weights=lambda step: jnp.ones(2) / 2)
    >>> batch = Batch(None, jnp.array([[0.0], [2.0]]))
    >>> state, _ = jax.jit(algorithm.step)(algorithm.init(3.0), Task(batch, batch))
    >>> float(state.params.params), state.params.rates.tolist()
    (2.6875, [3.375, 0.875])
  """
  num_inner_steps = check_count("num_inner_steps", num_inner_steps)
  first_order_steps = check_count("first_order_steps", first_order_steps, minimum=0)
  inner_lr, _ = check_rates("inner_lr", inner_lr)
  keeps_statistics = statistics_decay is not None
  has_rows = learn_rates or per_step is not None or keeps_statistics
  if statistics_decay is not None and not 0 <= statistics_decay < 1:
    raise ValueError(
      f"statistics_decay must be in [0, 1), got {statistics_decay!r}; 0.9 is usual"
    )
  if keeps_statistics and query_loss_fn is not None:
    raise ValueError(
      "query_loss_fn cannot be combined with statistics_decay="
      f"{statistics_decay!r}, since it returns no statistics; change loss_fn instead. "
      "Evaluation takes its own query loss"
    )

  def full_loss_fn(params: Params, batch: Batch, statistics: Any) -> tuple[Any, Any]:
    if keeps_statistics:
      return loss_fn(params, batch, statistics)
    loss, metrics = loss_fn(params, batch)
    return loss, (metrics, None)

  def with_rates(optimizer: Any, point: PlusPlusParams) -> optax.GradientTransformation:
    link = learned_step_rates(point.rates) if learn_rates else optax.scale(inner_lr)
    return optax.chain(optimizer, link)

  def task_loss_fn(
    order: Order, weights: jax.Array | None, point: PlusPlusParams, task: Task
  ) -> tuple[jax.Array, tuple[Metrics, Any]]:
    adapted, at = at_step(point.params, point.per_step, adapted_mask)
    loss = order(lambda params, batch: full_loss_fn(params, batch, None))

    def support_at(i: Any, adapted: Params) -> Any:
      return loss(at(i, adapted), task.support)

    def query_at(i: Any, adapted: Params) -> Any:
      if query_loss_fn is None:
        return loss(at(i, adapted), task.query)
      value, metrics = query_loss_fn(at(i, adapted), task)
      return value, (metrics, None)

    def see(i: Any, adapted: Params, aux: Any) -> tuple[Any, Any]:
      return aux, () if weights is None else query_at(i + 1, adapted)

    adapted, _, ((_, seen), looks) = optimised(
      with_rates(inner_optimizer, point),
      support_at,
      adapted,
      num_steps=num_inner_steps,
      see=see,
      execution=execution,
    )
    if weights is None:
      end, (metrics, last) = query_at(num_inner_steps, adapted)
      objective = end
    else:
      objective = jnp.sum(weights.astype(looks[0].dtype) * looks[0])
      end, (metrics, last) = row(looks, -1)
    seen = jax.tree.map(lambda s, q: jnp.concatenate([s, q[None]]), seen, last)
    return objective, ({"loss": end, **metrics}, seen)

  gradient_fn = phased_gradient(
    task_loss_fn,
    step_weights=step_weights,
    num_inner_steps=num_inner_steps,
    first_order_steps=first_order_steps,
    execution=execution,
  )

  def init(params: Any) -> MetaState:
    if isinstance(params, Variables) != keeps_statistics:
      raise ValueError(
        "init takes Variables(params, statistics) with statistics_decay and plain "
        f"parameters without it, got {type(params).__name__} with statistics_decay="
        f"{statistics_decay!r}; see jsharp.models.with_statistics"
      )
    statistics = None
    if keeps_statistics:
      params, statistics = (
        params.params,
        rows_of(params.statistics, num_inner_steps + 1),
      )
    params = as_arrays(params)
    shared, copies = copied(params, per_step, num_inner_steps + 1)
    rates, (adapted, _) = None, at_step(shared, copies, adapted_mask)
    if learn_rates:
      rates = jax.tree.map(
        lambda x: jnp.full(num_inner_steps, inner_lr, x.real.dtype), adapted
      )
    point = PlusPlusParams(shared, copies, rates, None)
    opt_state = outer_optimizer.init(inexact(point)[0])
    return MetaState(jnp.int32(0), point._replace(statistics=statistics), opt_state)

  outer = optax.with_extra_args_support(outer_optimizer)

  def step(state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    point, opt_state, (metrics, seen) = descend(
      outer,
      lambda point: gradient_fn(state.step, point, tasks),
      state.params._replace(statistics=None),
      state.opt_state,
    )
    statistics = state.params.statistics
    if statistics_decay is not None:
      statistics = averaged(statistics, seen, decay=statistics_decay, step=state.step)
    point = point._replace(statistics=statistics)
    return MetaState(state.step + 1, point, opt_state), metrics

  def adapt(
    point: PlusPlusParams,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    use_running_statistics: bool = True,
  ) -> Any:
    length = chosen_steps(num_steps, num_inner_steps)
    if length > num_inner_steps and has_rows:
      raise ValueError(
        f"num_steps must be at most num_inner_steps={num_inner_steps}, got {length}: "
        "later steps have no rates, copies or statistics; train with more inner steps, "
        "or with learn_rates=False and without per_step and statistics_decay"
      )
    running = point.statistics if use_running_statistics else None
    adapted, at = at_step(point.params, point.per_step, adapted_mask)

    def support_at(i: Any, adapted: Params) -> Any:
      return full_loss_fn(at(i, adapted), support, row(running, i))

    chain = with_rates(optimizer or inner_optimizer, point)
    adapted, _, _ = optimised(
      chain, support_at, adapted, num_steps=length, execution=execution
    )
    params = at(length, adapted)
    if keeps_statistics:
      return Variables(params, row(running, length))
    return params

  return MetaAlgorithm(init, step, adapt)


_STATISTICS_DECAY = 0.9  # as in MAML++'s code


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAMLPlusPlus(InnerLoop, NormOptions, SecondOrderOptions):
  """MAML++, its six parts each on its own (Antoniou et al. 2019)."""

  name: ClassVar[str] = "maml_plus_plus"
  own_defaults: ClassVar[tuple[str, ...]] = ("num_eval_inner_steps",)

  multi_step_loss_steps: int = option(
    5000,
    "Number of meta-steps over which the weight of the losses after each inner step "
    "moves to the last loss; 0 uses only the last loss. 5000 in MAML++'s code.",
    check=at_least(0, "0 switches it off."),
  )
  first_order_steps: int = option(
    0,
    "Number of meta-steps with the first-order gradient before the exact one is used; "
    "0 in MAML++'s code, 50 epochs in the paper.",
    check=at_least(0, "0 switches it off."),
  )
  per_step_norm: bool = option(
    True,
    "Learn a separate normalisation scale and offset for each inner step.",
  )
  running_statistics: bool = option(
    False,
    "Normalise at validation and test by running statistics kept per inner step, as in "
    "the paper. The authors' code, and the default here, use the batch's statistics, "
    "which did far better with one example per class (docs/results.md).",
  )
  learn_rates: bool = option(
    True, "Learn a rate per parameter array and inner step, from --inner_lr."
  )

  def complete(self) -> None:
    super().complete()
    if self.running_statistics and self.second_order != "stored":
      raise ValueError(
        f"--second_order={self.second_order} cannot be combined with "
        "--running_statistics; drop one of them"
      )

  def check(self, network: Network) -> None:
    if self.running_statistics and network.has_norm and not network.looks_at_batch:
      raise ValueError(
        "--running_statistics needs batch normalisation, and this network has another "
        "normalisation; leave it out, or pass --norm=batch"
      )
    own = self.learn_rates
    if network.has_norm:
      own = own or self.per_step_norm or self.running_statistics
    trained, tested = self.num_inner_steps, self.num_eval_inner_steps or 0
    if own and tested > trained:
      raise ValueError(
        f"--num_eval_inner_steps={tested} must be at most --num_inner_steps={trained}: "
        "later steps have no rates, scales or statistics; train with more inner steps, "
        "or pass --nolearn_rates and --noper_step_norm without --running_statistics"
      )

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, 1.0)
    if self.running_statistics and problem.network.has_norm:
      return self._with_statistics(problem, optimizers)

    def build(loss_fn: LossFn) -> MetaAlgorithm:
      loss_fn, options = self.remembering(loss_fn)
      return self._construct(loss_fn, problem, optimizers, options)

    return gradient_based(problem, build, optimizers["at_test"])

  def _with_statistics(self, problem: Problem, optimizers: dict[str, Any]) -> Made:
    module = problem.module(problem.num_outputs)
    init_fn, apply_fn = problem.functions(module, with_statistics)

    def predict(adapted: Any, inputs: Any, num_statistics: int | None = None) -> Any:
      del num_statistics  # Running statistics normalise, not the batch's.
      return apply_fn(adapted.params, inputs, statistics=adapted.statistics)[0]

    def algorithm(way: int) -> MetaAlgorithm:
      def cut(params: Params, inputs: Any, statistics: Any) -> tuple[Any, Any]:
        outputs, statistics = apply_fn(params, inputs, statistics=statistics)
        return outputs[..., :way], statistics

      loss_fn = batch_loss_with_statistics(cut, problem.criterion)
      options = {"statistics_decay": _STATISTICS_DECAY}
      return self._construct(loss_fn, problem, optimizers, options)

    return Made(
      params=init_fn(problem.key, problem.inputs),
      algorithm=algorithm,
      predict=functools.partial(first_outputs, predict),
      at_test=optimizers["at_test"],
    )

  def _construct(
    self,
    loss_fn: Callable[..., Any],
    problem: Problem,
    optimizers: dict[str, Any],
    options: dict[str, Any],
  ) -> MetaAlgorithm:
    weights = None
    if self.multi_step_loss_steps:
      weights = annealed_step_weights(
        self.num_inner_steps, anneal_steps=self.multi_step_loss_steps
      )
    own_norm = problem.network.has_norm and self.per_step_norm
    return maml_plus_plus(
      loss_fn,
      optimizers["inner_optimizer"],
      problem.outer.optimizer(problem.sharpness),
      num_inner_steps=self.num_inner_steps,
      inner_lr=self.inner_lr,
      learn_rates=self.learn_rates,
      step_weights=weights,
      first_order_steps=self.first_order_steps,
      per_step=norm_mask if own_norm else None,
      adapted_mask=self.mask(problem),
      execution=problem.execution,
      **options,
    )

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, products = self.cost_of_steps(sharpness)
    outer = 2 if sharpness.loops(self)[1] else 1

    def cost(end: float) -> float:
      exact = end > self.first_order_steps
      per_step = gradients + (2 * products if exact else 0)
      queries = self.num_inner_steps if end <= self.multi_step_loss_steps else 1
      return outer * (self.num_inner_steps * per_step * support + queries * query)

    switches = {float(self.first_order_steps), float(self.multi_step_loss_steps)}
    return [(end, cost(end)) for end in sorted({*switches, math.inf} - {0.0})]

  def adapts_norm(self) -> bool:
    return self.adapt_norm and not self.per_step_norm

  def leaner(self) -> list[Algorithm]:
    return [self] if self.running_statistics else super().leaner()

  def uses_running_statistics(self) -> bool:
    return self.running_statistics

  def last_phase(self) -> "MAMLPlusPlus":
    return self.replace(multi_step_loss_steps=0, first_order_steps=0)
