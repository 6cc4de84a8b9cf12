"""The precision of a network's matrix products and convolutions.

Only the network, `apply_fn(params, inputs)`, is wrapped. Parameters, gradients, inner
updates, the outer optimizer, losses and metrics are float32 in every precision.

- `"float32"`: products of float32 numbers, on every device. JAX's own default lets a
  GPU round their operands to TF32 and a TPU to bfloat16.
- `"tf32"`: a GPU with TF32 units rounds the operands to 10 bits of mantissa and sums in
  float32. Elsewhere as `"float32"` (on a TPU three bfloat16 products).
- `"bfloat16"`: `compute_in(apply_fn, jnp.bfloat16)`, 7 bits of mantissa, in half the
  memory.

A wrapped network keeps its precision wherever it is differentiated, batched or
compiled, whatever `jax.default_matmul_precision` is set to there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PRECISIONS = ("float32", "tf32", "bfloat16")
"""The names that `in_precision` knows."""

_PRODUCTS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


def compute_in(apply_fn: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
  """Computes a network in a dtype other than that of its parameters.

  Every floating-point array among the positional arguments (parameters, inputs,
  contexts) is rounded to `dtype`, `apply_fn` computes with these, and floating-point
  results are converted to float32. Keyword arguments, such as running statistics,
  integers and keys are passed on unchanged.

  So the layers compute in `dtype`, forward and backward, at every order of derivative,
  and round to it once per operation. Gradients with respect to float32 parameters are
  float32, since the derivative of a cast is a cast. The normalisation layers of
  `jsharp.nn` compute statistics and normalise in float32 or wider, and round only their
  result.

  Args:
    apply_fn: `apply_fn(params, inputs, ...) -> outputs`, as from
      `jsharp.models.as_functions` or `with_statistics`.
    dtype: floating-point, such as `jnp.bfloat16`. `jnp.float32` changes nothing if
      everything is float32.

  Returns:
    A function of the same arguments.

  Raises:
    ValueError: if `dtype` is not floating-point.

  Example:
    >>> apply_fn = compute_in(lambda w, x: x @ w, jnp.bfloat16)
    >>> w, x = jnp.full([2, 1], 1.001), jnp.ones([1, 2])
    >>> apply_fn(w, x)  # 1.001 is nearer to 1 than to the next bfloat16.
    Array([[2.]], dtype=float32)
    >>> jax.grad(lambda w: apply_fn(w, x).sum())(w).dtype
    dtype('float32')
  """
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f"compute_in: dtype must be floating-point, got {dtype}; use jnp.bfloat16"
    )

  def computed(*args: Any, **named: Any) -> Any:
    return _cast(apply_fn(*_cast(args, dtype), **named), jnp.float32)

  return computed


def in_precision(apply_fn: Callable[..., Any], precision: str) -> Callable[..., Any]:
  """The same network with its products in one of `PRECISIONS`.

  Args:
    apply_fn: `apply_fn(params, inputs, ...) -> outputs`.
    precision: "float32", "tf32" or "bfloat16", see the module docstring.

  Returns:
    A function of the same arguments. Precisions that `apply_fn` itself sets for a
    product (`precision="highest"`) still apply.

  Raises:
    ValueError: if there is no such precision.

  Example:
    >>> apply_fn = in_precision(lambda w, x: x @ w, "tf32")
    >>> apply_fn(jnp.ones([2, 1]), jnp.ones([1, 2])).tolist()
    [[2.0]]
  """
  if precision not in PRECISIONS:
    raise ValueError(
      f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}"
    )
  products = _PRODUCTS[precision]

  def computed(*args: Any, **named: Any) -> Any:
    with jax.default_matmul_precision(products):
      return apply_fn(*args, **named)

  return compute_in(computed, jnp.bfloat16) if precision == "bfloat16" else computed


def _cast(tree: Any, dtype: Any) -> Any:
  def cast(leaf: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      return leaf
    return jnp.asarray(leaf, dtype)

  return jax.tree.map(cast, tree)
