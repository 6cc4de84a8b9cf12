"""Residual networks for small images, with running batch normalisation."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._norms import Norm, norm_layer
from jsharp.models._options import Backbone, ClassifierNetwork
from jsharp.models._residual import Conv, check_depth, check_images, head
from jsharp.models.initial import he_normal_of_outputs
from jsharp.nn import RunningBatchNorm
from jsharp.options import at_least, option
from jsharp.types import Convolution


class ResNet(nn.Module):
  """The CIFAR form of He et al. (2016, arXiv 1512.03385, section 4.2).

  A 3x3 convolution, three stages of `(depth - 2) / 6` blocks of two 3x3 convolutions
  with 16, 32 and 64 channels, the mean over space, a linear head. The second and third
  stages begin with stride 2. Shortcuts have no parameters: where the shape changes,
  every second pixel is used and the new channels are zero (option A). With 10 outputs
  and 3 input channels ResNet-20 has 269,722 parameters and ResNet-32 has 464,154.
  Padding is SAME: a strided convolution of an even side pads at the end only.

  Attributes:
    num_outputs: size of the output vector, the number of classes.
    depth: layers with weights, 6n + 2: 8, 20, 32, 44, 56, ...
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.

  Example:
    >>> model = ResNet(num_outputs=10, depth=8)
    >>> images = jnp.zeros([2, 16, 16, 3])
    >>> variables = jax.jit(model.init, static_argnums=2)(
    ...   jax.random.key(0), images, False)
    >>> sorted(variables), model.apply(variables, images, False).shape
    (['batch_stats', 'params'], (2, 10))
  """

  num_outputs: int
  depth: int = 20
  convolution: Convolution = "auto"

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
    """Maps images to one vector each.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      train: whether to normalise by the batch's own statistics; `batch_stats` must then
        be mutable.

    Returns:
      `[batch, num_outputs]`.

    Raises:
      ValueError: if `inputs` is not a batch of images or `depth` is invalid.
    """
    check_depth("ResNet", self.depth, 6, 2)
    check_images("ResNet", inputs)
    x = Conv(16, convolution=self.convolution, name="conv")(inputs)
    x = nn.relu(RunningBatchNorm(name="norm")(x, train))
    for stage in range(3):
      for block in range((self.depth - 2) // 6):
        stride = 2 if stage and not block else 1
        name = f"stage_{stage}_block_{block}"
        x = _Block(16 * 2**stage, stride, self.convolution, name=name)(x, train)
    return head(self.num_outputs, x)


class WideResNet(nn.Module):
  """The pre-activation network of Zagoruyko and Komodakis (2016, arXiv 1605.07146).

  A 3x3 convolution to 16 channels, three stages of `(depth - 4) / 6` blocks with
  `16 * widen`, `32 * widen` and `64 * widen` channels, a last normalisation, the mean
  over space, a linear head. A block is normalisation, ReLU and 3x3 convolution, twice;
  where the shape changes, the shortcut is a 1x1 convolution of the first ReLU's output.
  No dropout. With 10 outputs and 3 input channels WRN-28-10 has 36,479,194 parameters
  and WRN-16-4 has 2,748,890.
  Padding is SAME: a strided convolution of an even side pads at the end only.

  Attributes:
    num_outputs: size of the output vector, the number of classes; None for the
      embedding, `64 * widen` numbers.
    depth: layers with weights, 6n + 4: 10, 16, 22, 28, 40, ...
    widen: factor of the channels.
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.
    norm: "running" for ordinary training, or a norm of `Conv4` for tasks.

  Example:
    >>> model = WideResNet(num_outputs=10, depth=10, widen=1)
    >>> images = jnp.zeros([2, 16, 16, 3])
    >>> variables = jax.jit(model.init, static_argnums=2)(
    ...   jax.random.key(0), images, False)
    >>> model.apply(variables, images, False).shape
    (2, 10)
  """

  num_outputs: int | None
  depth: int = 28
  widen: int = 10
  convolution: Convolution = "auto"
  norm: Norm = "running"

  @nn.compact
  def __call__(self, inputs: jax.Array, train: Any = None) -> jax.Array:
    """Maps images to one vector each, as `ResNet`; for tasks, as `Conv4`."""
    check_depth("WideResNet", self.depth, 6, 4)
    check_images("WideResNet", inputs)
    if self.widen < 1:
      raise ValueError(f"WideResNet: widen must be at least 1; got {self.widen}.")
    x = Conv(16, convolution=self.convolution, name="conv")(inputs)
    for stage in range(3):
      for block in range((self.depth - 4) // 6):
        stride = 2 if stage and not block else 1
        name = f"stage_{stage}_block_{block}"
        num_filters = 16 * 2**stage * self.widen
        block_of = _WideBlock(
          num_filters, stride, self.convolution, self.norm, name=name
        )
        x = block_of(x, train)
    norm = norm_layer(self.norm, "norm", convolution=self.convolution)
    x = nn.relu(norm(x, train))
    return head(self.num_outputs, x)


class _Block(nn.Module):
  num_filters: int
  stride: int
  convolution: Convolution

  @nn.compact
  def __call__(self, x, train):
    y = Conv(self.num_filters, self.stride, self.convolution, name="conv_0")(x)
    y = nn.relu(RunningBatchNorm(name="norm_0")(y, train))
    y = Conv(self.num_filters, 1, self.convolution, name="conv_1")(y)
    y = RunningBatchNorm(name="norm_1")(y, train)
    x = x[:, :: self.stride, :: self.stride]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.num_filters - x.shape[-1])))
    return nn.relu(x + y)


class _WideBlock(nn.Module):
  num_filters: int
  stride: int
  convolution: Convolution
  norm: Norm

  @nn.compact
  def __call__(self, x, mode):
    def normalised(name, x):
      return norm_layer(self.norm, name, convolution=self.convolution)(x, mode)

    y = nn.relu(normalised("norm_0", x))
    if x.shape[-1] != self.num_filters or self.stride > 1:
      shape = (x.shape[-1], self.num_filters)
      kernel = self.param("shortcut", he_normal_of_outputs, shape, x.dtype)
      x = y[:, :: self.stride, :: self.stride] @ kernel
    y = Conv(self.num_filters, self.stride, self.convolution, name="conv_0")(y)
    y = nn.relu(normalised("norm_1", y))
    return x + Conv(self.num_filters, 1, self.convolution, name="conv_1")(y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetOptions(ClassifierNetwork):
  """The small residual network for CIFAR, 16-32-64 channels."""

  name: ClassVar[str] = "resnet"

  depth: int = option(
    8, "Layers with weights: 6n + 2, as 8, 20, 32, 56.", check=at_least(1)
  )

  def complete(self) -> None:
    check_depth("ResNet", self.depth, 6, 2)

  @property
  def label(self) -> str:
    return f"{self.name}{self.depth}"

  def module(self, num_outputs: int, *, convolution: Convolution = "auto") -> ResNet:
    return ResNet(num_outputs, depth=self.depth, convolution=convolution)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideResNetOptions(ClassifierNetwork):
  """The wide pre-activation residual network, with multiples of these channels."""

  name: ClassVar[str] = "wide_resnet"

  depth: int = option(
    10, "Layers with weights: 6n + 4, as 10, 16, 28, 40.", check=at_least(1)
  )
  widen: int = option(2, "Widening factor of the channels.", check=at_least(1))

  def complete(self) -> None:
    check_depth("WideResNet", self.depth, 6, 4)

  @property
  def label(self) -> str:
    return f"{self.name}{self.depth}x{self.widen}"

  def module(
    self, num_outputs: int, *, convolution: Convolution = "auto"
  ) -> WideResNet:
    return WideResNet(
      num_outputs, depth=self.depth, widen=self.widen, convolution=convolution
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideResNetBackbone(Backbone):
  """The wide residual network for tasks; 28 layers, 10 times as wide by default."""

  name: ClassVar[str] = "wide_resnet"

  depth: int = option(
    28, "Layers with weights: 6n + 4, as 10, 16, 28, 40.", check=at_least(1)
  )
  widen: int = option(10, "Widening factor of the channels.", check=at_least(1))

  def complete(self) -> None:
    check_depth("WideResNet", self.depth, 6, 4)

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> WideResNet:
    return WideResNet(
      num_outputs,
      depth=self.depth,
      widen=self.widen,
      convolution=convolution,
      norm=self.norm,
    )
