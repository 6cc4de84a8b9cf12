"""The half-cheetah of brax, by direction and by velocity (Finn et al. 2017).

Six joints, two legs, in a plane. In section 5.3 of the paper the goal is a velocity,
uniform in [0, 2], or a direction, forward or backward. The authors' code
(github.com/cbfinn/maml_rl) has 200 steps, rewards of velocity minus 0.05 times the
squared norm of the action, 20 trajectories to adapt to and 40 goals per meta-step.
brax's model and physics engine differ from theirs, so results cannot be compared with
the paper's. An observation has 17 numbers; theirs included the position of the torso.
"""

import dataclasses
import functools
import warnings
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jsharp.control.environment import Environment
from jsharp.options import at_least, option


@functools.cache
def _simulated(backend: str) -> Any:
  """Brax's environment, created once per process."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Brax warns that it is unmaintained.
      from brax import envs

      with jax.ensure_compile_time_eval():  # Its constants must outlive a trace.
        return envs.get_environment("halfcheetah", backend=backend)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"the half-cheetah needs brax, but {error.name} is not installed; install the "
      "extra: pip install 'jsharp[brax]'",
      name=error.name,
    ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _HalfCheetah(Environment):
  """The part that both tasks share."""

  observation_size: ClassVar[int] = 17
  action_size: ClassVar[int] = 6
  goal_size: ClassVar[int] = 1

  horizon: int = option(
    200, "Maximum number of steps in a trajectory.", check=at_least(1)
  )
  backend: Literal["spring", "positional", "generalized"] = option(
    "spring", "Physics engine of brax, from the fastest to the most accurate."
  )

  def reset(self, key: jax.Array, goal: jax.Array) -> Any:
    del goal
    return _simulated(self.backend).reset(key)

  def observe(self, state: Any) -> jax.Array:
    return state.obs

  def step(
    self, state: Any, action: jax.Array, goal: jax.Array
  ) -> tuple[Any, jax.Array, jax.Array]:
    action = jnp.clip(action, -1, 1)
    state = _simulated(self.backend).step(state, action)
    effort = 0.05 * jnp.sum(jnp.square(action))
    reward = self.earned(state.metrics["x_velocity"], goal[0]) - effort
    return state, reward, jnp.array(False)

  def earned(self, velocity: jax.Array, goal: jax.Array) -> jax.Array:
    """The part of a reward that depends on the goal."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfCheetahDir(_HalfCheetah):
  """A half-cheetah that runs forward or backward; the goal is 1 or -1."""

  name: ClassVar[str] = "half_cheetah_dir"

  def goal(self, key: jax.Array) -> jax.Array:
    return jax.random.rademacher(key, (1,), jnp.float32)

  def earned(self, velocity: jax.Array, goal: jax.Array) -> jax.Array:
    return goal * velocity


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfCheetahVel(_HalfCheetah):
  """A half-cheetah that runs at a velocity; the goal is uniform in [0, 2]."""

  name: ClassVar[str] = "half_cheetah_vel"

  def goal(self, key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (1,), jnp.float32, 0.0, 2.0)

  def earned(self, velocity: jax.Array, goal: jax.Array) -> jax.Array:
    return -jnp.abs(velocity - goal)
