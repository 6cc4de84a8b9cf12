"""Sharp-MAML (Abbas, Xiao, Chen, Chen, Chen 2022, arXiv 2206.03996).

MAML whose inner gradient (low), outer gradient (up) or both are taken at the
worst point of a ball around the parameters:

    low:  adapted = adapted - inner_lr * g(adapted + inner_rho * g / |g|)
          with g the support gradient, at every inner step
    up:   params = outer_optimizer(params, G(params + outer_rho * G / |G|))
          with G the mean meta-gradient

Both are the same link, `sam(rho)`, at two levels. The paper and its authors'
code differ; each difference is an argument here, and the defaults follow the
code (github.com/mominabbass/Sharp-MAML, 7 February 2023):

- `reuse_perturbation`: in the second pass of "both" the paper reuses the inner
  perturbations of the first, its equation (14); the code, and the default,
  recomputes them.
- `differentiate_perturbation`: whether the meta-gradient flows through the inner
  perturbation. Not stated in the paper; in the code it does.
- `adaptive`: balls scaled by the parameters. Not in the paper; optional in the
  code, off by default.
- `sharp_adaptation`: the inner loop at test. Not stated in the paper; the code
  takes SAM steps for low, plain steps for up and both.
- `inner_rho` and `outer_rho`: two radii in the paper, one flag for both (5e-4)
  in the code.
- `num_inner_steps`: 1 in the paper's algorithm, 5 in the code.
- `outer_optimizer`: SGD in the paper's algorithm, Adam in the code.

The outer perturbation is a constant in either. Cost per task in units of a MAML
meta-gradient: about 2 for low (1 with a constant perturbation and one inner
step), 2 for up, 4 for both.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jsharp.algorithms._bundle import meta_gradient, meta_step
from jsharp.algorithms._options import Problem
from jsharp.algorithms.maml import MAML, maml
from jsharp.core.adaptation import (
  adapted_value_and_grad,
  inner_loop,
  join,
  repeated,
  split,
)
from jsharp.core.descent import descend
from jsharp.core.execution import Execution
from jsharp.core.objectives import after_adaptation, on_query
from jsharp.core.transforms import stop_gradient
from jsharp.options import option
from jsharp.perturbations import sam_ascent, sharpness_aware
from jsharp.types import AdaptFn, Batch, LossFn, Mask, MetaAlgorithm, Params, Task


def sharp_maml(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  inner_rho: Any = None,
  outer_rho: Any = None,
  p: Any = 2.0,
  adaptive: bool = False,
  differentiate_perturbation: bool = True,
  reuse_perturbation: bool = False,
  sharp_adaptation: bool | None = None,
  num_inner_steps: int,
  execution: Execution = Execution(),
  **options: Any,
) -> MetaAlgorithm:
  """Builds Sharp-MAML: low with `inner_rho`, up with `outer_rho`, both with both.

  For other perturbations build the chains yourself, for example
  `maml(loss_fn, optax.chain(sharpness_aware(my_ascent), optax.sgd(0.1)), ...)`.
  First-order Sharp-MAML is `sharp_maml(first_order(loss_fn), ...)`.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    inner_optimizer: any optax optimizer; SAM's link goes in front of it.
    outer_optimizer: any optax optimizer; SAM's link goes in front of it.
    inner_rho: radius of the inner ball, 5e-4 in the authors' runs; None for
      Sharp-MAML up. A number, a traced scalar or a schedule over inner steps.
    outer_rho: radius of the outer ball; None for Sharp-MAML low.
    p: the norm of both balls, in `[1, inf]`.
    adaptive: whether both balls are ASAM's, relative to the parameters.
    differentiate_perturbation: whether the meta-gradient flows through the inner
      perturbation.
    reuse_perturbation: whether the second pass of Sharp-MAML both reuses the
      inner perturbations of the first, equation (14) of the paper, generalised
      to several inner steps: step by step.
    sharp_adaptation: whether `adapt` takes SAM steps when no optimizer is passed to it;
      None for the authors' choice: low does, up and both do not.
    num_inner_steps: inner steps in training.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.
    **options: further keyword arguments of `jsharp.algorithms.maml`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: if neither radius is given, one is out of range, or an option
      concerns an inner perturbation and `inner_rho` is None.

  Example:
    >>> from jsharp import Task
    >>> loss_fn = lambda w, batch: (jnp.sum(batch.inputs * w**2), {})
    >>> algorithm = sharp_maml(
    ...   loss_fn, optax.sgd(0.1), optax.sgd(0.1),
    ...   inner_rho=0.05, outer_rho=0.05, num_inner_steps=1)
    >>> batch = Batch(jnp.ones(4), None)
    >>> state, metrics = jax.jit(algorithm.step)(
    ...   algorithm.init(jnp.float32(1)), Task(support=batch, query=batch))
    >>> int(state.step)
    1
  """
  if inner_rho is None and outer_rho is None:
    raise ValueError(
      "sharp_maml needs inner_rho (low), outer_rho (up) or both, got neither; pass "
      "for example inner_rho=5e-4, or use maml"
    )
  if inner_rho is None and (sharp_adaptation or reuse_perturbation):
    raise ValueError(
      f"sharp_adaptation={sharp_adaptation}, reuse_perturbation={reuse_perturbation} "
      "concern the inner perturbation, got inner_rho=None; pass inner_rho"
    )
  if reuse_perturbation and outer_rho is None:
    raise ValueError(
      "reuse_perturbation=True concerns the second, perturbed pass, got "
      "outer_rho=None; pass outer_rho, or leave it False"
    )
  if sharp_adaptation is None:
    sharp_adaptation = outer_rho is None

  def ascent(rho: Any) -> optax.GradientTransformationExtraArgs:
    return sam_ascent(rho, p=p, adaptive=adaptive)

  sharp_inner = inner_optimizer
  if inner_rho is not None:
    inner_ascent = ascent(inner_rho)
    if not differentiate_perturbation:
      inner_ascent = optax.with_extra_args_support(
        optax.chain(inner_ascent, stop_gradient())
      )
    sharp_inner = optax.chain(sharpness_aware(inner_ascent), inner_optimizer)
  if outer_rho is not None:
    outer_optimizer = optax.chain(sharpness_aware(ascent(outer_rho)), outer_optimizer)
  algorithm = maml(
    loss_fn,
    sharp_inner,
    outer_optimizer,
    num_inner_steps=num_inner_steps,
    execution=execution,
    **options,
  )
  adapt, adapted_mask = algorithm.adapt, options.get("adapted_mask")
  if not sharp_adaptation:
    plain_adapt = inner_loop(
      loss_fn,
      inner_optimizer,
      num_steps=num_inner_steps,
      adapted_mask=adapted_mask,
      execution=execution,
    )
    algorithm = algorithm._replace(adapt=plain_adapt)
  if not reuse_perturbation:
    return algorithm

  query_loss_fn = options.get("query_loss_fn") or on_query(loss_fn)
  adapt_reusing = reusing_inner_loop(
    loss_fn,
    inner_ascent,
    inner_optimizer,
    num_steps=num_inner_steps,
    adapted_mask=adapted_mask,
    execution=execution,
  )
  first_pass = meta_gradient(
    after_adaptation(adapt, query_loss_fn), execution=execution
  )
  second_pass = meta_gradient(
    after_adaptation(adapt_reusing, query_loss_fn), execution=execution
  )

  def outer_grad_fn(point: Params, params: Params, tasks: Task) -> Any:
    # The perturbation of the outer loop is a constant, so a change of params moves
    # both the point and the anchor of its inner perturbations.
    _, (by_point, by_anchor) = second_pass((point, params), tasks)
    return jax.tree.map(jnp.add, by_point, by_anchor)

  return algorithm._replace(
    step=meta_step(first_pass, outer_optimizer, outer_grad_fn=outer_grad_fn)
  )


def reusing_inner_loop(
  loss_fn: LossFn,
  ascent: optax.GradientTransformationExtraArgs,
  optimizer: optax.GradientTransformation,
  *,
  num_steps: int,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> AdaptFn:
  """The inner loop of equation (14): SAM steps that reuse another loop's perturbations.

  Two inner loops run in parallel. The loop from `anchor` takes ordinary SAM steps; the
  loop from `point` uses the same perturbations.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    ascent: gradient in, perturbation to add out.
    optimizer: the optimizer behind the SAM link.
    num_steps: the number of inner steps.
    adapted_mask: the leaves that are changed and perturbed.
    execution: how the steps are repeated.

  Returns:
    `adapt((point, anchor), support) -> adapted`, from `point`.

  Example:
    >>> adapt = reusing_inner_loop(
    ...   lambda w, x: (w * w, {}), sam_ascent(0.5), optax.sgd(0.25), num_steps=1)
    >>> float(adapt((jnp.float32(2), jnp.float32(-1)), None))  # 2 - 0.5 * (2 - 0.5)
    1.25
  """
  chain = optax.with_extra_args_support(optimizer)

  def adapt(point_and_anchor: tuple[Params, Params], support: Batch) -> Params:
    (point, point_rest), (anchor, anchor_rest) = (
      split(params, adapted_mask) for params in point_and_anchor
    )
    at_point = adapted_value_and_grad(loss_fn, point_rest, support)
    at_anchor = adapted_value_and_grad(loss_fn, anchor_rest, support)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
      (point, point_state), (anchor, anchor_state), ascent_state = carry
      perturbation, ascent_state = ascent.update(
        at_anchor(anchor)[1],
        ascent_state,
        anchor,
        grad_fn=lambda params: at_anchor(params)[1],
      )

      def perturbed(fn: Any) -> Any:
        return lambda params: fn(optax.apply_updates(params, perturbation))

      point, point_state, _ = descend(chain, perturbed(at_point), point, point_state)
      anchor, anchor_state, _ = descend(
        chain, perturbed(at_anchor), anchor, anchor_state
      )
      return ((point, point_state), (anchor, anchor_state), ascent_state), None

    carry, _ = repeated(
      step,
      ((point, chain.init(point)), (anchor, chain.init(anchor)), ascent.init(anchor)),
      num_steps=num_steps,
      execution=execution,
    )
    return join(carry[0][0], point_rest)

  return adapt


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SharpMAML(MAML):
  """Sharp-MAML (Abbas et al. 2022); the radii are those of both loops."""

  reuse_perturbation: bool = option(
    False,
    "sharp_maml_both: in the second pass reuse the inner perturbation of the first, as "
    "in equation (14) of the paper; the authors' code recomputes it.",
  )

  def complete(self) -> None:
    super().complete()
    if self.reuse_perturbation and self.sharp != "both":
      raise ValueError(
        f"--reuse_perturbation has no effect with --algorithm={self.name}: it reuses "
        "the inner perturbation in a second outer pass; drop it, or use "
        "--algorithm=sharp_maml_both"
      )

  def construct(
    self,
    loss_fn: LossFn,
    problem: Problem,
    inner_optimizer: optax.GradientTransformation,
    options: dict[str, Any],
  ) -> MetaAlgorithm:
    sharpness = problem.sharpness
    inner, outer = sharpness.loops(self)
    return sharp_maml(
      loss_fn,
      inner_optimizer,
      problem.outer.optimizer(sharpness),
      inner_rho=sharpness.inner_rho if inner else None,
      outer_rho=sharpness.outer_rho if outer else None,
      p=sharpness.p,
      adaptive=sharpness.adaptive,
      differentiate_perturbation=sharpness.differentiate_perturbation,
      reuse_perturbation=self.reuse_perturbation,
      sharp_adaptation=sharpness.at_test(self),
      num_inner_steps=self.num_inner_steps,
      adapted_mask=self.mask(problem),
      execution=problem.execution,
      **options,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpMAMLLow(_SharpMAML):
  """Sharp-MAML low: SAM in the inner loop (Abbas et al. 2022)."""

  name: ClassVar[str] = "sharp_maml_low"
  sharp: ClassVar[str] = "low"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpMAMLUp(_SharpMAML):
  """Sharp-MAML up: SAM in the outer loop (Abbas et al. 2022)."""

  name: ClassVar[str] = "sharp_maml_up"
  sharp: ClassVar[str] = "up"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpMAMLBoth(_SharpMAML):
  """Sharp-MAML both: SAM in either loop (Abbas et al. 2022)."""

  name: ClassVar[str] = "sharp_maml_both"
  sharp: ClassVar[str] = "both"
