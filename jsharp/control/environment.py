"""Environments as pure functions, from which control tasks are drawn."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jsharp.options import Options, Role, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment(Options):
  """An environment with a goal; each goal is a task.

  All methods are pure functions for a single trajectory; `jax.vmap` and `jax.lax.scan`
  batch and repeat them. A subclass fits in one file: options, sizes and four methods.

  Class attributes:
    observation_size: the length of an observation.
    action_size: the length of an action; values beyond -1 and 1 have no further effect.
    goal_size: the length of a goal.
  """

  kind: ClassVar[str] = "environment"
  role: ClassVar[Role] = Role.TESTING
  observation_size: ClassVar[int] = 0
  action_size: ClassVar[int] = 0
  goal_size: ClassVar[int] = 0

  horizon: int = option(
    100, "Maximum number of steps in a trajectory.", check=at_least(1)
  )

  def goal(self, key: jax.Array) -> jax.Array:
    """Draws the goal of a task, `[goal_size]` float32."""
    raise NotImplementedError

  def reset(self, key: jax.Array, goal: jax.Array) -> Any:
    """The initial state, any pytree."""
    raise NotImplementedError

  def observe(self, state: Any) -> jax.Array:
    """The observation of a state, `[observation_size]`; the goal must stay hidden."""
    raise NotImplementedError

  def step(
    self, state: Any, action: jax.Array, goal: jax.Array
  ) -> tuple[Any, jax.Array, jax.Array]:
    """The state after an action, the reward, and whether the trajectory is over."""
    raise NotImplementedError


@functools.cache
def check_environment(environment: Environment) -> None:
  """Checks that the methods of an environment fit together, without running them.

  Args:
    environment: the environment; its methods are only traced.

  Raises:
    ValueError: if a method returns a wrong shape or type; the message names it, and
      what it returns and should return.

  Example:
    >>> from jsharp.control.navigation import Navigation
    >>> check_environment(Navigation()) is None
    True
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  goal = jax.eval_shape(environment.goal, key)
  _refuse(environment, "goal", goal, (environment.goal_size,))
  state = jax.eval_shape(environment.reset, key, goal)
  seen = jax.eval_shape(environment.observe, state)
  _refuse(environment, "observe", seen, (environment.observation_size,))
  if not jnp.issubdtype(seen.dtype, jnp.floating):
    raise ValueError(
      f"{environment.name}.observe returns {_told(seen)}, but policies take floating-"
      "point numbers; convert it, for example with .astype(jnp.float32)"
    )
  action = jax.ShapeDtypeStruct((environment.action_size,), jnp.float32)
  after, reward, over = _three(
    environment, jax.eval_shape(environment.step, state, action, goal)
  )
  if _told(after) != _told(state):
    raise ValueError(
      f"{environment.name}.step returns a state of {_told(after)}, but "
      f"{environment.name}.reset one of {_told(state)}; return arrays of the same "
      "shapes and dtypes from both"
    )
  _refuse(environment, "step", reward, (), "a reward")
  _refuse(environment, "step", over, (), "whether it is over")


def _three(environment: Environment, returned: Any) -> Any:
  if not isinstance(returned, tuple) or len(returned) != 3:
    raise ValueError(
      f"{environment.name}.step returns {_told(returned)}; return three values: the "
      "state, the reward and whether the trajectory is over"
    )
  return returned


def _refuse(
  environment: Environment,
  method: str,
  returned: Any,
  shape: tuple[int, ...],
  what: str = "",
) -> None:
  if getattr(returned, "shape", None) == shape:
    return
  sized = f"{method.replace('observe', 'observation')}_size"
  why = f" ({sized}={shape[0]})" if shape else ""
  raise ValueError(
    f"{environment.name}.{method} returns {what and what + ' of '}{_told(returned)}, "
    f"but {list(shape)} is needed{why}; "
    + ("return that many numbers, or change " + sized if shape else "return one number")
  )


def _told(tree: Any) -> str:
  """The shapes of a tree in words: `float32[2]`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  told = [
    f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}".strip()
    for path, leaf in leaves
  ]
  return ", ".join(told) or "nothing"
