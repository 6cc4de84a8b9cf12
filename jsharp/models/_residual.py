"""Layers and checks shared by the residual networks for ordinary classification."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models.initial import glorot_uniform, he_normal_of_outputs
from jsharp.nn import conv2d
from jsharp.types import Convolution


class Conv(nn.Module):
  """A convolution without bias, of an odd `size`."""

  num_filters: int
  stride: int = 1
  convolution: Convolution = "auto"
  size: int = 3

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.size, self.size, x.shape[-1], self.num_filters)
    # He initialisation by fan-out, as in the published code of these networks.
    kernel = self.param("kernel", he_normal_of_outputs, shape, x.dtype)
    return conv2d(x, kernel, stride=self.stride, convolution=self.convolution)


def head(num_outputs: int | None, x: jax.Array) -> jax.Array:
  """A linear layer on the spatial mean; the mean itself if `num_outputs` is None."""
  if num_outputs is None:
    return x.mean((1, 2))
  layer = nn.Dense(
    num_outputs, name="head", kernel_init=glorot_uniform, param_dtype=x.dtype
  )
  outputs: jax.Array = layer(x.mean((1, 2)))
  return outputs


def check_images(name: str, inputs: Any) -> None:
  """Checks that the inputs are a batch of float images.

  Raises:
    ValueError: if they are not; the message names the fix.
  """
  if inputs.ndim != 4 or not jnp.issubdtype(inputs.dtype, jnp.floating):
    raise ValueError(
      f"{name}: inputs must be a float array [batch, height, width, channels]; got "
      f"{inputs.dtype} {inputs.shape}. Divide uint8 images by 255 first."
    )


def check_depth(name: str, depth: int, unit: int, rest: int) -> None:
  """Checks that a depth is `unit * n + rest`.

  Raises:
    ValueError: if it is not; the message names the next lower valid depth.
  """
  if depth <= rest or (depth - rest) % unit:
    raise ValueError(
      f"{name}: depth must be {unit}n + {rest} with n at least 1; got {depth}. Use "
      f"{max(unit + rest, depth - (depth - rest) % unit)}."
    )
