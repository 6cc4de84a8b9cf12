"""Outer steps of PPO on fixed trajectories: ProMP (Rothfuss et al. 2019).

    held = trajectories before adaptation, and of the adapted policies
    num_outer_steps times:
      params = outer_optimizer(params, gradient of the mean over tasks of
        min(r A, clip(r, 1 - clip, 1 + clip) A) of the adapted policy
        - inner_kl_penalty * divergence(policy that was rolled out, policy))

with the likelihood ratios r of the adapted policy now to the adapted policy that acted
(arXiv 1810.06784, section 5 and algorithm 1). With `--surrogate=low_variance` the inner
step is ProMP's too. Their code (github.com/jonasrothfuss/ProMP) takes 5 steps of Adam
at 0.001, with a clip of 0.3 and a penalty of fixed weight 5e-4. Cost of a meta-step:
`num_outer_steps` meta-gradients, with one set of trajectories.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp._checks import check_count, check_nonnegative, check_positive
from jsharp.control._held import Build, divergence, hold_tasks
from jsharp.control.policy_loss import PolicyLoss
from jsharp.control.updates import OuterUpdate
from jsharp.core import over_tasks
from jsharp.core.execution import Execution
from jsharp.options import at_least, option, positive
from jsharp.types import MetaAlgorithm, MetaState, Metrics, Params, Task


def ppo(
  build: Build,
  loss_fn: PolicyLoss,
  outer_optimizer: optax.GradientTransformation,
  *,
  num_outer_steps: int = 5,
  clip: float = 0.3,
  inner_kl_penalty: float = 0.0,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """A control algorithm with several outer steps on the same trajectories.

  Args:
    build: `build(outer_optimizer) -> MetaAlgorithm`, for any algorithm.
    loss_fn: the loss that it is built on.
    outer_optimizer: any optax optimizer.
    num_outer_steps: its steps in one meta-step.
    clip: the range around 1 within which likelihood ratios of adapted policies count.
    inner_kl_penalty: weight of the divergence between the policy that was rolled out
      and the current policy, both before adaptation.
    execution: tasks at a time; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`. A meta-step counts as one
    step, whatever `num_outer_steps` is. `metrics["kl"]` is the divergence of each
    task's adapted policy.

  Raises:
    ValueError: if a number is out of range.

  Example:
    >>> import functools, jsharp
    >>> from jsharp import control
    >>> plane = control.Navigation(horizon=5)
    >>> loss_fn = control.policy_loss(
    ...   plane, lambda w, x: jnp.concatenate([x @ w, 0 * x], axis=1))
    >>> algorithm = ppo(
    ...   functools.partial(jsharp.maml, loss_fn, optax.sgd(0.1), num_inner_steps=1),
    ...   loss_fn, optax.sgd(3.0), num_outer_steps=3)
    >>> state = algorithm.init(jnp.ones((2, 2)))
    >>> tasks = jax.vmap(
    ...   lambda key: control.sample_task(plane, key, support=4, query=4)
    ... )(jax.random.split(jax.random.key(0), 3))
    >>> state, metrics = jax.jit(algorithm.step)(state, tasks)
    >>> int(state.step), bool((metrics["kl"] > 0).all())
    (1, True)
  """
  check_count("num_outer_steps", num_outer_steps)
  check_positive("clip", clip, example=0.3)
  check_nonnegative("inner_kl_penalty", inner_kl_penalty)
  outer_optimizer = optax.with_extra_args_support(outer_optimizer)
  plain = build(outer_optimizer)
  divergence_fn = divergence(plain.adapt, loss_fn, execution=execution)

  def penalty(point: Params, task: Task) -> tuple[Any, tuple[()]]:
    def drifted(variables: Params) -> jax.Array:
      whole = trees.join(variables, trees.inexact(point)[1])
      before = plain.adapt(whole, task.support, num_steps=0)
      return inner_kl_penalty * loss_fn.divergence(before, task.support)

    return jax.grad(drifted)(trees.inexact(point)[0]), ()

  penalties = over_tasks(penalty, chunk=execution.task_chunk)

  def with_penalty(constants: Any, held: Task) -> optax.GradientTransformation:
    def update_fn(
      updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
      slopes, _ = penalties(trees.join(params, constants), held)
      updates = jax.tree.map(jnp.add, updates, slopes)
      return outer_optimizer.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(outer_optimizer.init, update_fn)

  def step(state: MetaState, tasks: Task) -> tuple[MetaState, Metrics]:
    held = hold_tasks(
      plain.adapt, loss_fn, state.params, tasks, clip=clip, execution=execution
    )
    algorithm = plain
    if inner_kl_penalty:
      algorithm = build(with_penalty(trees.inexact(state.params)[1], held))
    new, seen = jax.lax.scan(
      lambda state, _: algorithm.step(state, held), state, length=num_outer_steps
    )
    metrics = jax.tree.map(lambda rows: rows[0], seen)  # Returns are equal in all rows.
    metrics["kl"] = divergence_fn(new.params, held)[1]
    return new._replace(step=state.step + 1), metrics

  return MetaAlgorithm(plain.init, step, plain.adapt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(OuterUpdate):
  """Several steps with clipped likelihood ratios (ProMP; Rothfuss et al. 2019)."""

  name: ClassVar[str] = "ppo"

  num_outer_steps: int = option(
    5,
    "Steps of the outer optimizer on the trajectories of one meta-step.",
    check=at_least(1),
  )
  clip_ratio: float = option(
    0.3,
    "Range around 1 within which likelihood ratios of adapted policies count.",
    check=positive("0.3 in ProMP's code."),
  )
  inner_kl_penalty: float = option(
    5e-4,
    "Weight of the divergence between the policy that was rolled out and the current "
    "policy, both before adaptation; 5e-4 in ProMP's code. 0: none.",
    check=at_least(0),
  )

  def algorithm(
    self,
    build: Build,
    loss_fn: PolicyLoss,
    outer_optimizer: optax.GradientTransformation,
    *,
    execution: Execution = Execution(),
  ) -> MetaAlgorithm:
    return ppo(
      build,
      loss_fn,
      outer_optimizer,
      num_outer_steps=self.num_outer_steps,
      clip=self.clip_ratio,
      inner_kl_penalty=self.inner_kl_penalty,
      execution=execution,
    )

  def meta_gradients(self) -> int:
    return self.num_outer_steps
