"""Models with a context, a small input that is the same for all examples of a task.

`jsharp.models.ContextConv4` and `jsharp.models.ContextMLP` are plain models with an
additional context input. With a context of zeros they equal the plain models.
`jsharp.algorithms.cavia` adapts only the context to a task (Zintgraf et al. 2019, arXiv
1810.03642).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jsharp.models.functions import InitFn, as_functions


def as_context_functions(module: nn.Module) -> tuple[InitFn, Callable[..., Any]]:
  """Turns a Linen module with a context into two functions, for `cavia`.

  Args:
    module: called as `module(inputs, num_statistics, context=context)`.

  Returns:
    `init_fn(key, inputs) -> params`, and
    `apply_fn(contextual, inputs, num_statistics=None) -> outputs`, where `contextual`
    is a pair `(params, context)` such as `jsharp.algorithms.cavia.Contextual`. Use it
    with `jsharp.losses.batch_loss` and the policies of `jsharp.normalization`.

  Example:
    >>> import jax
    >>> from jsharp.models import ContextMLP
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


def checked_context(context: Any, size: int, dtype: Any) -> Any:
  """Checks the size of a context; None becomes zeros.

  Args:
    context: `[size]`, or None.
    size: its length.
    dtype: the dtype of the zeros.

  Returns:
    `[size]`.

  Raises:
    ValueError: if the context has another shape.

  Example:
    >>> checked_context(None, 2, jnp.float32).tolist()
    [0.0, 0.0]
  """
  if context is None:
    return jnp.zeros(size, dtype)
  if jnp.shape(context) != (size,):
    raise ValueError(
      f"context must be [context_size] = [{size}], got {jnp.shape(context)}; set "
      "context_size or pass another context"
    )
  return context
