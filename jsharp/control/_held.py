"""Outer steps on fixed trajectories, for any algorithm.

A meta-step rolls the policies out once: before adaptation on the support set, and after
adaptation on the query set. The tasks then hold these trajectories instead of keys, and
the algorithm's own step evaluates any parameters on them by likelihood ratios, which
`PolicyLoss` computes whenever it is given such a batch. Inner steps after the first
reuse the trajectories of the first.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jsharp import tree as trees
from jsharp.control.policy_loss import PolicyLoss
from jsharp.core import over_tasks
from jsharp.core.execution import Execution
from jsharp.core.traced import Traced
from jsharp.types import AdaptFn, MetaAlgorithm, Params, Task

Build = Callable[[optax.GradientTransformation], MetaAlgorithm]
"""`build(outer_optimizer) -> MetaAlgorithm`, such as `functools.partial(jsharp.maml,
loss_fn, inner_optimizer, num_inner_steps=1)`."""


def hold_tasks(
  adapt: AdaptFn,
  loss_fn: PolicyLoss,
  params: Params,
  tasks: Task,
  *,
  clip: float,
  execution: Execution = Execution(),
) -> Task:
  """Rolls out the trajectories that a meta-step needs, once.

  Args:
    adapt: the algorithm's `adapt`.
    loss_fn: the algorithm's loss.
    params: the meta-parameters.
    tasks: tasks with keys, as from `jsharp.control.sample_task`.
    clip: the range around 1 within which likelihood ratios of the query set count.
    execution: tasks at a time.

  Returns:
    The same tasks with fixed trajectories: on the support set those of the policy
    before adaptation, on the query set those of the adapted policy.

  Example:
    See `jsharp.control.trpo`.
  """

  def hold(task: Task) -> Task:
    before = adapt(params, task.support, num_steps=0)
    support = loss_fn.hold(before, task.support)
    adapted = adapt(params, support)
    return Task(support, loss_fn.hold(adapted, task.query, clip=clip))

  chunk = execution.task_chunk
  if chunk is None and jax.default_backend() != "cpu":
    return jax.vmap(hold)(tasks)
  return jax.lax.map(hold, tasks, batch_size=chunk if isinstance(chunk, int) else 1)


def divergence(
  adapt: AdaptFn, loss_fn: PolicyLoss, *, execution: Execution = Execution()
) -> Callable[[Params, Task], tuple[Any, Any]]:
  """The divergence of the adapted policies from those that acted.

  Args:
    adapt: the algorithm's `adapt`.
    loss_fn: the algorithm's loss.
    execution: tasks at a time.

  Returns:
    `(params, held_tasks) -> (mean, [num_tasks])`.

  Example:
    See `jsharp.control.trpo`.
  """

  def of_task(params: Params, task: Task) -> tuple[jax.Array, jax.Array]:
    found = loss_fn.divergence(adapt(params, task.support), task.query)
    return found, found

  return over_tasks(of_task, chunk=execution.task_chunk)


def curvature(
  adapt: AdaptFn, loss_fn: PolicyLoss, *, execution: Execution = Execution()
) -> Callable[[Params, Params, Task], Params]:
  """Products with the Hessian of the mean divergence, at a point where it is zero.

  There the gradient of the divergence vanishes, and with it every term with a second
  derivative of the adaptation. The Hessian is then `J' F J`, with the Jacobian J of the
  adapted policies' outputs and their Fisher matrix F.

  Args:
    adapt: the algorithm's `adapt`; it needs a forward-mode derivative.
    loss_fn: the algorithm's loss.
    execution: tasks at a time.

  Returns:
    `(params, vector, held_tasks) -> product`.

  Raises:
    ValueError: when called, if `adapt` has no forward-mode derivative.

  Example:
    See `jsharp.control.trpo`.
  """

  def product(params: Params, vector: Params, tasks: Task) -> Params:
    def of_task(params: Params, task: Task) -> tuple[Params, tuple[()]]:
      variables, constants = trees.inexact(params)

      def answers(variables: Params) -> jax.Array:
        adapted = adapt(trees.join(variables, constants), task.support)
        return loss_fn.outputs(adapted, task.query)

      answers_at = Traced(answers, variables)
      if not answers_at.has_forward_mode:
        raise ValueError(
          "a trust region needs the forward-mode derivative of adaptation, but this "
          "algorithm has none: instead of imaml, --second_order=recomputed or "
          "forward_over_reverse, use maml with --second_order=stored; or use ppo"
        )
      outputs, push = jax.linearize(answers_at, variables)
      slope = jax.grad(lambda outputs: loss_fn.divergence_of(outputs, task.query))
      _, pushed = jax.jvp(slope, (outputs,), (push(vector),))
      return jax.linear_transpose(push, variables)(pushed)[0], ()

    return over_tasks(of_task, chunk=execution.task_chunk)(params, tasks)[0]

  return product
