"""Per-channel statistics and normalisation, shared by the normalisation layers."""

import jax
import jax.numpy as jnp
from jax import lax

from jsharp.nn.pooling import max_pool
from jsharp.tree import at_least_float32


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and (biased) variance over all axes but the last, `[channels]` each.

  Both are computed from sums over `x` minus the mean of its first row, a shift that
  changes neither result. Centring by the mean itself would read and write the array
  once more at every order of derivative; the mean of squares minus the square of the
  mean would lose all digits where the mean is far larger than the deviation. No row of
  `n` is further from the mean than `sqrt(n - 1)` deviations, so the rounding error of
  the sums is magnified by at most `n`, and not at all if the rows are similar. The
  variance is never smaller than this rounding error, so it is never negative. Dtypes
  narrower than float32 are summed in float32, and their mean and variance stay float32.

  Raises:
    ValueError: if there is no row.
  """
  if not x.size:
    raise ValueError(
      f"x has shape {x.shape}, and an empty array has no statistics; pass at least one "
      "row"
    )
  axes = tuple(range(x.ndim - 1))
  x = x.astype(at_least_float32(x.dtype))
  # The result does not depend on `near`, so neither do its derivatives.
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

  With `pool`, `max_pool` of the result: the maximum of each window is selected first,
  so everything else is computed for a quarter of the elements, at every order of
  derivative. If `x` is narrower than float32, the computation uses the dtype of the
  statistics, and the result is rounded to the dtype of `x`.
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
  # One multiplication and addition per element: this reads the array less often, at
  # every order of derivative, than centring it first.
  return (x.astype(wide) * _like(factor, x) + _like(shift, x)).astype(dtype)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
  return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))
