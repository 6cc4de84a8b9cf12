"""Layer normalisation of tokens."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.tree import at_least_float32

_EPSILON = 1e-6


class LayerNorm(nn.Module):
  """Normalises every token by its own mean and variance.

  Flax's layer by default computes the variance as a difference of means of squares, and
  does not accept double precision under strict dtype promotion.
  """

  @nn.compact
  def __call__(self, x):
    channels = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, channels, x.dtype)
    offset = self.param("offset", nn.initializers.zeros, channels, x.dtype)
    dtype = x.dtype
    wide = at_least_float32(dtype)
    x, scale, offset = (a.astype(wide) for a in (x, scale, offset))
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True)
    axes = tuple(range(x.ndim - 1))
    scale, offset = (jnp.expand_dims(a, axes) for a in (scale, offset))
    x = x * jax.lax.rsqrt(variance + _EPSILON) * scale + offset
    return x.astype(dtype)
