"""Batch normalisation with running averages, for ordinary training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.nn._channels import moments, normalise
from jsharp.tree import at_least_float32


class RunningBatchNorm(nn.Module):
  """Normalises by the batch in training and by running averages at evaluation.

  Mean and (biased) variance are taken over all axes but the last. In training they
  normalise the batch, and the averages in the collection `batch_stats` ("mean" from
  0, "variance" from 1, `[channels]` each) become
  `momentum * average + (1 - momentum) * batch`. Parameters: "scale" and "offset",
  `[channels]` each. With few-shot tasks use `BatchNorm`, which has no state.

  Attributes:
    momentum: the fraction of the old average that a training pass keeps.
    epsilon: added to the variance.
    scale_init: initialiser of "scale".

  Example:
    >>> layer = RunningBatchNorm()
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = layer.init(jax.random.key(0), x, False)
    >>> y, changed = layer.apply(variables, x, True, mutable=["batch_stats"])
    >>> y.round(3)[:, 0], changed["batch_stats"]["mean"].round(3)
    (Array([-1.,  1.], dtype=float32), Array([0.2], dtype=float32))
    >>> print(*(f"{value:.2f}" for value in layer.apply(variables, x, False)[:, 0]))
    1.00 3.00
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  scale_init: Callable[..., jax.Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalises `x`.

    Args:
      x: `[batch, ..., channels]`, float.
      train: whether to normalise by the batch and update the averages; the collection
        must then be mutable.

    Returns:
      An array like `x`.
    """
    channels = (x.shape[-1],)
    wide = at_least_float32(x.dtype)
    mean = self.variable("batch_stats", "mean", jnp.zeros, channels, wide)
    variance = self.variable("batch_stats", "variance", jnp.ones, channels, wide)
    used_mean, used_variance = mean.value, variance.value
    if train:
      used_mean, used_variance = moments(x)
      if not self.is_initializing():
        for average, new in ((mean, used_mean), (variance, used_variance)):
          new = new.astype(average.value.dtype)
          average.value = self.momentum * average.value + (1 - self.momentum) * new
    return normalise(
      x,
      used_mean,
      used_variance,
      scale=self.param("scale", self.scale_init, channels, x.dtype),
      offset=self.param("offset", nn.initializers.zeros, channels, x.dtype),
      epsilon=self.epsilon,
    )
