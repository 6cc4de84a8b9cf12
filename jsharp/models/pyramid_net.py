"""PyramidNet: channels that grow from block to block, optionally with ShakeDrop."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._options import ClassifierNetwork
from jsharp.models._residual import Conv, check_depth, check_images, head
from jsharp.models._shake import shake_drop
from jsharp.nn import RunningBatchNorm
from jsharp.options import at_least, between, option
from jsharp.types import Convolution


class PyramidNet(nn.Module):
  """The bottleneck form of Han, Kim and Kim (2017, arXiv 1610.02915) for small images.

  A 3x3 convolution to 16 channels and a normalisation, three stages of
  `(depth - 2) / 9` blocks, the second and third at stride 2, normalisation, ReLU, the
  mean over space, a linear head. Over all blocks the width grows evenly from 16 to
  `16 + alpha`. A block is normalisation, 1x1 convolution, normalisation, ReLU, 3x3
  convolution, normalisation, ReLU, 1x1 convolution to four times the width,
  normalisation; its shortcut has no parameters: the mean of 2x2 windows at stride 2,
  zeros for new channels. With ShakeDrop (Yamada, Iwamura and Kise 2018, arXiv
  1802.02375) the branch of an image is randomly scaled, with a probability that rises
  from block to block; outside training it is scaled by the expectation.

  Widths are rounded, as in the published code of both papers, where equation 2 of the
  first one truncates. With 10 outputs and 3 input channels, depth 272 and alpha 200
  give 26,210,842 parameters (26.0 million in the paper).
  Padding is SAME: a strided convolution of an even side pads at the end only.

  ShakeDrop draws from the stream "shake", given as
  `module.apply(..., rngs={"shake": key})`; without it nothing is drawn.

  Attributes:
    num_outputs: size of the output vector, the number of classes.
    depth: layers with weights, 9n + 2: 272 in the paper.
    alpha: the total increase of the width, 200 in the paper.
    shake_drop: probability that the last block's branch is scaled; 0.5 in the paper,
      0 for none.
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.

  Example:
    >>> model = PyramidNet(num_outputs=10, depth=11, alpha=12)
    >>> images = jnp.zeros([2, 16, 16, 3])
    >>> made, _ = jax.eval_shape(
    ...   lambda key: model.init_with_output(key, images, False), jax.random.key(0))
    >>> made.shape
    (2, 10)
  """

  num_outputs: int
  depth: int = 272
  alpha: int = 200
  shake_drop: float = 0.0
  convolution: Convolution = "auto"

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
    """Maps images to one vector each.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      train: whether to normalise by the batch's own statistics and scale branches at
        random; `batch_stats` must then be mutable.

    Returns:
      `[batch, num_outputs]`.

    Raises:
      ValueError: if `inputs` is not a batch of images or a size is invalid.
    """
    check_depth("PyramidNet", self.depth, 9, 2)
    check_images("PyramidNet", inputs)
    x = Conv(16, convolution=self.convolution, name="conv")(inputs)
    x = RunningBatchNorm(name="norm")(x, train)
    per_stage = (self.depth - 2) // 9
    for number in range(3 * per_stage):
      grown = (number + 1) / (3 * per_stage)
      stage, block = divmod(number, per_stage)
      x = _Block(
        round(16 + self.alpha * grown),
        2 if stage and not block else 1,
        1 - self.shake_drop * grown,
        self.convolution,
        name=f"stage_{stage}_block_{block}",
      )(x, train)
    return head(self.num_outputs, nn.relu(RunningBatchNorm(name="norm_end")(x, train)))


class _Block(nn.Module):
  width: int
  stride: int
  keep: float
  convolution: Convolution

  @nn.compact
  def __call__(self, x, train):
    y = RunningBatchNorm(name="norm_0")(x, train)
    y = Conv(self.width, name="conv_0", size=1)(y)
    y = nn.relu(RunningBatchNorm(name="norm_1")(y, train))
    y = Conv(self.width, self.stride, self.convolution, name="conv_1")(y)
    y = nn.relu(RunningBatchNorm(name="norm_2")(y, train))
    y = Conv(4 * self.width, name="conv_2", size=1)(y)
    y = RunningBatchNorm(name="norm_3")(y, train)
    if self.keep < 1:
      y = shake_drop(self, y, self.keep, train)
    if self.stride > 1:
      x = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
    return y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyramidNetOptions(ClassifierNetwork):
  """Bottleneck blocks whose channels grow from one to the next."""

  name: ClassVar[str] = "pyramid_net"

  depth: int = option(
    272, "Layers with weights: 9n + 2, as 29, 110, 272.", check=at_least(1)
  )
  pyramid_alpha: int = option(
    200, "Total increase of the width over all blocks.", check=at_least(0)
  )
  shake_drop: float = option(
    0.0,
    "ShakeDrop: probability that the last block's branch is scaled at random; it rises "
    "linearly from the first block. 0.5 in its paper; 0: none.",
    check=between(0, 1, "0.5 is usual."),
  )

  def complete(self) -> None:
    check_depth("PyramidNet", self.depth, 9, 2)

  @property
  def label(self) -> str:
    dropped = "_shake_drop" if self.shake_drop else ""
    return f"{self.name}{self.depth}_{self.pyramid_alpha}{dropped}"

  def module(
    self, num_outputs: int, *, convolution: Convolution = "auto"
  ) -> PyramidNet:
    return PyramidNet(
      num_outputs,
      depth=self.depth,
      alpha=self.pyramid_alpha,
      shake_drop=self.shake_drop,
      convolution=convolution,
    )
