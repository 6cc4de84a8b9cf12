"""ResNet-12, the deep backbone of the few-shot literature."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._options import Network
from jsharp.models.conv4 import dense
from jsharp.models.initial import he_normal_of_outputs
from jsharp.nn import BatchNorm, conv2d, max_pool
from jsharp.options import option
from jsharp.types import Convolution

WIDE = (64, 160, 320, 640)
NARROW = (64, 128, 256, 512)
_SLOPE = 0.1


class ResNet12(nn.Module):
  """Four residual blocks of three convolutions each; a linear head.

  A block is three times 3x3 convolution and normalisation, with leaky ReLU (0.1) behind
  the first two, plus a 1x1 convolution and normalisation of its input, then leaky ReLU
  and 2x2 max-pooling; the last map is averaged over space (Lee et al. 2019,
  arXiv 1904.03758, after Mishra et al. 2018). Without the head it has 12,424,320
  parameters with the widths of MetaOptNet's code and 7,996,800 with the narrower ones
  that Meta-Baseline and others take.

  It differs from that code: normalisation is that of the batch at hand, in training and
  at test, as everywhere among jsharp's networks for tasks; and there is no DropBlock.
  Kernels start He normal (outputs).

  Attributes:
    num_outputs: size of the output vector; None for the embedding, `widths[-1]`
      numbers.
    widths: channels of each block.
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.

  Example:
    >>> model = ResNet12(num_outputs=5, widths=(4, 4, 8, 8))
    >>> images = jnp.zeros([3, 32, 32, 3])
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> jax.eval_shape(model.apply, variables, images).shape
    (3, 5)
  """

  num_outputs: int | None
  widths: Sequence[int] = WIDE
  convolution: Convolution = "auto"

  @nn.compact
  def __call__(self, inputs: jax.Array, num_statistics: int | None = None) -> jax.Array:
    """Maps images to one vector each.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      num_statistics: if given, normalise by the statistics of the first
        `num_statistics` images only.

    Returns:
      `[batch, num_outputs]`, or `[batch, widths[-1]]` without a head.

    Raises:
      ValueError: if `inputs` is not a batch of float images that survives a pooling in
        every block.
    """
    smallest = 2 ** len(self.widths)
    is_float = jnp.issubdtype(inputs.dtype, jnp.floating)
    if inputs.ndim != 4 or min(inputs.shape[1:3]) < smallest or not is_float:
      raise ValueError(
        "ResNet12: inputs must be float [batch, height, width, channels] with height "
        f"and width at least {smallest}; got {inputs.dtype} {inputs.shape}."
      )
    x = inputs
    for number, width in enumerate(self.widths):
      x = _Block(width, self.convolution, name=f"block_{number}")(x, num_statistics)
    x = x.mean((1, 2))
    if self.num_outputs is None:
      return x
    return dense(self.num_outputs, "head", x.dtype)(x)


class _Block(nn.Module):
  width: int
  convolution: Convolution

  @nn.compact
  def __call__(self, inputs: jax.Array, num_statistics: int | None) -> jax.Array:
    def convolved(x: jax.Array, name: str, size: int) -> jax.Array:
      shape = (size, size, x.shape[-1], self.width)
      kernel = self.param(f"conv_{name}", he_normal_of_outputs, shape, x.dtype)
      x = conv2d(x, kernel, convolution=self.convolution)
      norm = BatchNorm(name=f"norm_{name}", convolution=self.convolution)
      return norm(x, num_statistics)

    x = inputs
    for number in range(2):
      x = nn.leaky_relu(convolved(x, str(number), 3), _SLOPE)
    x = convolved(x, "2", 3) + convolved(inputs, "shortcut", 1)
    # Both are monotone: pooling first leaves a quarter of the work.
    return nn.leaky_relu(max_pool(x), _SLOPE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet12Options(Network):
  """Four residual blocks of three convolutions, the deep backbone."""

  name: ClassVar[str] = "resnet12"

  widths: Literal["wide", "narrow"] = option(
    "wide", "Of resnet12's blocks: 64-160-320-640, or 64-128-256-512."
  )

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> ResNet12:
    return ResNet12(
      num_outputs=num_outputs,
      widths=WIDE if self.widths == "wide" else NARROW,
      convolution=convolution,
    )
