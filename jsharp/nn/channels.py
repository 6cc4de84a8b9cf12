"""What the normalisation layers share: statistics per channel, and their use."""

import jax
import jax.numpy as jnp
from jax import lax


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and (biased) variance over all axes but the last, `[channels]` each."""
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes)
  return mean, jnp.square(x - _like(mean, x)).mean(axes)


def normalise(
  x: jax.Array,
  mean: jax.Array,
  variance: jax.Array,
  *,
  scale: jax.Array | None,
  offset: jax.Array | None,
  epsilon: float,
) -> jax.Array:
  """`(x - mean) / sqrt(variance + epsilon) * scale + offset`, per channel."""
  factor = lax.rsqrt(variance + epsilon)
  if scale is not None:
    factor *= scale
  shift = -mean * factor
  if offset is not None:
    shift += offset
  # One multiplication and addition per element: every order of derivative reads
  # the array less often than if it were centred first.
  return x * _like(factor, x) + _like(shift, x)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
  return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))
