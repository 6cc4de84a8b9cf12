"""What a task of control is drawn from: an environment as pure functions."""

import dataclasses
from typing import Any, ClassVar

import jax

from jsharp.options import Options, Role, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment(Options):
  """An environment with a goal; a task is one goal.

  Everything is a pure function of one trajectory: `jax.vmap` and `jax.lax.scan` do the
  rest. A derived class is one file: its options, sizes and five methods.

  Class attributes:
    observation_size: numbers that a policy sees.
    action_size: numbers that it answers with; -1 and 1 are the ends of what has an
      effect.
    goal_size: numbers that a goal has.
  """

  kind: ClassVar[str] = "environment"
  role: ClassVar[Role] = Role.TESTING
  observation_size: ClassVar[int] = 0
  action_size: ClassVar[int] = 0
  goal_size: ClassVar[int] = 0

  horizon: int = option(
    100, "Steps after which a trajectory ends at the latest.", check=at_least(1)
  )

  def goal(self, key: jax.Array) -> jax.Array:
    """Draws the goal of a task, `[goal_size]` float32."""
    raise NotImplementedError

  def reset(self, key: jax.Array, goal: jax.Array) -> Any:
    """The state at the beginning, any pytree."""
    raise NotImplementedError

  def observe(self, state: Any) -> jax.Array:
    """What a policy sees of a state, `[observation_size]`; the goal is hidden."""
    raise NotImplementedError

  def step(
    self, state: Any, action: jax.Array, goal: jax.Array
  ) -> tuple[Any, jax.Array, jax.Array]:
    """The state after an action, the reward, and whether the trajectory is over."""
    raise NotImplementedError
