"""The loss of a policy on one task: roll it out, and say where it should have gone."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jsharp._checks import check_choice
from jsharp.control.environment import Environment
from jsharp.control.surrogates import (
  dice,
  generalised_advantages,
  linear_baseline,
  low_variance,
)
from jsharp.types import ApplyFn, Batch, LossFn, Metrics, Params

Surrogate = Literal["dice", "low_variance"]

_SURROGATES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "dice": dice,
  "low_variance": low_variance,
}


class Trajectories(NamedTuple):
  """What a policy did on one task.

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
  """Lets a policy act; a constant to every derivative.

  Args:
    environment: where.
    apply_fn: `apply_fn(params, observations) -> [n, 2 * action_size]`: means, then
      logarithms of standard deviations, of a Gaussian.
    params: of the policy.
    batch: inputs `[num_trajectories]` keys, one for each trajectory: of its beginning
      and of the noise of its actions; targets `[num_trajectories, goal_size]`, the
      task's goal.

  Returns:
    The trajectories. Those of one key differ with the policy alone.

  Example:
    >>> from jsharp.control.navigation import Navigation
    >>> still = lambda params, x: jnp.concatenate([0 * x, 0 * x - 20], axis=1)
    >>> batch = Batch(jax.random.split(jax.random.key(0), 3), jnp.full((3, 2), 0.3))
    >>> found = roll_out(Navigation(horizon=5), still, None, batch)
    >>> found.actions.shape, found.rewards[0].round(2).tolist()[:2]
    ((3, 5, 2), [-0.41999998688697815, -0.41999998688697815])
  """
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
    means, log_scales = jnp.split(apply_fn(constants, observations), 2, axis=-1)
    actions = means + jnp.exp(log_scales) * noise
    after, rewards, over = jax.vmap(environment.step)(states, actions, goals)
    # Behind its end a trajectory stands still: what is there may be no number.
    states = jax.vmap(_moved)(alive > 0, after, states)
    seen = Trajectories(observations, actions, _while(alive, rewards), alive)
    return (states, alive * (1 - over.astype(alive.dtype))), seen

  noise = jnp.moveaxis(jax.vmap(noise_of)(keys), 0, 1)
  states = jax.vmap(start)(keys, goals)
  alive = jnp.ones(goals.shape[0], jnp.float32)
  _, seen = jax.lax.scan(act, (states, alive), noise)
  return jax.lax.stop_gradient(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), seen))


def policy_loss(
  environment: Environment,
  apply_fn: ApplyFn,
  *,
  surrogate: Surrogate = "dice",
  discount: float = 0.99,
  decay: float = 1.0,
) -> LossFn:
  """The loss of a policy, for `jsharp.maml` and every other inner and outer loop.

  The policy is rolled out with the parameters that the loss is asked for, so each inner
  step, SAM's perturbed point and the query set see trajectories of their own policy.
  Steps that share a batch share its noise.

  Advantages are those of a linear baseline that is fitted to the batch, less their mean
  and over their standard deviation. Of the discount, which they see, the weight
  `discount ** t` of a step is left out, as is usual.

  Args:
    environment: where.
    apply_fn: as for `roll_out`.
    surrogate: `"dice"`, right at every order of derivative, or `"low_variance"`, which
      is steadier and biased from the second on.
    discount: of rewards.
    decay: lambda of the generalised advantages.

  Returns:
    `loss_fn(params, batch) -> (loss, metrics)`, `batch` as for `roll_out`. The loss is
    the negative mean return, undiscounted; its derivatives are those of the surrogate,
    a mean over steps. `metrics` has `"loss"` and `"return"`.

  Raises:
    ValueError: if `surrogate` is another word.

  Example:
    >>> from jsharp.control.navigation import Navigation
    >>> policy = lambda w, x: jnp.concatenate([x * w, 0 * x], axis=1)
    >>> loss_fn = policy_loss(Navigation(horizon=5), policy)
    >>> batch = Batch(jax.random.split(jax.random.key(0), 3), jnp.full((3, 2), 0.3))
    >>> loss, metrics = loss_fn(jnp.float32(0.1), batch)
    >>> bool(loss == -metrics["return"])
    True
  """
  check_choice("surrogate", surrogate, tuple(_SURROGATES))
  estimate = _SURROGATES[surrogate]

  def loss_fn(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
    found = roll_out(environment, apply_fn, params, batch)
    seen = found.observations.reshape(-1, found.observations.shape[-1])
    outputs = apply_fn(params, seen).reshape(*found.actions.shape[:2], -1)
    log_probs = _while(found.alive, log_density(outputs, found.actions))
    gains = jax.lax.stop_gradient(_advantages(found, discount=discount, decay=decay))
    slopes = -estimate(log_probs, gains).sum() / found.alive.sum()
    returned = found.rewards.sum(axis=1).mean()
    loss = slopes - jax.lax.stop_gradient(slopes) - returned
    return loss, {"loss": -returned, "return": returned}

  return loss_fn


def log_density(outputs: jax.Array, actions: jax.Array) -> jax.Array:
  """Logarithm of the density of actions under a Gaussian policy.

  Args:
    outputs: `[..., 2 * action_size]`: means, then logarithms of standard deviations.
    actions: `[..., action_size]`.

  Returns:
    `[...]`.

  Example:
    >>> round(float(log_density(jnp.zeros(2), jnp.zeros(1))), 4)
    -0.9189
  """
  means, log_scales = jnp.split(outputs, 2, axis=-1)
  away = (actions - means) * jnp.exp(-log_scales)
  each = -0.5 * jnp.square(away) - log_scales - 0.5 * math.log(2 * math.pi)
  return each.sum(axis=-1)


def _while(alive: jax.Array, values: jax.Array) -> jax.Array:
  return jnp.where(alive > 0, values, jnp.zeros_like(values))


def _moved(is_alive: jax.Array, after: Any, before: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(is_alive, a, b), after, before)


def _advantages(found: Trajectories, *, discount: float, decay: float) -> jax.Array:
  zeros = jnp.zeros_like(found.rewards)
  returns = generalised_advantages(found.rewards, zeros, discount=discount, decay=1.0)
  values = linear_baseline(found.observations, returns, found.alive)
  gains = generalised_advantages(found.rewards, values, discount=discount, decay=decay)
  gains = gains * found.alive
  number = found.alive.sum()
  centred = (gains - gains.sum() / number) * found.alive
  spread = jnp.sqrt(jnp.square(centred).sum() / number)
  return centred / (spread + 1e-8)
