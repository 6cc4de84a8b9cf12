"""What the normalisation layers share: statistics per channel, and their use."""

import jax
import jax.numpy as jnp
from jax import lax

from jsharp.nn.pooling import max_pool
from jsharp.tree import at_least_float32


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and (biased) variance over all axes but the last, `[channels]` each.

  Both are sums over `x` less the mean of its first row, which moves neither: centring
  by the mean itself reads and writes the array once more at every order of derivative,
  and the mean of squares less the square of the mean loses all digits where a mean is
  far above the deviation. No row of `n` is further from the mean than `sqrt(n - 1)`
  deviations, so the rounding of the sums is magnified by `n` at worst, and not at all
  where the rows are alike. The variance is never taken smaller than that rounding, so
  not below zero. Dtypes narrower than float32 are summed in float32, and their mean and
  variance stay float32.

  Raises:
    ValueError: if there is no row.
  """
  if not x.size:
    raise ValueError(
      f"x has shape {x.shape}, and of nothing there are no statistics; pass at least "
      "one row"
    )
  axes = tuple(range(x.ndim - 1))
  x = x.astype(at_least_float32(x.dtype))
  # The result does not depend on it, so neither do its derivatives.
  near = lax.stop_gradient(x[0].mean(axes[:-1]))
  centred = x - _like(near, x)
  return moments_of_sums(near, centred.mean(axes), jnp.square(centred).mean(axes))


def moments_of_sums(
  near: jax.Array, mean: jax.Array, square: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`moments` from the mean and the mean square of the array less `near`."""
  variance = square - jnp.square(mean)
  floor = jnp.finfo(square.dtype).eps * square
  return near + mean, jnp.where(variance < floor, floor, variance)


def normalise(
  x: jax.Array,
  mean: jax.Array,
  variance: jax.Array,
  *,
  scale: jax.Array | None,
  offset: jax.Array | None,
  epsilon: float,
  pool: bool = False,
) -> jax.Array:
  """`(x - mean) / sqrt(variance + epsilon) * scale + offset`, per channel.

  With `pool`, `max_pool` of that: each window's element is chosen before, so that all
  else is done for a quarter of the elements, at every order of derivative. Where `x`
  is narrower than float32, all is computed in the dtype of the statistics, and the
  result is rounded to that of `x`.
  """
  dtype = x.dtype
  wide = variance.dtype if jnp.finfo(dtype).bits < 32 else dtype
  factor = lax.rsqrt(variance.astype(wide) + epsilon)
  if scale is not None:
    factor *= scale.astype(wide)
  shift = -mean.astype(wide) * factor
  if offset is not None:
    shift += offset.astype(wide)
  if pool:
    x = max_pool(x, sign=factor)
  # One multiplication and addition per element: every order of derivative reads
  # the array less often than if it were centred first.
  return (x.astype(wide) * _like(factor, x) + _like(shift, x)).astype(dtype)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
  return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))
