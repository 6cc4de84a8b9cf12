"""Stateless batch normalisation, by the statistics of the current batch."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.nn import _convolved_map
from jsharp.nn._channels import moments, normalise
from jsharp.nn.convolution import conv2d
from jsharp.types import Convolution

Moments = tuple[jax.Array, jax.Array]
"""A mean and a variance, `[channels]` each."""


class KeptStatistics:
  """Statistics that one pass through a network keeps for later passes.

  Pass it as `num_statistics`. If it was created without statistics, every `BatchNorm`
  normalises by its batch, and each mean and variance is stored. If it was created with
  the statistics of an earlier pass, the layers normalise by these, in call order. So
  query examples can be normalised by the support set without processing the support set
  again: `jsharp.normalization.support_statistics` in two steps.

  Args:
    layers: the statistics that an earlier pass stored; None for a pass that stores.

  Attributes:
    layers: a mean and a variance, `[channels]` each, for every call of a layer.

  Example:
    >>> import jax.numpy as jnp
    >>> layer = BatchNorm(use_scale=False, use_bias=False)
    >>> kept = KeptStatistics()
    >>> _ = layer.apply({}, jnp.array([[1.0], [3.0]]), kept)
    >>> later = KeptStatistics(kept.layers)
    >>> layer.apply({}, jnp.array([[2.0], [4.0], [6.0]]), later).round(3).tolist()
    [[0.0], [2.0], [4.0]]
  """

  def __init__(self, layers: Sequence[Moments] | None = None):
    self.layers = list(layers or ())
    self._given = None if layers is None else iter(self.layers)

  def moments(self, x: jax.Array) -> Moments:
    """Computes and stores the batch's moments, or returns the next given ones."""
    if self._given is not None:
      return next(self._given)
    self.layers.append(moments(x))
    return self.layers[-1]


class BatchNorm(nn.Module):
  """Normalises by the current batch's statistics, in training and at test.

  There are no running averages, so a model with this layer is a pure function of
  its parameters and inputs. Mean and (biased) variance are taken over all axes but
  the last. Parameters: "scale" and "offset", `[channels]` each.

  The collection "statistics" is for callers that keep averages themselves. If it is
  mutable, the layer writes its batch's "mean" and mean "square" there, `[channels]`
  each. If it is constant, the layer normalises by these and ignores the batch. (It
  holds the mean of squares, because averages over batches then give the variance over
  all data; averaged variances would leave out the differences between the batches'
  means. The variance is then a difference that loses digits where a channel's |mean| is
  far larger than its deviation: at a ratio of 1,000 one digit is left in float32. It is
  never smaller than the dtype's eps times the square.)
  `jsharp.models.with_statistics` turns both uses into functions.

  Attributes:
    use_scale: whether to learn a scale.
    use_bias: whether to learn an offset.
    epsilon: added to the variance.
    pool: whether to max-pool 2x2 windows of the result (`jsharp.nn.max_pool`). The
      statistics are those of the whole map.
    convolution: the form of the convolution with `kernel`, see `jsharp.nn.conv2d`.
    scale_init: initialiser of "scale".

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
  scale_init: Callable[..., jax.Array] = nn.initializers.ones

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    num_statistics: int | KeptStatistics | None = None,
    *,
    kernel: jax.Array | None = None,
  ) -> jax.Array:
    """Normalises `x`.

    Args:
      x: `[batch, ..., channels]`.
      num_statistics: if given, mean and variance come from the first
        `num_statistics` rows only, so that support examples can normalise the
        query examples behind them. Or `KeptStatistics` of another pass.
      kernel: if given, normalises `jsharp.nn.conv2d(x, kernel)` instead of `x`. With
        `pool`, the convolved map is not stored in full where that is faster, unless
        `convolution` is "direct".

    Returns:
      An array like `x`, or like the convolved one; pooled, with `pool`.

    Raises:
      ValueError: if `num_statistics` is not in `[1, batch]`.
    """
    kept = num_statistics if isinstance(num_statistics, KeptStatistics) else None
    rows = None if isinstance(num_statistics, KeptStatistics) else num_statistics
    if rows is not None and not 0 < rows <= x.shape[0]:
      raise ValueError(
        f"num_statistics must be between 1 and the batch size {x.shape[0]}; got "
        f"{num_statistics}."
      )
    channels = ((x if kernel is None else kernel).shape[-1],)
    scale = offset = None
    if self.use_scale:
      scale = self.param("scale", self.scale_init, channels, x.dtype)
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
        moments_of = moments if kept is None else kept.moments
        mean, variance = moments_of(x if rows is None else x[:rows])
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
    # Below this the difference is only rounding error.
    floor = jnp.finfo(square.dtype).eps * square
    return mean, jnp.maximum(square - jnp.square(mean), floor)
