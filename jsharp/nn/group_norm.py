"""Group normalisation."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.tree import at_least_float32


class GroupNorm(nn.Module):
  """Normalises each example by the statistics of groups of its channels.

  Mean and (biased) variance are taken over space and the channels of one group, for
  each example (Wu and He 2018, arXiv 1803.08494). So an output depends on no other
  example, and transductive and inductive prediction agree. Parameters: "scale" and
  "offset", `[channels]` each.

  Attributes:
    group_size: channels per group; the greatest common divisor with the number of
      channels is used. 16 is one of the paper's two settings. None for one group of all
      channels, which is layer normalisation (Ba et al. 2016, arXiv 1607.06450).
    epsilon: added to the variance.
    scale_init: initialiser of "scale".

  Example:
    >>> import jax.numpy as jnp
    >>> layer = GroupNorm(group_size=2)
    >>> x = jnp.array([[1.0, 3.0, 0.0, 4.0]])
    >>> layer.apply(layer.init(jax.random.key(0), x), x).round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
  """

  group_size: int | None = 16
  epsilon: float = 1e-5
  scale_init: Callable[..., jax.Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises `x`, `[batch, ..., channels]`."""
    channels = x.shape[-1]
    size = channels if self.group_size is None else math.gcd(self.group_size, channels)
    scale = self.param("scale", self.scale_init, (channels,), x.dtype)
    offset = self.param("offset", nn.initializers.zeros, (channels,), x.dtype)
    wide = at_least_float32(x.dtype)
    grouped = x.astype(wide).reshape(*x.shape[:-1], channels // size, size)
    axes = (*range(1, x.ndim - 1), x.ndim)
    centred = grouped - grouped.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    normalised = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
    per_channel = (1,) * (x.ndim - 1) + (-1,)
    scaled = normalised * scale.astype(wide).reshape(per_channel)
    return (scaled + offset.astype(wide).reshape(per_channel)).astype(x.dtype)
