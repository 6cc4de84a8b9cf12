"""The residual networks for large photographs: ResNet-18, -34, -50, -101 and -152."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._norms import Norm, norm_layer
from jsharp.models._options import Backbone, ClassifierNetwork
from jsharp.models._residual import Conv, check_images, head
from jsharp.options import Check, at_least, option
from jsharp.types import Convolution

_BLOCKS = {
  18: (2, 2, 2, 2),
  26: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}
_PLAIN = (18, 34)  # Blocks of two 3x3 convolutions.


class ImageNetResNet(nn.Module):
  """The networks of He et al. (2016, arXiv 1512.03385), version 1.5.

  A 7x7 convolution at stride 2, normalisation, ReLU, 3x3 max-pooling at stride 2, four
  stages of blocks with 1, 2, 4 and 8 times `width` channels, the mean over space, a
  linear head. A block is 1x1, 3x3 and 1x1 convolutions, the last to four times its
  channels, each normalised; where the shape changes, the shortcut is a 1x1 convolution
  and a normalisation. A block of ResNet-18 and -34 is two 3x3 convolutions, without a
  bottleneck. Version 1.5 has the stride in the 3x3 convolution.

  The last scale of each block starts at 0 (Goyal et al. 2017, arXiv 1706.02677), so
  every block initially equals its shortcut.

  With 1,000 outputs and 3 input channels ResNet-18 has 11,689,512 parameters, -34 has
  21,797,672, -50 has 25,557,032, -101 has
  44,549,160 and -152 has 60,192,808. Depth 26, with two blocks per stage, is for tests.
  Padding is the same on all sides, also at stride 2, as in PyTorch's networks of this
  name, so their trained weights fit.

  Attributes:
    num_outputs: size of the output vector, the number of classes; None for the
      embedding.
    depth: 18, 26, 34, 50, 101 or 152.
    width: channels of the first stage's inner convolutions, 64 in the paper.
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.
    norm: "running" for ordinary training, or a norm of `Conv4` for tasks.

  Example:
    >>> model = ImageNetResNet(num_outputs=10, depth=26, width=4)
    >>> images = jnp.zeros([2, 64, 64, 3])
    >>> made, _ = jax.eval_shape(
    ...   lambda key: model.init_with_output(key, images, False), jax.random.key(0))
    >>> made.shape
    (2, 10)
  """

  num_outputs: int | None
  depth: int = 50
  width: int = 64
  convolution: Convolution = "auto"
  norm: Norm = "running"

  @nn.compact
  def __call__(self, inputs: jax.Array, train: Any = None) -> jax.Array:
    """Maps images to one vector each, as `ResNet`; for tasks, as `Conv4`."""
    check_images("ImageNetResNet", inputs)
    if self.depth not in _BLOCKS:
      raise ValueError(
        f"ImageNetResNet: depth must be one of {', '.join(map(str, _BLOCKS))}; got "
        f"{self.depth}."
      )
    x = _strided(Conv(self.width, 2, self.convolution, name="conv", size=7), inputs)
    norm = norm_layer(self.norm, "norm", convolution=self.convolution)
    x = _largest(nn.relu(norm(x, train)))
    for stage, num_blocks in enumerate(_BLOCKS[self.depth]):
      for block in range(num_blocks):
        stride = 2 if stage and not block else 1
        name = f"stage_{stage}_block_{block}"
        width = self.width * 2**stage
        kind = _PlainBlock if self.depth in _PLAIN else _Block
        x = kind(width, stride, self.convolution, self.norm, name=name)(x, train)
    return head(self.num_outputs, x)


class _Block(nn.Module):
  width: int
  stride: int
  convolution: Convolution
  norm: Norm

  @nn.compact
  def __call__(self, x, mode):
    y = Conv(self.width, name="conv_0", size=1)(x)
    y = nn.relu(self.normalised("norm_0", y, mode))
    y = self.convolved("conv_1", self.stride, y)
    y = nn.relu(self.normalised("norm_1", y, mode))
    y = Conv(4 * self.width, name="conv_2", size=1)(y)
    y = self.normalised("norm_2", y, mode, last=True)
    return self.joined(x, y, mode)

  def convolved(self, name, stride, x):
    conv = Conv(self.width, stride, self.convolution, name=name)
    return _strided(conv, x) if stride > 1 else conv(x)

  def normalised(self, name, x, mode, *, last=False):
    start = nn.initializers.zeros if last else nn.initializers.ones
    layer = norm_layer(self.norm, name, convolution=self.convolution, scale_init=start)
    return layer(x, mode)

  def joined(self, x, y, mode):
    """The block's output, with a projection shortcut where the shape changes."""
    if x.shape != y.shape:
      x = Conv(y.shape[-1], self.stride, name="shortcut", size=1)(x)
      x = self.normalised("norm_shortcut", x, mode)
    return nn.relu(x + y)


class _PlainBlock(_Block):
  @nn.compact
  def __call__(self, x, mode):
    y = self.convolved("conv_0", self.stride, x)
    y = nn.relu(self.normalised("norm_0", y, mode))
    y = self.convolved("conv_1", 1, y)
    return self.joined(x, self.normalised("norm_1", y, mode, last=True), mode)


def _strided(conv, x):
  """A convolution at stride 2 with the same padding at the start and at the end."""
  even = [side % 2 == 0 for side in x.shape[1:3]]
  x = jnp.pad(x, ((0, 0), *((is_even, is_even) for is_even in even), (0, 0)))
  y = conv(x)
  return y[:, : y.shape[1] - even[0], : y.shape[2] - even[1]]


def _largest(x):
  """3x3 max-pooling at stride 2, with one pixel of padding on all sides."""
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
    "Layers with weights: 18, 26, 34, 50, 101 or 152.",
    check=Check(_BLOCKS.__contains__, "must be 18, 26, 34, 50, 101 or 152."),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetResNetBackbone(Backbone):
  """The residual networks for photographs of 224 pixels, for tasks."""

  name: ClassVar[str] = "imagenet_resnet"

  depth: int = option(
    18,
    "Layers with weights: 18, 26, 34, 50, 101 or 152.",
    check=Check(_BLOCKS.__contains__, "must be 18, 26, 34, 50, 101 or 152."),
  )
  width: int = option(64, "Channels of the first stage.", check=at_least(1))

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> ImageNetResNet:
    return ImageNetResNet(
      num_outputs,
      depth=self.depth,
      width=self.width,
      convolution=convolution,
      norm=self.norm,
    )
