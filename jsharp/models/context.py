"""Models with a context, a small input that is the same for all examples of a task.

They are the plain models with one place more where the context enters, and at a
context of zeros they compute what the plain models do. `jsharp.algorithms.cavia` adapts
the context to a task and nothing else (Zintgraf et al. 2019, arXiv 1810.03642).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models.conv4 import Conv4
from jsharp.models.functions import InitFn, as_functions
from jsharp.models.mlp import MLP


class ContextMLP(MLP):
  """An `MLP` whose inputs are followed by the context, as more entries.

  `ContextMLP((40, 40, 1), context_size=5)` is CAVIA's network for the sinusoid.

  Attributes:
    context_size: length of the context.

  Example:
    >>> model = ContextMLP((40, 40, 1), context_size=5)
    >>> x = jnp.zeros([10, 1])
    >>> variables = model.init(jax.random.key(0), x)
    >>> variables["params"]["dense_0"]["kernel"].shape
    (6, 40)
    >>> model.apply(variables, x, context=jnp.ones(5)).shape
    (10, 1)
  """

  context_size: int = 5

  def __call__(
    self,
    inputs: jax.Array,
    num_statistics: int | None = None,
    context: jax.Array | None = None,
  ) -> jax.Array:
    """Maps each example to one vector.

    Args:
      inputs: `[batch, ...]`, float.
      num_statistics: see `MLP`.
      context: `[context_size]`; zeros if None.

    Returns:
      `[batch, features[-1]]`.

    Raises:
      ValueError: as `MLP` does, or if `context` is of another shape.
    """
    context = _checked(context, self.context_size, inputs.dtype)
    rows = jnp.broadcast_to(context[None], (inputs.shape[0], self.context_size))
    x = jnp.concatenate([inputs.reshape(inputs.shape[0], -1), rows], axis=1)
    return super().__call__(x, num_statistics)


class ContextConv4(Conv4):
  """A `Conv4` where the context scales and shifts the channels of one block.

  Behind the normalisation of that block, before its pooling and ReLU, each channel is
  multiplied by `1 + scale` and moved by `shift`, both linear in the context (FiLM,
  Perez et al. 2018). CAVIA's network on mini-ImageNet has 100 context parameters, in
  the third of its four blocks, and 32 filters in the smallest of its published forms.
  Its code has a bias in the linear map and no `1 +`; here the scale and offset of the
  block's normalisation are these biases.

  Attributes:
    context_size: length of the context.
    context_block: which block it enters, 0 to 3.

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
      ValueError: as `Conv4` does, or if `context` is of another shape or there is no
        such block.
    """
    if self.context_block not in range(4):
      raise ValueError(
        f"ContextConv4: context_block must be 0, 1, 2 or 3; got {self.context_block}."
      )
    film = nn.Dense(
      2 * self.num_filters,
      use_bias=False,
      name="film",
      kernel_init=nn.initializers.glorot_uniform(),
      param_dtype=inputs.dtype,
    )
    scale, shift = jnp.split(
      film(_checked(context, self.context_size, inputs.dtype)), 2
    )

    def after_norm(block: int, x: jax.Array) -> jax.Array:
      if block != self.context_block:
        return x
      channels = (1,) * (x.ndim - 1) + (-1,)
      return x * (1 + scale).reshape(channels) + shift.reshape(channels)

    return self.forward(inputs, num_statistics, after_norm)


def as_context_functions(module: nn.Module) -> tuple[InitFn, Callable[..., Any]]:
  """Turns a Linen module with a context into two functions, for `cavia`.

  Args:
    module: called as `module(inputs, num_statistics, context=context)`.

  Returns:
    `init_fn(key, inputs) -> params`, and
    `apply_fn(contextual, inputs, num_statistics=None) -> outputs` with `contextual` a
    pair `(params, context)` such as `jsharp.algorithms.cavia.Contextual`: what
    `jsharp.losses.batch_loss` and the policies of `jsharp.normalization` take.

  Example:
    >>> init_fn, apply_fn = as_context_functions(ContextMLP((40, 40, 1)))
    >>> params = init_fn(jax.random.key(0), jnp.zeros([1, 1]))
    >>> apply_fn((params, jnp.ones(5)), jnp.ones([10, 1])).shape
    (10, 1)
  """
  init_fn, apply_params = as_functions(module)

  def apply_fn(contextual, inputs, num_statistics=None):
    params, context = contextual
    return apply_params(params, inputs, num_statistics, context=context)

  return init_fn, apply_fn


def _checked(context, size, dtype):
  if context is None:
    return jnp.zeros(size, dtype)
  if jnp.shape(context) != (size,):
    raise ValueError(
      f"context must be [context_size] = [{size}], got {jnp.shape(context)}; set "
      "context_size or pass another context"
    )
  return context
