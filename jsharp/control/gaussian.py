"""Densities and divergences of Gaussian policies, given a network's outputs."""

import math

import jax
import jax.numpy as jnp


def log_density(outputs: jax.Array, actions: jax.Array) -> jax.Array:
  """The log-density of actions under a Gaussian policy.

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


def kl_divergence(before: jax.Array, after: jax.Array) -> jax.Array:
  """The Kullback-Leibler divergence of one Gaussian policy from another, exactly.

  Args:
    before: `[..., 2 * action_size]` as for `log_density`: the policy over whose actions
      the expectation is taken.
    after: likewise: the policy that is compared with it.

  Returns:
    `[...]`, zero where the policies are equal and positive elsewhere.

  Example:
    >>> float(kl_divergence(jnp.zeros(2), jnp.array([2.0, 0.0])))
    2.0
  """
  means, log_scales = jnp.split(before, 2, axis=-1)
  other_means, other_log_scales = jnp.split(after, 2, axis=-1)
  larger = other_log_scales - log_scales
  away = (means - other_means) * jnp.exp(-other_log_scales)
  each = larger + 0.5 * (jnp.exp(-2 * larger) + jnp.square(away) - 1)
  return each.sum(axis=-1)
