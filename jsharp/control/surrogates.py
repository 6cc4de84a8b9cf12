"""Surrogate losses whose derivatives estimate those of an expected return.

Trajectories are sampled from the policy that is differentiated, and no derivative flows
through the sampling. A surrogate has the value 0, and its derivatives estimate those of
the expected return, as means over trajectories: MAML needs the first derivative in its
inner loop and the second for its meta-gradient.

Trajectories can also stay fixed while the policy changes. `before` is then the
log-density under the policy that sampled them, and likelihood ratios other than 1
weight the trajectories.
"""

import jax
import jax.numpy as jnp


def dice(
  log_probs: jax.Array, advantages: jax.Array, before: jax.Array | None = None
) -> jax.Array:
  """The surrogate with unbiased derivatives of every order.

  `sum_t (box(l_0 + ... + l_t) - box(l_0 + ... + l_{t-1})) A_t` with `box(x) = exp(x -
  stop_gradient(x))`: DiCE (Foerster et al. 2018, arXiv 1802.05098) with advantages
  (Loaded DiCE, Farquhar et al. 2019, arXiv 1909.10549). A baseline that depends on the
  state, and not on the action, leaves it unbiased.

  Args:
    log_probs: `[..., horizon]`, the log-density of each action that was taken.
    advantages: `[..., horizon]`, constants.
    before: `[..., horizon]`, `log_probs` of the policy that sampled the trajectories,
      if it is a different one.

  Returns:
    `[...]` with these derivatives, to be maximised; zero if the policies are equal.

  Example:
    >>> score, advantages = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    >>> slope = jax.grad(lambda w: dice(w * score, advantages))
    >>> float(slope(0.5)), float(jax.grad(slope)(0.5))
    (11.0, 35.0)
  """
  before = jax.lax.stop_gradient(log_probs) if before is None else before
  until, drawn = jnp.cumsum(log_probs, axis=-1), jnp.cumsum(before, axis=-1)
  ratios = jnp.exp(until - drawn) - jnp.exp(until - log_probs - (drawn - before))
  return (ratios * advantages).sum(axis=-1)


def low_variance(
  log_probs: jax.Array, advantages: jax.Array, before: jax.Array | None = None
) -> jax.Array:
  """The surrogate whose second derivative has lower variance but is biased.

  `sum_t box(l_t) A_t` minus its value: the low variance curvature of ProMP (Rothfuss et
  al. 2019, arXiv 1810.06784, equation 7). It leaves out the effect of earlier actions
  on later rewards; the first derivative is unbiased.

  Args:
    log_probs: as for `dice`.
    advantages: likewise.
    before: likewise.

  Returns:
    As for `dice`.

  Example:
    >>> score, advantages = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    >>> slope = jax.grad(lambda w: low_variance(w * score, advantages))
    >>> float(slope(0.5)), float(jax.grad(slope)(0.5))
    (11.0, 19.0)
  """
  before = jax.lax.stop_gradient(log_probs) if before is None else before
  return ((jnp.exp(log_probs - before) - 1) * advantages).sum(axis=-1)


def clipped(
  log_probs: jax.Array,
  advantages: jax.Array,
  before: jax.Array,
  *,
  clip: float | jax.Array,
) -> jax.Array:
  """The clipped objective of outer steps on fixed trajectories.

  `sum_t min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t)` minus its value at ratios of
  1, which removes the incentive to leave the range (Schulman et al. 2017, arXiv
  1707.06347; ProMP applies it after adaptation). With an infinite range it is the
  surrogate of TRPO.

  Args:
    log_probs: as for `dice`.
    advantages: likewise.
    before: likewise; constants.
    clip: the range around 1 within which a ratio counts.

  Returns:
    `[...]`, to be maximised.

  Example:
    >>> def gain(log_prob, advantage):
    ...   each = jnp.array([log_prob]), jnp.array([advantage]), jnp.zeros(1)
    ...   return clipped(*each, clip=0.2)
    >>> [float(jax.grad(gain)(x, 3.0)) for x in (0.0, 0.5)]
    [3.0, 0.0]
  """
  ratios = jnp.exp(log_probs - before)
  inside = jnp.clip(ratios, 1 - clip, 1 + clip)
  least = jnp.minimum(ratios * advantages, inside * advantages)
  return (least - advantages).sum(axis=-1)


def generalised_advantages(
  rewards: jax.Array, values: jax.Array, *, discount: float, decay: float
) -> jax.Array:
  """Generalised advantage estimation, between one-step differences and full returns.

  `A_t = d_t + discount * decay * A_{t+1}` with `d_t = r_t + discount * V_{t+1} - V_t`
  and zero after the horizon (Schulman et al. 2016, arXiv 1506.02438). `decay=1` with
  values of zero gives the returns themselves.

  Args:
    rewards: `[..., horizon]`, zero after a trajectory's end.
    values: `[..., horizon]`, likewise.
    discount: weight of the next step's reward.
    decay: the paper's lambda; 1 is the return minus the value, 0 the one-step
      difference.

  Returns:
    `[..., horizon]`.

  Example:
    >>> rewards, values = jnp.array([1.0, 2.0]), jnp.array([0.5, 1.0])
    >>> generalised_advantages(rewards, values, discount=1.0, decay=1.0).tolist()
    [2.5, 1.0]
  """
  after = jnp.concatenate([values[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1)
  differences = rewards + discount * after - values

  def add(later: jax.Array, difference: jax.Array) -> tuple[jax.Array, jax.Array]:
    now = difference + discount * decay * later
    return now, now

  start = jnp.zeros_like(differences[..., 0])
  _, found = jax.lax.scan(add, start, jnp.moveaxis(differences, -1, 0), reverse=True)
  return jnp.moveaxis(found, 0, -1)


def linear_baseline(
  observations: jax.Array, returns: jax.Array, alive: jax.Array
) -> jax.Array:
  """A linear value function of observation and time, fitted to one task's returns.

  Least squares on the observation, its square, the time (in hundreds of steps), its
  square and cube, and 1 (Duan et al. 2016, arXiv 1604.06778), with a ridge of 1e-5 of
  the mean square.

  Args:
    observations: `[num_trajectories, horizon, observation_size]`.
    returns: `[num_trajectories, horizon]`.
    alive: `[num_trajectories, horizon]`, 1 until a trajectory's end and 0 after it.

  Returns:
    `[num_trajectories, horizon]` values, zero after the end.

  Example:
    >>> returns = 3 - jnp.arange(50.0)[None] / 10
    >>> values = linear_baseline(jnp.zeros((1, 50, 2)), returns, jnp.ones((1, 50)))
    >>> bool(jnp.allclose(values, returns, atol=0.01))
    True
  """
  clipped = jnp.clip(observations, -10, 10)
  time = jnp.arange(returns.shape[1], dtype=returns.dtype) / 100
  powers = jnp.stack([time, time**2, time**3, jnp.ones_like(time)], axis=-1)
  powers = jnp.broadcast_to(powers[None], (len(returns), *powers.shape))
  features = jnp.concatenate([clipped, clipped**2, powers], axis=-1)
  features = (features * alive[..., None]).reshape(-1, features.shape[-1])
  targets = (returns * alive).reshape(-1)
  products = jnp.matmul(features.T, features, precision="highest")
  ridge = 1e-5 * jnp.trace(products) / len(products)
  weights = jax.scipy.linalg.solve(
    products + ridge * jnp.eye(len(products), dtype=products.dtype),
    jnp.matmul(features.T, targets, precision="highest"),
    assume_a="pos",
  )
  return jnp.matmul(features, weights, precision="highest").reshape(returns.shape)
