"""DropBlock: dropout of square blocks of a feature map."""

import jax
import jax.numpy as jnp
from flax import linen as nn

_RAMP = 40_000


class DropBlock(nn.Module):
  """Zeroes squares of each channel's map (Ghiasi et al. 2018, arXiv 1810.12890).

  Only in training. The dropped fraction rises linearly to `rate` over the first 40,000
  passes, and the rest is scaled so that the mean is unchanged, as in MetaOptNet's code.
  The collection `batch_stats` counts the passes; random numbers come from the stream
  "dropout".

  Attributes:
    rate: the final fraction of activations that is dropped.
    size: the side of a square in pixels; a smaller map is dropped as a whole.

  Example:
    >>> layer, x = DropBlock(0.5), jnp.ones((2, 6, 6, 3))
    >>> made = layer.init(jax.random.key(0), x, False)
    >>> made["batch_stats"]["passes"].tolist(), layer.apply(made, x, False).min()
    (0.0, Array(1., dtype=float32))
  """

  rate: float
  size: int = 5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Drops squares of `x`, `[batch, height, width, channels]`."""
    passes = self.variable("batch_stats", "passes", jnp.zeros, (), jnp.float32)
    if not train:
      return x
    rate = self.rate * jnp.minimum(passes.value / _RAMP, 1)
    if not self.is_initializing():
      passes.value = passes.value + 1
    return drop_blocks(self.make_rng("dropout"), x, rate, size=self.size)


def drop_blocks(
  key: jax.Array, x: jax.Array, rate: jax.Array | float, *, size: int
) -> jax.Array:
  """Zeroes squares of each channel's map and scales the rest.

  Args:
    key: random key.
    x: `[batch, height, width, channels]`.
    rate: the fraction of activations that is dropped, not counting overlaps of squares.
    size: the side of a square in pixels, limited to the side of the map.

  Returns:
    An array like `x`, multiplied by a mask of mean one.

  Example:
    >>> x = jnp.ones((64, 8, 8, 4))
    >>> dropped = drop_blocks(jax.random.key(0), x, 0.1, size=3)
    >>> round(float(dropped.mean()), 4), round(float((dropped == 0).mean()), 2)
    (1.0, 0.09)
  """
  height, width = x.shape[1:3]
  size = min(size, height, width)
  corners = (height - size + 1) * (width - size + 1)
  gamma = rate / size**2 * height * width / corners
  shape = (x.shape[0], height - size + 1, width - size + 1, x.shape[3])
  seeds = jax.random.bernoulli(key, gamma, shape)
  margin = (size - 1, size - 1)
  around = jnp.pad(seeds.astype(x.dtype), ((0, 0), margin, margin, (0, 0)))
  dropped = jax.lax.reduce_window(
    around, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 1, 1, 1), "VALID"
  )
  kept = 1 - dropped
  share = kept.astype(jnp.float32).mean()
  return x * kept / jnp.maximum(share, 1e-6).astype(x.dtype)
