"""The residual networks for large photographs: ResNet-50, -101 and -152."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._options import ClassifierNetwork
from jsharp.models._residual import Conv, check_images, head
from jsharp.nn import RunningBatchNorm
from jsharp.options import Check, at_least, option
from jsharp.types import Convolution

_BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ImageNetResNet(nn.Module):
  """The bottleneck networks of He et al. (2016, arXiv 1512.03385), version 1.5.

  A 7x7 convolution at stride 2, normalisation, ReLU, maxima of 3x3 windows at stride
  2, four stages of blocks with `width`, 2, 4 and 8 times as many channels, the mean
  over space, a linear head. A block is 1x1, 3x3 and 1x1 convolutions, the last to four
  times its channels, each normalised; where the shape changes, the shortcut is a 1x1
  convolution and a normalisation. Version 1.5 has the stride in the 3x3 convolution.
  The last scale of each block starts at 0 (Goyal et al. 2017, arXiv 1706.02677), so
  that every block begins as its shortcut.

  With 1,000 outputs and 3 input channels ResNet-50 has 25,557,032 parameters, -101 has
  44,549,160 and -152 has 60,192,808. Depth 26, with two blocks a stage, is for trials.

  Paddings are the same on all sides, also at stride 2, as in PyTorch's networks of
  this name, whose trained weights therefore fit.

  Attributes:
    num_outputs: size of the output vector, the number of classes.
    depth: 26, 50, 101 or 152.
    width: channels of the first stage's inner convolutions, 64 in the paper.
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.

  Example:
    >>> model = ImageNetResNet(num_outputs=10, depth=26, width=4)
    >>> images = jnp.zeros([2, 64, 64, 3])
    >>> made, _ = jax.eval_shape(
    ...   lambda key: model.init_with_output(key, images, False), jax.random.key(0))
    >>> made.shape
    (2, 10)
  """

  num_outputs: int
  depth: int = 50
  width: int = 64
  convolution: Convolution = "auto"

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
    """Maps images to one vector each; as `ResNet`."""
    check_images("ImageNetResNet", inputs)
    if self.depth not in _BLOCKS:
      raise ValueError(
        f"ImageNetResNet: depth must be one of {', '.join(map(str, _BLOCKS))}; got "
        f"{self.depth}."
      )
    x = _strided(Conv(self.width, 2, self.convolution, name="conv", size=7), inputs)
    x = _largest(nn.relu(RunningBatchNorm(name="norm")(x, train)))
    for stage, num_blocks in enumerate(_BLOCKS[self.depth]):
      for block in range(num_blocks):
        stride = 2 if stage and not block else 1
        name = f"stage_{stage}_block_{block}"
        width = self.width * 2**stage
        x = _Block(width, stride, self.convolution, name=name)(x, train)
    return head(self.num_outputs, x)


class _Block(nn.Module):
  width: int
  stride: int
  convolution: Convolution

  @nn.compact
  def __call__(self, x, train):
    y = Conv(self.width, name="conv_0", size=1)(x)
    y = nn.relu(RunningBatchNorm(name="norm_0")(y, train))
    conv = Conv(self.width, self.stride, self.convolution, name="conv_1")
    y = _strided(conv, y) if self.stride > 1 else conv(y)
    y = nn.relu(RunningBatchNorm(name="norm_1")(y, train))
    y = Conv(4 * self.width, name="conv_2", size=1)(y)
    y = RunningBatchNorm(name="norm_2", scale_init=nn.initializers.zeros)(y, train)
    if x.shape != y.shape:
      x = Conv(4 * self.width, self.stride, name="shortcut", size=1)(x)
      x = RunningBatchNorm(name="norm_shortcut")(x, train)
    return nn.relu(x + y)


def _strided(conv, x):
  """A convolution at stride 2 whose padding is as wide at the start as at the end."""
  even = [side % 2 == 0 for side in x.shape[1:3]]
  x = jnp.pad(x, ((0, 0), *((is_even, is_even) for is_even in even), (0, 0)))
  y = conv(x)
  return y[:, : y.shape[1] - even[0], : y.shape[2] - even[1]]


def _largest(x):
  """Maxima of 3x3 windows at stride 2, with one pixel of padding on all sides."""
  for axis in (1, 2):
    length = (x.shape[axis] + 1) // 2
    margins = [(0, 0)] * x.ndim
    margins[axis] = (1, 1)
    padded = jnp.pad(x, margins, constant_values=-jnp.inf)
    parts = [
      jax.lax.slice_in_dim(padded, i, i + 2 * length - 1, stride=2, axis=axis)
      for i in range(3)
    ]
    x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
  return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetResNetOptions(ClassifierNetwork):
  """The residual networks for photographs of 224 pixels."""

  name: ClassVar[str] = "imagenet_resnet"

  depth: int = option(
    50,
    "Layers with weights: 26, 50, 101 or 152.",
    check=Check(_BLOCKS.__contains__, "must be 26, 50, 101 or 152."),
  )
  width: int = option(64, "Channels of the first stage.", check=at_least(1))

  @property
  def label(self) -> str:
    width = "" if self.width == 64 else f"_width{self.width}"
    return f"{self.name}{self.depth}{width}"

  def module(
    self, num_outputs: int, *, convolution: Convolution = "auto"
  ) -> ImageNetResNet:
    return ImageNetResNet(
      num_outputs, depth=self.depth, width=self.width, convolution=convolution
    )
