"""Random factors of residual branches, different in the forward and backward pass.

The factors come from the random number stream "shake". Without this stream, as when
parameters are initialised or a measurement must be free of noise, the factors are
replaced by their expectations.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

STREAM = "shake"


@jax.custom_jvp
def seen_as(value: jax.Array, differentiated: jax.Array) -> jax.Array:
  """The first argument, with the derivatives of the second at every order.

  Example:
    >>> float(jax.grad(lambda x: seen_as(2 * x, 5 * x))(1.0))
    5.0
  """
  return value


seen_as.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


def shake_shake(layer: nn.Module, a: jax.Array, b: jax.Array, train: bool) -> jax.Array:
  """Mixes two branches (Gastaldi 2017, arXiv 1705.07485), per image.

  Args:
    layer: the layer whose random numbers are used.
    a: `[batch, height, width, channels]`.
    b: like `a`.
    train: whether to draw factors; otherwise the mean of the two branches.

  Returns:
    `alpha * a + (1 - alpha) * b`, differentiated with another factor in place of alpha;
    both are uniform on [0, 1].
  """
  if not train or not layer.has_rng(STREAM):
    return (a + b) / 2
  forward, backward = jax.random.uniform(
    layer.make_rng(STREAM), (2, a.shape[0], 1, 1, 1), a.dtype
  )
  return seen_as(forward * a + (1 - forward) * b, backward * a + (1 - backward) * b)


def shake_drop(layer: nn.Module, x: jax.Array, keep: float, train: bool) -> jax.Array:
  """Scales a branch (Yamada et al. 2018, arXiv 1802.02375, equation 6), per image.

  Args:
    layer: the layer whose random numbers are used.
    x: `[batch, height, width, channels]`.
    keep: the probability that the branch of an image is not scaled.
    train: whether to draw factors; otherwise the expectation, `keep * x`.

  Returns:
    With probability `keep` the branch itself, otherwise alpha times the branch,
    differentiated as beta times it; alpha is uniform on [-1, 1], beta on [0, 1].
  """
  if not train or not layer.has_rng(STREAM):
    return keep * x
  keys = jax.random.split(layer.make_rng(STREAM), 3)
  shape = (x.shape[0], 1, 1, 1)
  kept = jax.random.bernoulli(keys[0], keep, shape)
  alpha = jax.random.uniform(keys[1], shape, x.dtype, -1, 1)
  beta = jax.random.uniform(keys[2], shape, x.dtype)
  one = jnp.ones((), x.dtype)
  return seen_as(jnp.where(kept, one, alpha) * x, jnp.where(kept, one, beta) * x)
