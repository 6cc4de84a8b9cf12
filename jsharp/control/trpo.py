"""Trust-region outer steps (Schulman et al. 2015, as in Finn et al. 2017, section 5.3).

    held = trajectories before adaptation, and of the adapted policies
    params = params - the longest multiple of H^-1 meta-gradient with
             mean divergence(adapted before the step, adapted after it) <= max_kl

The divergence is the mean over tasks and over the steps of the adapted policies'
trajectories, which are fixed; H is its Hessian with respect to the meta-parameters,
through adaptation. The step is shortened until the objective improves on these
trajectories. Cost of a meta-step: that of Adam, plus `kl_cg_steps + 1` products with H
of about two gradients each, without new trajectories.

MAML's code (github.com/cbfinn/maml_rl) uses a divergence of 0.01, 10 steps of conjugate
gradients, 1e-5 on the diagonal, and finite differences instead of exact products.
"""

import dataclasses
import math
from typing import Any, ClassVar

import optax

from jsharp import tree as trees
from jsharp.control._held import Build, curvature, divergence, hold_tasks
from jsharp.control.policy_loss import PolicyLoss
from jsharp.control.trust_region import trust_region
from jsharp.control.updates import OuterUpdate
from jsharp.core.execution import Execution
from jsharp.options import at_least, between, option, positive
from jsharp.types import MetaAlgorithm, MetaState, Metrics, Params, Task


def trpo(
  build: Build,
  loss_fn: PolicyLoss,
  *,
  max_kl: float = 0.01,
  execution: Execution = Execution(),
  **options: Any,
) -> MetaAlgorithm:
  """A control algorithm whose outer steps have a trust region.

  Args:
    build: `build(outer_optimizer) -> MetaAlgorithm`, for any algorithm. The direction
      of a step is computed from its meta-gradient.
    loss_fn: the loss that it is built on.
    max_kl: the largest mean divergence of the adapted policies in a meta-step.
    execution: tasks at a time; see `jsharp.Execution`.
    **options: options of `trust_region`: `num_cg_steps`, `damping`, `shrink`,
      `max_backtracks`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`. `metrics["kl"]` is the
    divergence of each task after the step.

  Raises:
    ValueError: if a number is out of range; from `step`, if adaptation has no
      forward-mode derivative.

  Example:
    >>> import functools, jax, jax.numpy as jnp, jsharp
    >>> from jsharp import control
    >>> plane = control.Navigation(horizon=5)
    >>> loss_fn = control.policy_loss(
    ...   plane, lambda w, x: jnp.concatenate([x @ w, 0 * x], axis=1))
    >>> algorithm = trpo(
    ...   functools.partial(jsharp.maml, loss_fn, optax.sgd(0.1), num_inner_steps=1),
    ...   loss_fn, max_kl=0.01)
    >>> state = algorithm.init(jnp.ones((2, 2)))
    >>> tasks = jax.vmap(
    ...   lambda key: control.sample_task(plane, key, support=4, query=4)
    ... )(jax.random.split(jax.random.key(0), 3))
    >>> state, metrics = jax.jit(algorithm.step)(state, tasks)
    >>> 0.001 < float(metrics["kl"].mean()) <= 0.01
    True
  """

  def link(params: Params, held: Any) -> optax.GradientTransformation:
    def at(point: Params) -> Params:
      return trees.join(point, trees.inexact(params)[1])

    return trust_region(
      lambda point: divergence_fn(at(point), held)[0],
      lambda point, vector: product_fn(at(point), vector, held),
      max_divergence=max_kl,
      **options,
    )

  plain = build(link(None, None))
  divergence_fn = divergence(plain.adapt, loss_fn, execution=execution)
  product_fn = curvature(plain.adapt, loss_fn, execution=execution)

  def step(state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    held = hold_tasks(
      plain.adapt, loss_fn, state.params, tasks, clip=math.inf, execution=execution
    )
    state, metrics = build(link(state.params, held)).step(state, held)
    return state, {**metrics, "kl": divergence_fn(state.params, held)[1]}

  return MetaAlgorithm(plain.init, step, plain.adapt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TRPO(OuterUpdate):
  """A natural gradient step within a trust region (Finn et al. 2017, section 5.3)."""

  name: ClassVar[str] = "trpo"
  steps_itself: ClassVar[bool] = True

  max_kl: float = option(
    0.01,
    "Largest mean divergence between the adapted policies before and after a "
    "meta-step; it replaces --outer_lr.",
    check=positive("0.01 in MAML's code."),
  )
  kl_cg_steps: int = option(
    10, "Steps of conjugate gradients to find the direction.", check=at_least(1)
  )
  kl_damping: float = option(
    1e-5, "Damping added to the diagonal of the Hessian.", check=at_least(0)
  )
  backtrack_ratio: float = option(
    0.8,
    "Factor that shortens a step that is too long.",
    check=between(0.01, 0.99, "0.8 in MAML's code."),
  )
  max_backtracks: int = option(
    15,
    "Largest number of step lengths to try before no step is taken.",
    check=at_least(1),
  )

  def algorithm(
    self,
    build: Build,
    loss_fn: PolicyLoss,
    outer_optimizer: optax.GradientTransformation,
    *,
    execution: Execution = Execution(),
  ) -> MetaAlgorithm:
    return trpo(
      build,
      loss_fn,
      max_kl=self.max_kl,
      num_cg_steps=self.kl_cg_steps,
      damping=self.kl_damping,
      shrink=self.backtrack_ratio,
      max_backtracks=self.max_backtracks,
      execution=execution,
    )

  def meta_gradients(self) -> int:
    return 1 + 2 * (self.kl_cg_steps + 1)  # The line search takes no gradients.
