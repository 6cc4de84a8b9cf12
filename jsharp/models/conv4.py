"""The four-block convolutional network of the few-shot literature."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._dense import dense
from jsharp.models._norms import Norm, norm_layer
from jsharp.models._options import Backbone, PretrainedNetwork
from jsharp.models.context import checked_context
from jsharp.models.initial import glorot_uniform
from jsharp.nn import BatchNorm, conv2d, max_pool
from jsharp.options import at_least, option
from jsharp.types import Convolution

_BLOCKS = 4


class Conv4(nn.Module):
  """Four blocks of 3x3 convolution, batch normalisation, ReLU; a linear head.

  With `stride=1` each block ends in a 2x2 max-pool and the last map is flattened
  (mini-ImageNet); with `stride=2` the convolutions stride instead and the last map is
  averaged over space (Finn et al. 2017 on Omniglot). Pooling comes before the ReLU
  here: both are monotone, so the result is the same for a quarter of the work. All
  kernels, including the head's, are initialised Glorot uniform and the head's bias at
  zero, as in MAML's mini-ImageNet network.

  The papers' convolutions have a bias each. The following normalisation subtracts it
  again, so it changes no output and its gradient is zero up to rounding. Adding it took
  a quarter of the time spent outside convolutions, so it is left out. Including the
  `b = 4 * num_filters` biases, the parameter counts are those of the papers: 120,325 +
  b = 120,581 that the inner loop adapts and 512 of the normalisation for 84x84x3
  images, 5 outputs and 64 filters; 112,468 + b = 112,724 and 512 for 28x28x1 images and
  20 outputs, with either stride.

  Attributes:
    num_outputs: size of the output vector, the way of a classification task; None
      for the flattened last map, the embedding of metric methods.
    num_filters: channels of each block.
    stride: 1 (max-pool form) or 2 (strided form).
    convolution: how convolutions are computed, see `jsharp.nn.conv2d`.
    norm: the normalisation: "batch" in the papers; "group", "layer" or "frozen".

  Example:
    >>> model = Conv4(num_outputs=5, num_filters=8)
    >>> images = jnp.zeros([3, 28, 28, 1])
    >>> variables = jax.jit(model.init)(jax.random.key(0), images)
    >>> jax.jit(model.apply)(variables, images).shape
    (3, 5)
  """

  num_outputs: int | None
  num_filters: int = 64
  stride: int = 1
  convolution: Convolution = "auto"
  norm: Norm = "batch"

  @nn.compact
  def __call__(self, inputs: jax.Array, num_statistics: int | None = None) -> jax.Array:
    """Maps images to one vector each.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      num_statistics: if given, batch normalisation uses the statistics of only the
        first `num_statistics` images.

    Returns:
      `[batch, num_outputs]`, or `[batch, size of the last map]` without a head.

    Raises:
      ValueError: if `inputs` is not a batch of images that are large enough for four
        blocks, or `stride` is neither 1 nor 2.
    """
    return self.forward(inputs, num_statistics, None)

  def forward(
    self,
    inputs: jax.Array,
    mode: Any,
    after_norm: Callable[[int, jax.Array], jax.Array] | None = None,
  ) -> jax.Array:
    """The network, with a hook in each block for subclasses.

    Args:
      inputs: see `__call__`.
      mode: the argument of the normalisation layers, see `norm_layer`.
      after_norm: `after_norm(block, x) -> x`, applied to the normalised map of block 0,
        1, ... before pooling and ReLU; None for no change. (It must come before the
        pooling, which does not commute with a negative scale.)

    Returns:
      As `__call__`.
    """
    self._check(inputs)
    x = inputs
    for block in range(_BLOCKS):
      kernel = _Kernel(self.num_filters, name=f"conv_{block}")(x)
      pool = self.stride == 1
      together = pool and after_norm is None
      norm = norm_layer(
        self.norm, f"norm_{block}", pool=together, convolution=self.convolution
      )
      if together and isinstance(norm, BatchNorm):
        x = norm(x, mode, kernel=kernel)
      else:
        x = conv2d(x, kernel, stride=self.stride, convolution=self.convolution)
        x = norm(x, mode)
      if after_norm is not None:
        x = after_norm(block, x)
        x = max_pool(x) if pool else x
      x = nn.relu(x)
    x = x.reshape(x.shape[0], -1) if self.stride == 1 else x.mean((1, 2))
    if self.num_outputs is None:
      return x
    return dense(self.num_outputs, "head", x.dtype)(x)

  def _check(self, inputs):
    if self.stride not in (1, 2):
      raise ValueError(f"Conv4: stride must be 1 or 2; got {self.stride}.")
    smallest = 2**_BLOCKS if self.stride == 1 else 1
    if inputs.ndim != 4 or min(inputs.shape[1:3]) < smallest:
      raise ValueError(
        "Conv4: inputs must be [batch, height, width, channels] with height and "
        f"width at least {smallest} for stride={self.stride}; got {inputs.shape}."
      )
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
      raise ValueError(
        f"Conv4: inputs must be float; got {inputs.dtype}. Divide uint8 images by "
        "255 first."
      )


class _Kernel(nn.Module):
  """The kernel of a 3x3 convolution without bias."""

  num_filters: int

  @nn.compact
  def __call__(self, x):
    shape = (3, 3, x.shape[-1], self.num_filters)
    return self.param("kernel", glorot_uniform, shape, x.dtype)


class ContextConv4(Conv4):
  """A `Conv4` where the context scales and shifts the channels of one block.

  After the normalisation of that block, before its pooling and ReLU, each channel is
  multiplied by `1 + scale` and shifted by `shift`, both linear in the context (FiLM,
  Perez et al. 2018). CAVIA's network on mini-ImageNet has 100 context parameters, in
  the third of its four blocks, and 32 filters in the smallest of its published forms.
  Its code has a bias in the linear map and no `1 +`; here the scale and offset of the
  block's normalisation are these biases.

  Attributes:
    context_size: length of the context.
    context_block: the block that it modulates, 0 to 3.

  Example:
    >>> model = ContextConv4(num_outputs=5, num_filters=8, context_size=10)
    >>> images = jnp.zeros([3, 28, 28, 1])
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> variables["params"]["film"]["kernel"].shape
    (10, 16)
    >>> jax.eval_shape(model.apply, variables, images, context=jnp.ones(10)).shape
    (3, 5)
  """

  context_size: int = 100
  context_block: int = 2

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    num_statistics: int | None = None,
    context: jax.Array | None = None,
  ) -> jax.Array:
    """Maps images to one vector each.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      num_statistics: see `Conv4`.
      context: `[context_size]`; zeros if None.

    Returns:
      `[batch, num_outputs]`, or `[batch, size of the last map]` without a head.

    Raises:
      ValueError: as `Conv4` does, or if `context` has another shape or
        `context_block` is out of range.
    """
    if self.context_block not in range(4):
      raise ValueError(
        f"ContextConv4: context_block must be 0, 1, 2 or 3; got {self.context_block}."
      )
    film = nn.Dense(
      2 * self.num_filters,
      use_bias=False,
      name="film",
      kernel_init=glorot_uniform,
      param_dtype=inputs.dtype,
    )
    scale, shift = jnp.split(
      film(checked_context(context, self.context_size, inputs.dtype)), 2
    )

    def after_norm(block: int, x: jax.Array) -> jax.Array:
      if block != self.context_block:
        return x
      channels = (1,) * (x.ndim - 1) + (-1,)
      return x * (1 + scale).reshape(channels) + shift.reshape(channels)

    return self.forward(inputs, num_statistics, after_norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv4Options(Backbone):
  """Four convolutions with max-pooling."""

  name: ClassVar[str] = "conv4"
  stride: ClassVar[int] = 1

  num_filters: int = option(
    64, "Filters per convolution of the conv4 models.", check=at_least(1)
  )

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> Conv4:
    return Conv4(
      num_outputs=num_outputs,
      num_filters=self.num_filters,
      stride=self.stride,
      convolution=convolution,
      norm=self.norm,
    )

  def with_context(
    self, num_outputs: int, size: int, *, convolution: Convolution = "auto"
  ) -> Any:
    return ContextConv4(
      num_outputs=num_outputs,
      num_filters=self.num_filters,
      stride=self.stride,
      convolution=convolution,
      norm=self.norm,
      context_size=size,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv4StridedOptions(Conv4Options):
  """Four convolutions with stride 2 instead of pooling; the fastest network."""

  name: ClassVar[str] = "conv4_strided"
  stride: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv4Classifier(PretrainedNetwork):
  """Conv4 for ordinary training, to initialise few-shot learners."""

  name: ClassVar[str] = "conv4"
  stride: ClassVar[int] = 1

  num_filters: int = option(
    64, "Filters per convolution of the conv4 models.", check=at_least(1)
  )

  @property
  def label(self) -> str:
    return f"{self.name}_{self.num_filters}"

  def backbone(self, *, convolution: Convolution = "auto") -> Conv4:
    return Conv4(
      num_outputs=None,
      num_filters=self.num_filters,
      stride=self.stride,
      convolution=convolution,
      norm="running",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv4StridedClassifier(Conv4Classifier):
  """The strided Conv4 for ordinary training, to initialise few-shot learners."""

  name: ClassVar[str] = "conv4_strided"
  stride: ClassVar[int] = 2
