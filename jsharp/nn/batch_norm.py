"""Batch normalisation with the statistics of the batch at hand, and no state."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


class BatchNorm(nn.Module):
  """Normalises by the current batch's statistics, at train and at test alike.

  There are no running averages, so a model with this layer is a pure function of
  its parameters and inputs. Mean and (biased) variance are taken over all axes but
  the last. Parameters: "scale" and "offset", `[channels]` each.

  Attributes:
    use_scale: whether to learn a scale.
    use_bias: whether to learn an offset.
    epsilon: added to the variance.

  Example:
    >>> layer = BatchNorm()
    >>> x = jnp.array([[1.0], [3.0], [2.0]])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> layer.apply(variables, x).round(3)[:, 0]
    Array([-1.225,  1.225,  0.   ], dtype=float32)
    >>> layer.apply(variables, x, num_statistics=2).round(3)[:, 0]
    Array([-1.,  1.,  0.], dtype=float32)
  """

  use_scale: bool = True
  use_bias: bool = True
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, num_statistics: int | None = None) -> jax.Array:
    """Normalises `x`.

    Args:
      x: `[batch, ..., channels]`.
      num_statistics: if given, mean and variance come from the first
        `num_statistics` rows only, so that support examples can normalise the
        query examples behind them.

    Returns:
      An array like `x`.

    Raises:
      ValueError: if `num_statistics` is not in `[1, batch]`.
    """
    if num_statistics is not None and not 0 < num_statistics <= x.shape[0]:
      raise ValueError(
        f"num_statistics must be between 1 and the batch size {x.shape[0]}; got "
        f"{num_statistics}."
      )
    channels = (x.shape[-1],)
    axes = tuple(range(x.ndim - 1))
    seen = x if num_statistics is None else x[:num_statistics]
    mean = seen.mean(axes)
    variance = jnp.square(seen - _like(mean, x)).mean(axes)
    factor = lax.rsqrt(variance + self.epsilon)
    if self.use_scale:
      factor *= self.param("scale", nn.initializers.ones, channels, x.dtype)
    shift = -mean * factor
    if self.use_bias:
      shift += self.param("offset", nn.initializers.zeros, channels, x.dtype)
    # One multiplication and addition per element: every order of derivative reads
    # the array less often than if it were centred first.
    return x * _like(factor, x) + _like(shift, x)


def _like(vector, x):
  return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))
