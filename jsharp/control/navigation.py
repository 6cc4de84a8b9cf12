"""Walking to an unseen goal in the plane (Finn et al. 2017, section 5.3)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jsharp.control.environment import Environment
from jsharp.options import option

_SPEED = 0.1  # Length of the longest step along each axis.
_NEAR = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Navigation(Environment):
  """A point that walks from the origin to a goal in a square of side 1.

  An action is a velocity, clipped to 0.1 along each axis. A trajectory ends when both
  coordinates are within 0.01 of the goal. The reward depends on the distance, which is
  the only information about the goal: the policy observes only its position.

  Example:
    >>> plane, goal = Navigation(), jnp.array([0.1, 0.5])
    >>> state = plane.reset(jax.random.key(0), goal)
    >>> state, reward, done = plane.step(state, jnp.array([3.0, 0.0]), goal)
    >>> state.round(3).tolist(), float(reward), bool(done)
    ([0.10000000149011612, 0.0], -0.5, False)
  """

  name: ClassVar[str] = "navigation"
  observation_size: ClassVar[int] = 2
  action_size: ClassVar[int] = 2
  goal_size: ClassVar[int] = 2

  reward: Literal["distance", "squared_distance"] = option(
    "distance",
    "Cost of a step: the distance to the goal, as in the authors' code, or its square, "
    "as in the paper.",
  )

  def goal(self, key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (2,), jnp.float32, -0.5, 0.5)

  def reset(self, key: jax.Array, goal: jax.Array) -> jax.Array:
    del key, goal
    return jnp.zeros(2, jnp.float32)

  def observe(self, state: jax.Array) -> jax.Array:
    return state

  def step(
    self, state: jax.Array, action: jax.Array, goal: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    state = state + _SPEED * jnp.clip(action, -1, 1)
    away = state - goal
    square = jnp.sum(jnp.square(away))
    cost = square if self.reward == "squared_distance" else jnp.sqrt(square)
    return state, -cost, jnp.all(jnp.abs(away) < _NEAR)
