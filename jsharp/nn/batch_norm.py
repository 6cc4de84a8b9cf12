"""Batch normalisation with the statistics of the batch at hand, and no state."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.nn import _convolved_map
from jsharp.nn._channels import moments, normalise
from jsharp.nn.convolution import conv2d
from jsharp.types import Convolution


class BatchNorm(nn.Module):
  """Normalises by the current batch's statistics, at train and at test alike.

  There are no running averages, so a model with this layer is a pure function of
  its parameters and inputs. Mean and (biased) variance are taken over all axes but
  the last. Parameters: "scale" and "offset", `[channels]` each.

  The collection "statistics" is for callers that keep averages themselves: applied with
  it mutable, the layer writes its batch's "mean" and mean "square" there, `[channels]`
  each; given it as constant, it normalises by them and never looks at the batch. (The
  mean of squares, because averages over batches then give the variance of all that was
  seen; averaged variances leave out how the batches' means differ. The variance is then
  a difference that loses digits where a channel's |mean| is far above its deviation: in
  float32 one digit is left at a ratio of 1,000. It is never taken smaller than the
  dtype's eps times the square.)
  `jsharp.models.with_statistics` makes functions of both.

  Attributes:
    use_scale: whether to learn a scale.
    use_bias: whether to learn an offset.
    epsilon: added to the variance.
    pool: whether to max-pool 2x2 windows of the result (`jsharp.nn.max_pool`). The
      statistics are those of the whole map.
    convolution: how `kernel` is convolved with, see `jsharp.nn.conv2d`.

  Example:
    >>> import jax.numpy as jnp
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
  pool: bool = False
  convolution: Convolution = "auto"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    num_statistics: int | None = None,
    *,
    kernel: jax.Array | None = None,
  ) -> jax.Array:
    """Normalises `x`.

    Args:
      x: `[batch, ..., channels]`.
      num_statistics: if given, mean and variance come from the first
        `num_statistics` rows only, so that support examples can normalise the
        query examples behind them.
      kernel: if given, what is normalised is `jsharp.nn.conv2d(x, kernel)`, whose map
        is not held whole where `pool` is set and that is faster, unless `convolution`
        is "direct".

    Returns:
      An array like `x`, or like the convolved one; pooled, with `pool`.

    Raises:
      ValueError: if `num_statistics` is not in `[1, batch]`.
    """
    if num_statistics is not None and not 0 < num_statistics <= x.shape[0]:
      raise ValueError(
        f"num_statistics must be between 1 and the batch size {x.shape[0]}; got "
        f"{num_statistics}."
      )
    channels = ((x if kernel is None else kernel).shape[-1],)
    scale = offset = None
    if self.use_scale:
      scale = self.param("scale", nn.initializers.ones, channels, x.dtype)
    if self.use_bias:
      offset = self.param("offset", nn.initializers.zeros, channels, x.dtype)
    record = self.is_mutable_collection("statistics")
    given = self.has_variable("statistics", "mean") and not record
    pool = self.pool
    mean: jax.Array
    variance: jax.Array
    if (
      kernel is not None
      and pool
      and not given
      and num_statistics is None
      and self.convolution != "direct"
      and _convolved_map.is_worthwhile(x, kernel)
    ):
      mean, variance, x = _convolved_map.moments_and_pool(
        x, kernel, sign=scale, convolution=self.convolution
      )
      pool = False
    else:
      if kernel is not None:
        x = conv2d(x, kernel, convolution=self.convolution)
      if given:
        mean, variance = self._given()
      else:
        mean, variance = moments(x if num_statistics is None else x[:num_statistics])
    if record and not self.is_initializing():
      self.put_variable("statistics", "mean", mean)
      self.put_variable("statistics", "square", variance + jnp.square(mean))
    return normalise(
      x,
      mean,
      variance,
      scale=scale,
      offset=offset,
      epsilon=self.epsilon,
      pool=pool,
    )

  def _given(self) -> tuple[jax.Array, jax.Array]:
    """Mean and variance from the collection."""
    mean: jax.Array = self.get_variable("statistics", "mean")
    square: jax.Array = self.get_variable("statistics", "square")
    # Below this the difference is nothing but rounding.
    floor = jnp.finfo(square.dtype).eps * square
    return mean, jnp.maximum(square - jnp.square(mean), floor)
