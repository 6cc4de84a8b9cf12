"""A convolution with statistics and pooling, without storing the full map."""

import jax
import jax.numpy as jnp
from jax import lax

from jsharp.nn._channels import moments_of_sums
from jsharp.nn._chunks import merge, num_chunks, split
from jsharp.nn.convolution import conv2d
from jsharp.nn.pooling import max_pool
from jsharp.tree import at_least_float32
from jsharp.types import Convolution

_LARGE = 2_000_000
"""A map of more entries than this has left a CPU's cache when it is read again."""

_MANY_CHANNELS = 8
"""From this many input channels on, recomputing the convolution costs too much."""

_CHUNK_ENTRIES = 500_000


def is_worthwhile(x: jax.Array, w: jax.Array) -> bool:
  """Whether `moments_and_pool` is faster than a convolution followed by the rest.

  It is on a CPU, for large maps with few input channels, as in first layers: there,
  recomputing the convolution for the derivative costs less than the memory traffic. The
  answer is no if the number of examples is a symbolic dimension of `jax.export`.

  Args:
    x: `[n, height, width, in_channels]`.
    w: `[kernel_height, kernel_width, in_channels, out_channels]`.

  Example:
    >>> is_worthwhile(jnp.ones([1, 4, 4, 3]), jnp.ones([3, 3, 3, 8]))
    False
  """
  if not isinstance(x.shape[0], int):
    return False
  large = x.size // x.shape[-1] * w.shape[-1] > _LARGE
  return large and x.shape[-1] < _MANY_CHANNELS and jax.default_backend() == "cpu"


def moments_and_pool(
  x: jax.Array,
  w: jax.Array,
  *,
  sign: jax.Array | None,
  convolution: Convolution = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`moments` and `max_pool` of `conv2d(x, w)`, a chunk of examples at a time.

  The maximum of a window depends only on the sign of the normalisation's factor, not on
  the statistics, so one pass computes both. Derivatives of every order use the same
  chunks and recompute the convolution, so the full map is never stored.

  Args:
    x: `[n, height, width, in_channels]`.
    w: `[kernel_height, kernel_width, in_channels, out_channels]`.
    sign: as for `max_pool`.
    convolution: as for `conv2d`.

  Returns:
    Mean and variance, `[out_channels]`, and the pooled map
    `[n, height // 2, width // 2, out_channels]`.

  Example:
    >>> x, w = jnp.ones([2, 4, 4, 1]), jnp.ones([1, 1, 1, 3])
    >>> mean, variance, pooled = moments_and_pool(x, w, sign=None)
    >>> mean.tolist(), variance.tolist(), pooled.shape
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], (2, 2, 2, 3))
  """
  n, *size, _ = x.shape
  entries = size[0] * size[1] * w.shape[-1]
  wide = at_least_float32(x.dtype)

  def convolved(x: jax.Array) -> jax.Array:
    return conv2d(x, w, convolution=convolution)

  # As in `moments`.
  near = lax.stop_gradient(convolved(x[:1]).astype(wide).mean((0, 1, 2)))

  def one_chunk(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    y = convolved(x)
    centred = y.astype(wide) - jnp.expand_dims(near, (0, 1, 2))
    sums = centred.sum((0, 1, 2)), jnp.square(centred).sum((0, 1, 2))
    return *sums, max_pool(y, sign=sign)

  chunks = split(x, num_chunks(n, entries, _CHUNK_ENTRIES))
  again = jax.checkpoint(one_chunk, prevent_cse=False)
  mean, square, pooled = lax.map(again, chunks)
  pixels = n * size[0] * size[1]
  statistics = moments_of_sums(near, mean.sum(0) / pixels, square.sum(0) / pixels)
  return *statistics, merge(pooled, n)
