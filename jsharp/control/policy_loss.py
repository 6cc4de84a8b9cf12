"""The loss of a policy on one task, estimated from its trajectories."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jsharp._checks import check_choice
from jsharp.control.environment import Environment
from jsharp.control.gaussian import kl_divergence, log_density
from jsharp.control.roll_out import Trajectories, roll_out, while_alive
from jsharp.control.surrogates import (
  clipped,
  dice,
  generalised_advantages,
  linear_baseline,
  low_variance,
)
from jsharp.types import ApplyFn, Batch, Metrics, Params

Surrogate = Literal["dice", "low_variance"]

_SURROGATES: dict[str, Callable[..., jax.Array]] = {
  "dice": dice,
  "low_variance": low_variance,
}


class Held(NamedTuple):
  """Trajectories that stay fixed while the policy changes.

  Every leaf has a first axis `[num_trajectories, ...]`.

  Attributes:
    found: the trajectories.
    outputs: `[num_trajectories, horizon, 2 * action_size]`, the outputs of the policy
      that acted; None if it is the policy that is evaluated.
    advantages: `[num_trajectories, horizon]`.
    clip: `[num_trajectories]`, the range around 1 within which a likelihood ratio
      counts, infinity for no limit: the objective of an outer step. None for an inner
      step, which uses the loss's own surrogate.
  """

  found: Trajectories
  outputs: jax.Array | None
  advantages: jax.Array
  clip: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
  """The loss of a policy, for `jsharp.maml` and every other inner and outer loop.

  Called as `loss_fn(params, batch)`, with `batch` as for `roll_out`, it rolls the
  policy out with these parameters: each inner step, SAM's perturbed point and the query
  set use trajectories of their own policy. Called with a batch from `hold`, it
  evaluates the policy on those trajectories, by likelihood ratios. Created by
  `policy_loss`.

  Attributes:
    environment: the environment.
    apply_fn: as for `roll_out`.
    surrogate: the surrogate for fresh trajectories, and for inner steps on fixed ones.
    discount: the discount of rewards.
    decay: lambda of the generalised advantages.

  Example:
    >>> from jsharp.control.navigation import Navigation
    >>> policy = lambda w, x: jnp.concatenate([x * w, 0 * x], axis=1)
    >>> loss_fn = policy_loss(Navigation(horizon=5), policy)
    >>> batch = Batch(jax.random.split(jax.random.key(0), 3), jnp.full((3, 2), 0.3))
    >>> held = loss_fn.hold(jnp.float32(0.1), batch)
    >>> fresh, again = (jax.grad(loss_fn, has_aux=True)(0.1, b)[0]
    ...                 for b in (batch, held))
    >>> bool(jnp.allclose(fresh, again, rtol=1e-4))
    True
    >>> float(loss_fn.divergence(0.1, held)), bool(loss_fn.divergence(0.2, held) > 0)
    (0.0, True)
  """

  environment: Environment
  apply_fn: ApplyFn
  surrogate: Surrogate = "dice"
  discount: float = 0.99
  decay: float = 1.0

  def __call__(self, params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
    """The loss and its metrics, see `policy_loss`."""
    if not isinstance(batch.inputs, Held):
      found = roll_out(self.environment, self.apply_fn, params, batch)
      gains = self._advantages(found)
      slopes = self._slopes(params, Held(found, None, gains))
      slopes -= jax.lax.stop_gradient(slopes)  # The value is exactly the return's.
    else:
      found, slopes = batch.inputs.found, self._slopes(params, batch.inputs)
    returned = found.rewards.sum(axis=1).mean()
    return slopes - returned, {"loss": -returned, "return": returned}

  def _slopes(self, params: Params, held: Held) -> jax.Array:
    """The surrogate's part of the loss, a mean over living steps."""
    alive, actions, before = held.found.alive, held.found.actions, None
    log_probs = log_density(self._outputs(params, held.found), actions)
    log_probs = while_alive(alive, log_probs)
    if held.outputs is not None:
      before = while_alive(alive, log_density(held.outputs, actions))
    if before is not None and held.clip is not None:
      gained = clipped(log_probs, held.advantages, before, clip=held.clip[:, None])
    else:
      gained = _SURROGATES[self.surrogate](log_probs, held.advantages, before)
    return -gained.sum() / alive.sum()

  def hold(self, params: Params, batch: Batch, *, clip: float | None = None) -> Batch:
    """A batch of fixed trajectories.

    Args:
      params: the parameters of the policy that acts.
      batch: as for `roll_out`; or with this policy's `Trajectories` as its inputs.
      clip: as in `Held`, the same for all trajectories.

    Returns:
      A batch with `Held` inputs, constants to every derivative.
    """
    found = batch.inputs
    if not isinstance(found, Trajectories):
      found = roll_out(self.environment, self.apply_fn, params, batch)
    outputs = self._outputs(params, found)
    ranges = None if clip is None else jnp.full(len(found.alive), clip, outputs.dtype)
    held = Held(found, outputs, self._advantages(found), ranges)
    return Batch(jax.lax.stop_gradient(held), batch.targets)

  def outputs(self, params: Params, held: Batch) -> jax.Array:
    """The outputs of a policy on fixed trajectories, like `Held.outputs`."""
    return self._outputs(params, held.inputs.found)

  def divergence_of(self, outputs: jax.Array, held: Batch) -> jax.Array:
    """The mean divergence over steps, of the acting policy from given outputs."""
    alive = held.inputs.found.alive
    each = while_alive(alive, kl_divergence(held.inputs.outputs, outputs))
    return each.sum() / alive.sum()

  def divergence(self, params: Params, held: Batch) -> jax.Array:
    """As `divergence_of`, for the outputs of a policy."""
    return self.divergence_of(self.outputs(params, held), held)

  def _outputs(self, params: Params, found: Trajectories) -> jax.Array:
    seen = found.observations.reshape(-1, found.observations.shape[-1])
    return self.apply_fn(params, seen).reshape(*found.actions.shape[:2], -1)

  def _advantages(self, found: Trajectories) -> jax.Array:
    zeros, rewards = jnp.zeros_like(found.rewards), found.rewards
    returns = generalised_advantages(rewards, zeros, discount=self.discount, decay=1.0)
    values = linear_baseline(found.observations, returns, found.alive)
    options: Any = {"discount": self.discount, "decay": self.decay}
    gains = generalised_advantages(rewards, values, **options) * found.alive
    number = found.alive.sum()
    centred = (gains - gains.sum() / number) * found.alive
    spread = jnp.sqrt(jnp.square(centred).sum() / number)
    return jax.lax.stop_gradient(centred / (spread + 1e-8))


def policy_loss(
  environment: Environment,
  apply_fn: ApplyFn,
  *,
  surrogate: Surrogate = "dice",
  discount: float = 0.99,
  decay: float = 1.0,
) -> PolicyLoss:
  """The loss of a policy, for `jsharp.maml` and every other inner and outer loop.

  The policy is rolled out with the parameters at which the loss is evaluated, so each
  inner step, SAM's perturbed point and the query set use trajectories of their own
  policy. Steps that share a batch share its noise.

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
    ValueError: if there is no such surrogate.

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
  return PolicyLoss(environment, apply_fn, surrogate, discount, decay)
