"""Shake-Shake: residual networks of two branches that are mixed at random."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._options import ClassifierNetwork
from jsharp.models._residual import Conv, check_depth, check_images, head
from jsharp.models._shake import shake_shake
from jsharp.nn import RunningBatchNorm
from jsharp.options import at_least, option
from jsharp.types import Convolution


class ShakeShake(nn.Module):
  """Gastaldi's network for small images (2017, arXiv 1705.07485), "Shake-Shake-Image".

  A 3x3 convolution to 16 channels, three stages of `(depth - 2) / 6` blocks with
  `width`, `2 * width` and `4 * width` channels, the second and third at stride 2, ReLU,
  the mean over space, a linear head. A block has two branches of ReLU, 3x3
  convolution, normalisation, ReLU, 3x3 convolution and normalisation. They are mixed
  with random factors per image, one for the forward and another for the backward pass;
  outside training each branch counts half. Where the channels change, the shortcut
  concatenates two 1x1 convolutions, one of every second pixel and one of their diagonal
  neighbours, followed by a normalisation.

  With 10 outputs and 3 input channels the paper's 26 2x96d has 26,192,922 parameters
  (26.2 million in the paper).

  Padding is SAME: a strided convolution of an even side pads at the end only.

  The random factors are drawn from the stream "shake", given as
  `module.apply(..., rngs={"shake": key})`; without it none are drawn.

  Attributes:
    num_outputs: size of the output vector, the number of classes.
    depth: layers with weights, 6n + 2: 26 in the paper.
    width: channels of each branch in the first stage: 32, 64 or 96 in the paper.
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.

  Example:
    >>> model = ShakeShake(num_outputs=10, depth=8, width=4)
    >>> images = jnp.zeros([2, 16, 16, 3])
    >>> made, _ = jax.eval_shape(
    ...   lambda key: model.init_with_output(key, images, False), jax.random.key(0))
    >>> made.shape
    (2, 10)
  """

  num_outputs: int
  depth: int = 26
  width: int = 96
  convolution: Convolution = "auto"

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
    """Maps images to one vector each.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      train: whether to normalise by the batch's own statistics and draw random factors;
        `batch_stats` must then be mutable.

    Returns:
      `[batch, num_outputs]`.

    Raises:
      ValueError: if `inputs` is not a batch of images or a size is invalid.
    """
    check_depth("ShakeShake", self.depth, 6, 2)
    check_images("ShakeShake", inputs)
    x = Conv(16, convolution=self.convolution, name="conv")(inputs)
    x = RunningBatchNorm(name="norm")(x, train)
    for stage in range(3):
      for block in range((self.depth - 2) // 6):
        stride = 2 if stage and not block else 1
        name = f"stage_{stage}_block_{block}"
        width = self.width * 2**stage
        x = _Block(width, stride, self.convolution, name=name)(x, train)
    return head(self.num_outputs, nn.relu(x))


class _Block(nn.Module):
  num_filters: int
  stride: int
  convolution: Convolution

  @nn.compact
  def __call__(self, x, train):
    branches = []
    for branch in "ab":
      y = nn.relu(x)
      for i, stride in enumerate((self.stride, 1)):
        name = f"{branch}_{i}"
        conv = Conv(self.num_filters, stride, self.convolution, name=f"conv_{name}")
        y = RunningBatchNorm(name=f"norm_{name}")(conv(y), train)
        y = y if i else nn.relu(y)
      branches.append(y)
    if x.shape[-1] != self.num_filters:
      halves = (self.num_filters // 2, self.num_filters - self.num_filters // 2)
      behind = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
      paths = [
        Conv(size, self.stride, name=f"shortcut_{i}", size=1)(path)
        for i, (size, path) in enumerate(zip(halves, (x, behind), strict=True))
      ]
      x = RunningBatchNorm(name="norm_shortcut")(jnp.concatenate(paths, -1), train)
    return x + shake_shake(self, branches[0], branches[1], train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShakeShakeOptions(ClassifierNetwork):
  """Residual blocks of two branches, mixed at random for every image."""

  name: ClassVar[str] = "shake_shake"

  depth: int = option(26, "Layers with weights: 6n + 2, as 26.", check=at_least(1))
  width: int = option(
    96, "Channels of each branch in the first stage.", check=at_least(2)
  )

  def complete(self) -> None:
    check_depth("ShakeShake", self.depth, 6, 2)

  @property
  def label(self) -> str:
    return f"{self.name}{self.depth}_2x{self.width}d"

  def module(
    self, num_outputs: int, *, convolution: Convolution = "auto"
  ) -> ShakeShake:
    return ShakeShake(
      num_outputs, depth=self.depth, width=self.width, convolution=convolution
    )
