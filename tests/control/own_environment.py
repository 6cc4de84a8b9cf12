"""An environment of a user's own: a number that is to be reached on a line."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jsharp.control import Environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(Environment):
  """A point on a line; it ends beyond the goal, and may be lost on the way."""

  name: ClassVar[str] = "line"
  observation_size: ClassVar[int] = 1
  action_size: ClassVar[int] = 1
  goal_size: ClassVar[int] = 1

  def goal(self, key):
    return jax.random.uniform(key, (1,), jnp.float32, 0.5, 2.0)

  def reset(self, key, goal):
    return 0.01 * jax.random.normal(key, (1,), jnp.float32)

  def observe(self, state):
    return state

  def step(self, state, action, goal):
    state = state + action
    return state, 1 + state[0], state[0] > goal[0]


class Lost(Line):
  """One whose rewards are no numbers."""

  name: ClassVar[str] = "lost"

  def step(self, state, action, goal):
    state, reward, over = super().step(state, action, goal)
    return state, reward * jnp.nan, over


class Blown(Line):
  """One that is lost later on, whose reward does not show it."""

  name: ClassVar[str] = "blown"

  def step(self, state, action, goal):
    state = jnp.where(state == 0, state, state * jnp.inf)
    return state, jnp.float32(1), jnp.array(False)


class Ends(Line):
  """One whose last state is no number; how it says that it is over is no boolean."""

  name: ClassVar[str] = "ends"

  def step(self, state, action, goal):
    state, reward, over = super().step(state, action, goal)
    return jnp.where(over, jnp.nan, state), reward, 0.5 * over.astype(jnp.float32)


class Wide(Line):
  """One that shows more than it says."""

  name: ClassVar[str] = "wide"

  def observe(self, state):
    return jnp.concatenate([state, state])
