"""ResNet-12, the deep backbone of the few-shot literature."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._dense import dense
from jsharp.models._norms import Norm, norm_layer
from jsharp.models._options import Backbone, PretrainedNetwork
from jsharp.models.drop_block import DropBlock
from jsharp.models.initial import he_normal_of_outputs
from jsharp.nn import conv2d, max_pool
from jsharp.options import between, option
from jsharp.types import Convolution

WIDE = (64, 160, 320, 640)
NARROW = (64, 128, 256, 512)
_SLOPE = 0.1


class ResNet12(nn.Module):
  """Four residual blocks of three convolutions each; a linear head.

  A block has three 3x3 convolutions, each normalised, with leaky ReLU (0.1) after the
  first two. To this it adds a 1x1 convolution and normalisation of its input, then
  applies leaky ReLU and 2x2 max-pooling. The last map is averaged over space (Lee et
  al. 2019, arXiv 1904.03758, after Mishra et al. 2018). Without the head it has
  12,424,320 parameters with the widths of MetaOptNet's code and 7,996,800 with the
  narrower ones of Meta-Baseline and others.

  Two things differ from that code. Normalisation uses the current batch, in training
  and at test, as in all few-shot networks of jsharp, unless `norm` says otherwise. And
  only ordinary training (`norm="running"`) uses dropout, because a few-shot loss draws
  no random numbers. Kernels are initialised He normal (fan-out).

  Attributes:
    num_outputs: size of the output vector; None for the embedding, `widths[-1]`
      numbers.
    widths: channels of each block.
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.
    norm: the normalisation, as in `Conv4`.
    drop_rate: the dropped fraction after each block in training: single activations
      after the first two blocks, squares of 5x5 after the last two; 0.1 in MetaOptNet's
      code.

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
  norm: Norm = "batch"
  drop_rate: float = 0.0

  @nn.compact
  def __call__(self, inputs: jax.Array, num_statistics: int | None = None) -> jax.Array:
    """Maps images to one vector each.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      num_statistics: if given, batch normalisation uses the statistics of only the
        first `num_statistics` images. With `norm="running"`, whether to train.

    Returns:
      `[batch, num_outputs]`, or `[batch, widths[-1]]` without a head.

    Raises:
      ValueError: if `inputs` is not a batch of float images that are large enough for
        one pooling per block.
    """
    smallest = 2 ** len(self.widths)
    is_float = jnp.issubdtype(inputs.dtype, jnp.floating)
    if inputs.ndim != 4 or min(inputs.shape[1:3]) < smallest or not is_float:
      raise ValueError(
        "ResNet12: inputs must be float [batch, height, width, channels] with height "
        f"and width at least {smallest}; got {inputs.dtype} {inputs.shape}."
      )
    x = inputs
    drops, trains = self.drop_rate and self.norm == "running", num_statistics is True
    for number, width in enumerate(self.widths):
      block = _Block(width, self.convolution, self.norm, name=f"block_{number}")
      x = block(x, num_statistics)
      if drops and number < len(self.widths) - 2:
        x = nn.Dropout(self.drop_rate, deterministic=not trains)(x)
      elif drops:
        x = DropBlock(self.drop_rate, name=f"drop_{number}")(x, trains)
    x = x.mean((1, 2))
    if self.num_outputs is None:
      return x
    return dense(self.num_outputs, "head", x.dtype)(x)


class _Block(nn.Module):
  width: int
  convolution: Convolution
  norm: Norm

  @nn.compact
  def __call__(self, inputs: jax.Array, mode: Any) -> jax.Array:
    def convolved(x: jax.Array, name: str, size: int) -> jax.Array:
      shape = (size, size, x.shape[-1], self.width)
      kernel = self.param(f"conv_{name}", he_normal_of_outputs, shape, x.dtype)
      x = conv2d(x, kernel, convolution=self.convolution)
      norm = norm_layer(self.norm, f"norm_{name}", convolution=self.convolution)
      return norm(x, mode)

    x = inputs
    for number in range(2):
      x = nn.leaky_relu(convolved(x, str(number), 3), _SLOPE)
    x = convolved(x, "2", 3) + convolved(inputs, "shortcut", 1)
    # Both are monotone: pooling first saves three quarters of the work.
    return nn.leaky_relu(max_pool(x), _SLOPE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet12Options(Backbone):
  """Four residual blocks of three convolutions, the deep backbone."""

  name: ClassVar[str] = "resnet12"

  widths: Literal["wide", "narrow"] = option(
    "wide", "Channels of resnet12's blocks: 64-160-320-640, or 64-128-256-512."
  )

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> ResNet12:
    return ResNet12(
      num_outputs=num_outputs,
      widths=WIDE if self.widths == "wide" else NARROW,
      convolution=convolution,
      norm=self.norm,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet12Classifier(PretrainedNetwork):
  """ResNet-12 for ordinary training, to initialise few-shot learners."""

  name: ClassVar[str] = "resnet12"

  widths: Literal["wide", "narrow"] = option(
    "wide", "Channels of resnet12's blocks: 64-160-320-640, or 64-128-256-512."
  )
  drop_rate: float = option(
    0.0,
    "Dropout rate of resnet12 in training, in squares of 5x5 after the last two "
    "blocks; 0.1 in MetaOptNet's code. 0: none.",
    check=between(0, 1, below=True),
  )

  @property
  def label(self) -> str:
    return f"{self.name}_{self.widths}"

  def backbone(self, *, convolution: Convolution = "auto") -> ResNet12:
    return ResNet12(
      num_outputs=None,
      widths=WIDE if self.widths == "wide" else NARROW,
      convolution=convolution,
      norm="running",
      drop_rate=self.drop_rate,
    )
