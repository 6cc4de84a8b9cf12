"""Normalisation by the fixed statistics of pretrained parameters."""

from collections.abc import Callable

import jax
from flax import linen as nn

from jsharp.nn._channels import normalise
from jsharp.tree import at_least_float32


class FrozenBatchNorm(nn.Module):
  """Batch normalisation by fixed statistics.

  The running averages of pretraining are parameters here: "mean" and "variance",
  `[channels]` each, in addition to "scale" and "offset". They have no gradient, so no
  loop changes them. Their initial values are 0 and 1.

  Attributes:
    epsilon: added to the variance.
    pool: whether to max-pool 2x2 windows of the result.
    scale_init: initialiser of "scale".

  Example:
    >>> import jax.numpy as jnp
    >>> layer = FrozenBatchNorm()
    >>> params = {"mean": jnp.ones(1), "variance": 4 * jnp.ones(1),
    ...   "scale": jnp.ones(1), "offset": jnp.zeros(1)}
    >>> layer.apply({"params": params}, jnp.array([[5.0]])).round(3).tolist()
    [[2.0]]
  """

  epsilon: float = 1e-5
  pool: bool = False
  scale_init: Callable[..., jax.Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises `x`, `[batch, ..., channels]`."""
    channels = (x.shape[-1],)
    wide = at_least_float32(x.dtype)
    mean = self.param("mean", nn.initializers.zeros, channels, wide)
    variance = self.param("variance", nn.initializers.ones, channels, wide)
    return normalise(
      x,
      jax.lax.stop_gradient(mean),
      jax.lax.stop_gradient(variance),
      scale=self.param("scale", self.scale_init, channels, x.dtype),
      offset=self.param("offset", nn.initializers.zeros, channels, x.dtype),
      epsilon=self.epsilon,
      pool=self.pool,
    )
