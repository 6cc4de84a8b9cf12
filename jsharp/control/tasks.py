"""Control tasks: a goal, and random keys of the trajectories towards it."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jsharp.control.environment import Environment
from jsharp.options import Options, Role, at_least, between, option
from jsharp.types import Batch, Task


def sample_task(
  environment: Environment, key: jax.Array, *, support: int, query: int
) -> Task:
  """Draws one goal, and random keys of trajectories.

  Args:
    environment: the environment that the goal is drawn from.
    key: a typed key.
    support: the number of trajectories for adaptation.
    query: the number of trajectories to evaluate the adapted policy.

  Returns:
    A task for `jsharp.control.policy_loss`: inputs `[support]` keys and targets
    `[support, goal_size]`, the goal repeated for each; the query set likewise.

  Example:
    >>> from jsharp.control import Navigation
    >>> task = sample_task(Navigation(), jax.random.key(0), support=20, query=40)
    >>> task.support.inputs.shape, task.query.targets.shape
    ((20,), (40, 2))
  """
  goal_key, *keys = jax.random.split(key, 3)
  goal = environment.goal(goal_key)

  def batch(key: jax.Array, number: int) -> Batch:
    goals = jnp.broadcast_to(goal[None], (number, *goal.shape))
    return Batch(jax.random.split(key, number), goals)

  return Task(batch(keys[0], support), batch(keys[1], query))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoalTasks(Options):
  """The numbers of trajectories of a task."""

  role: ClassVar[Role] = Role.TESTING

  trajectories: int = option(
    20, "Trajectories that a policy adapts to.", check=at_least(2)
  )
  query_trajectories: int | None = option(
    None,
    "Trajectories that evaluate an adapted policy in training. Default: as "
    "--trajectories.",
    check=at_least(1),
    role=Role.TRAINING,
  )
  eval_trajectories: int | None = option(
    None,
    "Trajectories that evaluate an adapted policy at validation and test. Default: as "
    "--query_trajectories.",
    check=at_least(1),
  )

  def complete(self) -> None:
    """Sets defaults that depend on other options."""
    self._set("query_trajectories", self.trajectories)
    self._set("eval_trajectories", self.query_trajectories)

  def examples(self) -> list[tuple[int, int]]:
    """Support and query trajectories of a training task."""
    return [(self.trajectories, self.query_trajectories or self.trajectories)]

  def training(self) -> dict[str, Any]:
    """Keyword arguments of `sample_task` in training."""
    return {"support": self.trajectories, "query": self.query_trajectories}

  def testing(self) -> dict[str, Any]:
    """Keyword arguments of `sample_task` at validation and test."""
    return {"support": self.trajectories, "query": self.eval_trajectories}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradient(Options):
  """Options for estimating the derivatives of an expected return."""

  role: ClassVar[Role] = Role.TRAINING

  surrogate: Literal["dice", "low_variance"] = option(
    "dice",
    "Estimator of derivatives of the return. dice: unbiased at every order; "
    "low_variance (ProMP): lower variance, but biased from the second order on.",
    role=Role.LEARNER,
  )
  discount: float = option(
    0.99, "Weight of the next step's reward.", check=between(0, 1), role=Role.LEARNER
  )
  gae_decay: float = option(
    1.0,
    "Lambda of generalised advantage estimation: 1 is the return minus the baseline.",
    check=between(0, 1),
    role=Role.LEARNER,
  )
