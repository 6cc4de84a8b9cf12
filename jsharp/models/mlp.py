"""Fully connected networks: sinusoid regression, Omniglot without convolutions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.nn import BatchNorm


class MLP(nn.Module):
  """A fully connected network; inputs are flattened, the last layer is linear.

  `MLP((40, 40, 1))` is MAML's network for the sinusoid;
  `MLP((256, 128, 64, 64, way), normalize=True)` its Omniglot network without
  convolutions (Finn et al. 2017). Biases start at zero.

  Attributes:
    features: width of every layer, the output last.
    normalize: whether to batch-normalise before every activation.
    kernel_init: initialiser of the weights, Glorot uniform by default.
    activation: what follows every layer but the last, element by element.

  Example:
    >>> model = MLP((40, 40, 1))
    >>> x = jnp.zeros([10, 1])
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.apply(variables, x).shape
    (10, 1)
  """

  features: Sequence[int] = (40, 40, 1)
  normalize: bool = False
  kernel_init: Callable[..., Any] = nn.initializers.glorot_uniform()
  activation: Callable[[jax.Array], jax.Array] = nn.relu

  @nn.compact
  def __call__(self, inputs: jax.Array, num_statistics: int | None = None) -> jax.Array:
    """Maps each example to one vector.

    Args:
      inputs: `[batch, ...]`, float.
      num_statistics: if given, normalise by the statistics of the first
        `num_statistics` examples only; without `normalize` it changes nothing.

    Returns:
      `[batch, features[-1]]`.

    Raises:
      ValueError: if `features` is empty, or `inputs` is no batch of float arrays.
    """
    if not self.features:
      raise ValueError("MLP: features must name at least the output width; got ().")
    if inputs.ndim < 2 or not jnp.issubdtype(inputs.dtype, jnp.floating):
      raise ValueError(
        "MLP: inputs must be a float array [batch, ...] with at least two axes; got "
        f"{inputs.dtype} {inputs.shape}."
      )
    x = inputs.reshape(inputs.shape[0], -1)
    last = len(self.features) - 1
    for layer, width in enumerate(self.features):
      x = nn.Dense(
        width,
        name=f"dense_{layer}",
        kernel_init=self.kernel_init,
        param_dtype=x.dtype,
      )(x)
      if layer < last:
        if self.normalize:
          x = BatchNorm(name=f"norm_{layer}")(x, num_statistics)
        x = self.activation(x)
    return x
