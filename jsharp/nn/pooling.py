"""Max-pooling whose derivatives are correct and fast at every order."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jsharp.nn._plain import ARITHMETIC


def max_pool(x: jax.Array, *, sign: jax.Array | None = None) -> jax.Array:
  """Max-pools 2x2 windows with stride 2; an odd last row or column is dropped.

  The position of each window's maximum is found once. Everything else, at every order
  of derivative, is linear: selecting the elements at these positions, and the transpose
  of that. A reshape followed by `max` over two axes is silently wrong in second-order
  meta-gradients under `jit`: its derivative compares the forward maximum with a
  recomputed operand. At a tie the derivative goes to one of the tied elements: the
  upper one, then the left one. A NaN in a window propagates.

  Args:
    x: `[..., height, width, channels]`, height and width at least 2.
    sign: `[channels]`; where it is negative, the minimum of a window is taken. So
      `max_pool(x, sign=factor) * factor` is `max_pool(x * factor)` with a quarter of
      the multiplications. None takes the maximum everywhere.

  Returns:
    `[..., height // 2, width // 2, channels]`.

  Raises:
    ValueError: if `x` has fewer than three axes, or a side shorter than 2.

  Example:
    >>> x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    >>> max_pool(x)[0, :, :, 0]
    Array([[ 6.,  8.],
           [16., 18.]], dtype=float32)
  """
  if x.ndim < 3 or min(x.shape[-3:-1]) < 2:
    raise ValueError(
      "max_pool: x must be [..., height, width, channels] with height and width at "
      f"least 2; got {x.shape}."
    )
  winners = _winners(lax.stop_gradient(x), sign)
  return _pick.bind(x, winners, size=x.shape[-3:-1])


def _winners(x, sign):
  """The position of each window's maximum: 0, 1 in the upper row, 2, 3 in the lower."""
  (above_left, above_right), (left, right) = _windows(x)
  largest = None
  if sign is not None:
    largest = jnp.expand_dims(sign >= 0, tuple(range(x.ndim - 1)))

  def beats(a, b):
    beats = a >= b
    if largest is not None:
      beats = (beats & largest) | ((a <= b) & ~largest)
    return beats | jnp.isnan(a)

  left_above, right_above = beats(above_left, left), beats(above_right, right)
  at_left = beats(
    jnp.where(left_above, above_left, left), jnp.where(right_above, above_right, right)
  )
  two, three, one, zero = (jnp.uint8(i) for i in (2, 3, 1, 0))
  winners = jnp.where(
    at_left,
    jnp.where(left_above, zero, two),
    jnp.where(right_above, one, three),
  )
  # Without the barrier XLA recomputes them wherever they are used.
  return lax.optimization_barrier(winners)


def _windows(x):
  """The four elements of each window, by row and column: four strided slices."""
  h, w = x.shape[-3] // 2 * 2, x.shape[-2] // 2 * 2
  return [[x[..., i:h:2, j:w:2, :] for j in range(2)] for i in range(2)]


def _pick_winners(x, winners, *, size):
  (a, b), (c, d) = _windows(x)
  below = jnp.where(winners == 2, c, d)
  return jnp.where(winners == 0, a, jnp.where(winners == 1, b, below))


def _put_winners(g, winners, *, size):
  """Transposes `_pick_winners`: each window's value at its maximum, zero elsewhere."""
  g, winners = (jnp.expand_dims(a, (-4, -2)) for a in (g, winners))
  own = jnp.arange(4, dtype=jnp.uint8).reshape(*(1,) * (g.ndim - 5), 1, 2, 1, 2, 1)
  placed = jnp.where(winners == own, g, jnp.zeros_like(g))
  h, w = 2 * g.shape[-5], 2 * g.shape[-3]
  placed = placed.reshape(*g.shape[:-5], h, w, g.shape[-1])
  odd = [(0, size[0] - h, 0), (0, size[1] - w, 0), (0, 0, 0)]
  margins = [(0, 0, 0)] * (placed.ndim - 3) + odd
  return lax.pad(placed, jnp.zeros((), g.dtype), margins)


def _linear(name, function, shape):
  """A primitive that is linear in its first operand; the second holds the winners."""
  primitive = Primitive(name)
  primitive.def_impl(jax.jit(function, static_argnames="size"))
  primitive.def_abstract_eval(
    lambda a, winners, *, size: a.update(
      shape=(*winners.shape[:-3], *shape(winners, size), winners.shape[-1]),
      weak_type=False,
    )
  )
  mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
  ARITHMETIC[primitive] = function

  def batch(operands, dims, *, size):
    batch_size = next(
      a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None
    )
    a, winners = (
      jnp.broadcast_to(a, (batch_size, *a.shape))
      if d is None
      else jnp.moveaxis(a, d, 0)
      for a, d in zip(operands, dims, strict=True)
    )
    return primitive.bind(a, winners, size=size), 0

  batching.primitive_batchers[primitive] = batch
  return primitive


_pick = _linear(
  "max_pool_pick", _pick_winners, lambda winners, size: winners.shape[-3:-1]
)
_put = _linear("max_pool_put", _put_winners, lambda winners, size: size)


def _transposes(primitive, transpose):
  """Defines the derivatives of a linear primitive by its transpose."""

  def derivative(primals, tangents, *, size):
    # The winners are integers: if anything has a tangent, it is the first operand.
    a, winners = primals
    out = primitive.bind(a, winners, size=size)
    return out, primitive.bind(tangents[0], winners, size=size)

  def transposed(g, a, winners, *, size):
    if isinstance(g, ad.Zero):
      return ad.Zero(a.aval), None
    return transpose.bind(g, winners, size=size), None

  ad.primitive_jvps[primitive] = derivative
  ad.primitive_transposes[primitive] = transposed


_transposes(_pick, _put)
_transposes(_put, _pick)
