"""Rolling out policies in environments: trajectories."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.control.environment import Environment, check_environment
from jsharp.types import ApplyFn, Batch, Params


class Trajectories(NamedTuple):
  """The trajectories of a policy on one task.

  Attributes:
    observations: `[num_trajectories, horizon, observation_size]`, before each action.
    actions: `[num_trajectories, horizon, action_size]`.
    rewards: `[num_trajectories, horizon]`, zero after the end.
    alive: `[num_trajectories, horizon]`, 1 until the end and 0 after it.
  """

  observations: jax.Array
  actions: jax.Array
  rewards: jax.Array
  alive: jax.Array


def roll_out(
  environment: Environment, apply_fn: ApplyFn, params: Params, batch: Batch
) -> Trajectories:
  """Runs a policy in an environment; the result is a constant in derivatives.

  Args:
    environment: the environment.
    apply_fn: `apply_fn(params, observations) -> [n, 2 * action_size]`: means, then
      logarithms of standard deviations, of a Gaussian.
    params: the parameters of the policy.
    batch: inputs `[num_trajectories]`, one random key per trajectory, for its initial
      state and the noise of its actions; targets `[num_trajectories, goal_size]`, the
      task's goal.

  Returns:
    The trajectories. For the same key they differ only by the policy.

  Raises:
    ValueError: if a method of the environment, or the policy, returns a shape that does
      not match the environment; the message names it and both shapes.

  Example:
    >>> from jsharp.control.navigation import Navigation
    >>> still = lambda params, x: jnp.concatenate([0 * x, 0 * x - 20], axis=1)
    >>> batch = Batch(jax.random.split(jax.random.key(0), 3), jnp.full((3, 2), 0.3))
    >>> found = roll_out(Navigation(horizon=5), still, None, batch)
    >>> found.actions.shape, found.rewards[0].round(2).tolist()[:2]
    ((3, 5, 2), [-0.41999998688697815, -0.41999998688697815])
  """
  check_environment(environment)
  keys, goals = batch.inputs, batch.targets
  constants = jax.lax.stop_gradient(params)

  def noise_of(key: jax.Array) -> jax.Array:
    shape = (environment.horizon, environment.action_size)
    return jax.random.normal(jax.random.fold_in(key, 1), shape, jnp.float32)

  def start(key: jax.Array, goal: jax.Array) -> Any:
    return environment.reset(jax.random.fold_in(key, 0), goal)

  def act(carry: Any, noise: jax.Array) -> tuple[Any, Trajectories]:
    states, alive = carry
    observations = jax.vmap(environment.observe)(states)
    outputs = apply_fn(constants, observations)
    if outputs.shape != (len(goals), 2 * environment.action_size):
      raise ValueError(
        f"apply_fn returns {list(outputs.shape)} for observations "
        f"{list(observations.shape)}, but {environment.name} has action_size="
        f"{environment.action_size}; return {[len(goals), 2 * environment.action_size]}"
        ", means and then logarithms of standard deviations"
      )
    means, log_scales = jnp.split(outputs, 2, axis=-1)
    actions = means + jnp.exp(log_scales) * noise
    after, rewards, over = jax.vmap(environment.step)(states, actions, goals)
    seen = Trajectories(observations, actions, while_alive(alive, rewards), alive)
    alive = jnp.where(over.astype(bool), 0, alive)
    # A trajectory keeps the last state from which it acts: the state that ends it and
    # later ones may be NaN, and derivatives of masked values would be NaN too.
    return (jax.vmap(_moved)(alive > 0, after, states), alive), seen

  noise = jnp.moveaxis(jax.vmap(noise_of)(keys), 0, 1)
  states = jax.vmap(start)(keys, goals)
  alive = jnp.ones(goals.shape[0], jnp.float32)
  _, seen = jax.lax.scan(act, (states, alive), noise)
  return jax.lax.stop_gradient(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), seen))


def not_finite(
  environment: Environment, found: Trajectories, goal: jax.Array
) -> str | None:
  """An error message if an environment has returned NaN or infinity.

  Args:
    environment: the environment of the trajectories.
    found: the trajectories, not traced.
    goal: the goal of their task.

  Returns:
    A message with the method, the value, the time and the fix; None if all observations
    and rewards are finite, or the first non-finite value is an action.

  Example:
    >>> from jsharp.control.navigation import Navigation
    >>> zeros = jnp.zeros((1, 3))
    >>> found = Trajectories(
    ...   zeros[..., None], zeros[..., None], zeros.at[0, 1].set(jnp.inf), zeros + 1)
    >>> print(not_finite(Navigation(), found, jnp.ones(2)))
    navigation.step returns a reward of inf at time 1 of a trajectory to the goal ...
  """
  alive = np.asarray(found.alive) > 0
  for time in range(alive.shape[1]):
    for method, what, values in (
      ("observe" if time else "reset", "an observation", found.observations),
      ("", "", found.actions),
      ("step", "a reward", found.rewards),
    ):
      seen = np.asarray(values)[:, time][alive[:, time]]
      wrong = seen[~np.isfinite(seen)]
      if wrong.size and not method:
        return None  # The policy itself returned NaN or infinity.
      if wrong.size:
        return (
          f"{environment.name}.{method} returns {what} of {wrong[0]} at time {time} of "
          f"a trajectory to the goal {np.asarray(goal).tolist()}; return finite "
          "numbers for all actions, for example by limiting a growing state"
        )
  return None


def while_alive(alive: jax.Array, values: jax.Array) -> jax.Array:
  """Sets values after the end of a trajectory to zero.

  Example:
    >>> while_alive(jnp.array([1.0, 0.0]), jnp.array([2.0, jnp.nan])).tolist()
    [2.0, 0.0]
  """
  return jnp.where(alive > 0, values, jnp.zeros_like(values))


def _moved(is_alive: jax.Array, after: Any, before: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(is_alive, a, b), after, before)
