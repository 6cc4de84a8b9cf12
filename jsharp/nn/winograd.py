"""Winograd's F(2x2, 3x3): a 3x3 convolution with 16 multiplications in place of 36.

For stride 1. Two outputs of a 1-D convolution with three taps are four products of
transformed inputs and transformed taps, where six stood before; done along rows and
columns, four outputs are 16 products, each the same matrix product over channels for
every tile (arXiv 1509.09308). All transforms are sums, differences and halves, so the
result is that of a direct convolution but for rounding, at every size: of an odd map
the last tiles are half empty.

The weight gradient goes back through the same steps: products of transformed inputs and
of output gradients under the transposed output transform, summed over tiles, then the
kernel's transform transposed. Arrays are `x [n, h, w, c]`, `w [3, 3, c, o]` and
`g [n, h, w, o]`, float32 or wider.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jsharp.nn.chunks import merge, num_chunks, split, sum_of_chunks

_CHUNK_ENTRIES = 300_000
"""More transformed entries than this leave a CPU's cache."""

_BATCHED = ((0,), (0,))


def forward(x: jax.Array, w: jax.Array) -> jax.Array:
  """Convolves with SAME padding: `[n, h, w, o]`."""
  n, *size, c = x.shape
  entries = _tile_entries(size, max(c, w.shape[-1]))
  chunks = num_chunks(n, entries, _CHUNK_ENTRIES)
  # The operands of a transform, and its result, are written out: XLA would otherwise
  # compute what they come from, or the transform itself, anew at each of its uses.
  w = lax.optimization_barrier(w)

  def whole(x: jax.Array) -> jax.Array:
    products = lax.dot_general(
      _transform_input(lax.optimization_barrier(x)),
      _transform_kernel(w),
      (((2,), (1,)), _BATCHED),
    )
    y = _transform_output(lax.optimization_barrier(products), x.shape)
    return lax.optimization_barrier(y)

  if chunks == 1:
    return whole(x)
  return merge(lax.map(whole, split(x, chunks)))


def input_gradient(g: jax.Array, w: jax.Array) -> jax.Array:
  """Transposes `forward` in `x`: the convolution with the kernel turned around."""
  return forward(g, w[::-1, ::-1].swapaxes(2, 3))


def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
  """Transposes `forward` in `w`: `[3, 3, c, o]`."""
  n, *size, c = x.shape
  entries = _tile_entries(size, c + g.shape[-1]) // 2

  def whole(x: jax.Array, g: jax.Array) -> jax.Array:
    x, g = lax.optimization_barrier((x, g))
    products = lax.dot_general(
      _transform_input(x), _transpose_output(g), (((1,), (1,)), _BATCHED)
    )
    return _transpose_kernel(lax.optimization_barrier(products))

  return sum_of_chunks(whole, x, g, num_chunks(n, entries, _CHUNK_ENTRIES))


def _tile_entries(size, channels):
  """Transformed entries of one example."""
  rows, columns = (-(-side // 2) for side in size)
  return 16 * rows * columns * channels


def _transform_input(x):
  """`[16, tiles, c]`: overlapping tiles of 4x4 pixels, two apart."""
  _, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
  rows = _input_1d(x[:, 0::2], x[:, 1::2], axis=1)
  tiles = [t for r in rows for t in _input_1d(r[:, :, 0::2], r[:, :, 1::2], axis=2)]
  return jnp.stack(tiles).reshape(16, -1, c)


def _input_1d(even, odd, *, axis):
  """Pixels a, c, e, ... and b, d, f, ...: the transform of (a, b, c, d), (c, d, ..."""
  last = even.shape[axis] - 1
  (a, c), (b, d) = (
    [lax.slice_in_dim(p, i, i + last, axis=axis) for i in (0, 1)] for p in (even, odd)
  )
  return a - c, b + c, c - b, b - d


def _transform_kernel(w):
  """`[16, c, o]`."""
  columns = [_kernel_1d(*w[:, j]) for j in range(3)]
  return jnp.stack([u for row in zip(*columns, strict=True) for u in _kernel_1d(*row)])


def _kernel_1d(a, b, c):
  ends, middle = 0.5 * (a + c), 0.5 * b
  return a, ends + middle, ends - middle, c


def _transpose_kernel(u):
  """Transposes `_transform_kernel`."""
  u = u.reshape(4, 4, *u.shape[1:])
  columns = [_transpose_kernel_1d(*u[:, j]) for j in range(4)]
  rows = [_transpose_kernel_1d(*row) for row in zip(*columns, strict=True)]
  return jnp.stack([jnp.stack(row) for row in rows])


def _transpose_kernel_1d(a, b, c, d):
  ends = 0.5 * (b + c)
  return a + ends, 0.5 * (b - c), ends + d


def _transform_output(products, shape):
  """`[16, tiles, o]` to `[n, h, w, o]`, given the shape of the input."""
  n, h, w, _ = shape
  tiles = products.reshape(4, 4, n, -(-h // 2), -(-w // 2), products.shape[-1])
  columns = [_output_1d(*tiles[:, j]) for j in range(4)]
  rows = [jnp.stack(_output_1d(*row), 3) for row in zip(*columns, strict=True)]
  y = jnp.stack(rows, 2)
  return y.reshape(n, 2 * y.shape[1], 2 * y.shape[3], -1)[:, :h, :w]


def _output_1d(a, b, c, d):
  return a + b + c, b - c - d


def _transpose_output(g):
  """Transposes `_transform_output`."""
  _, h, w, o = g.shape
  g = jnp.pad(g, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
  rows = _transpose_output_1d(g[:, 0::2], g[:, 1::2])
  tiles = [t for r in rows for t in _transpose_output_1d(r[:, :, 0::2], r[:, :, 1::2])]
  return jnp.stack(tiles).reshape(16, -1, o)


def _transpose_output_1d(a, b):
  return a, a + b, a - b, -b
