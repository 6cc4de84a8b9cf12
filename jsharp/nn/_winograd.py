"""Winograd's F(4x4, 3x3): a 3x3 convolution with 36 multiplications in place of 144.

For stride 1. Four neighbouring outputs of a 1-D convolution with three taps are the
products of six transformed inputs with six transformed taps, summed with the weights
of a third transform. Applied along rows and columns, 16 outputs need 36 products, each
the same matrix product over channels for every tile (arXiv 1509.09308). The weight
gradient uses the transposes of the same steps: products of transformed inputs with
output gradients under the transposed output transform, summed over tiles, then the
transposed kernel transform. The result equals a direct convolution up to rounding, at
every size: if a side is not divisible by four, the last tiles are partly empty. Arrays
are `x [n, h, w, c]`, `w [3, 3, c, o]` and `g [n, h, w, o]`, float32 or wider.

The transforms evaluate polynomials at six points and interpolate from them (Toom-Cook).
The points decide how much rounding errors are magnified. Instead of the usual 0, 1, -1,
2, -2 and infinity, +-sqrt(1/2) and +-sqrt(2) are used: half the error, which is five
times the error of a direct convolution in float32 (`benchmarks/winograd_points.py`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsharp.nn._chunks import merge, num_chunks, split, sum_of_chunks

_TILE = 4
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
"""Beside infinity."""

_CHUNK_ENTRIES = 300_000
"""More transformed entries than this exceed a CPU's cache."""

_BATCHED = ((0,), (0,))

_ROW_BY_ROW = jax.__version_info__ < (0, 11)


def transforms(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The matrices of F(m, 3) for a 1-D convolution of `m + 2` inputs.

  `output @ ((kernel @ taps) * (input @ x))` are the `m` outputs, where `m` is the
  number of points minus one. The algorithm is the transpose of multiplying two
  polynomials by their values at the points and at infinity.

  Args:
    points: distinct numbers.

  Returns:
    The transforms of the input `[m + 2, m + 2]`, of the kernel `[m + 2, 3]` and of the
    output `[m, m + 2]`, float64.

  Example:
    >>> of_input, of_kernel, of_output = transforms((0.0, 1.0, -1.0))
    >>> x, taps = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 0.0, 3.0])
    >>> (of_output @ ((of_kernel @ taps) * (of_input @ x))).tolist()
    [13.0, 26.0]
  """
  finite = np.asarray(points, np.float64)
  others = [np.delete(finite, i) for i in range(len(finite))]
  of_input = np.zeros([len(finite) + 1] * 2)
  of_input[:-1, :-1] = [np.poly(roots)[::-1] for roots in others]
  of_input[-1] = np.poly(finite)[::-1]
  scales = [np.prod(p - q) for p, q in zip(finite, others, strict=True)]
  of_kernel = np.vander(finite, 3, increasing=True) / np.transpose([scales])
  of_output = np.vander(finite, len(finite) - 1, increasing=True)
  of_kernel, of_output = (
    np.concatenate([rows, np.eye(rows.shape[1])[-1:]])  # At infinity.
    for rows in (of_kernel, of_output)
  )
  return of_input, of_kernel, of_output.T


_INPUT, _KERNEL, _OUTPUT = transforms(_POINTS)


def forward(x: jax.Array, w: jax.Array) -> jax.Array:
  """Convolves with SAME padding: `[n, h, w, o]`."""
  entries = _tile_entries(x.shape, max(w.shape[2:]))
  kernel = _transform_kernel(w)

  def whole(x: jax.Array) -> jax.Array:
    products = lax.dot_general(_transform_input(x), kernel, (((2,), (1,)), _BATCHED))
    return _transform_output(_write(products), x.shape)

  chunks = num_chunks(x.shape[0], entries, _CHUNK_ENTRIES)
  if chunks == 1:
    return whole(x)
  return merge(lax.map(whole, split(x, chunks)), x.shape[0])


def input_gradient(g: jax.Array, w: jax.Array) -> jax.Array:
  """Transposes `forward` in `x`: the convolution with the flipped kernel."""
  return forward(g, w[::-1, ::-1].swapaxes(2, 3))


def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
  """Transposes `forward` in `w`: `[3, 3, c, o]`."""
  entries = _tile_entries(x.shape, x.shape[-1] + g.shape[-1]) // 2

  def whole(x: jax.Array, g: jax.Array) -> jax.Array:
    return lax.dot_general(
      _transform_input(x), _transpose_output(g), (((1,), (1,)), _BATCHED)
    )

  chunks = num_chunks(x.shape[0], entries, _CHUNK_ENTRIES)
  return _transpose_kernel(sum_of_chunks(whole, x, g, chunks))


def _num_tiles(shape):
  """The number of tiles along height and width."""
  return -(-shape[1] // _TILE), -(-shape[2] // _TILE)


def _tile_entries(shape, channels):
  """The number of transformed entries of one example."""
  rows, columns = _num_tiles(shape)
  return len(_INPUT) ** 2 * rows * columns * channels


def _combine(matrix, parts, axis):
  """`sum_k matrix[:, k] * parts[k]`, the rows along a new axis.

  XLA compiles this to one loop over the result; a separate sum for every row would give
  one small loop per row, and a copy of their results. Before jax 0.11 the single loop
  is slower.
  """
  if _ROW_BY_ROW:
    return jnp.stack([_sum_of(row, parts) for row in matrix], axis)
  shape = [1] * (parts[0].ndim + 1)
  shape[axis] = -1
  terms = [
    jnp.asarray(column.reshape(shape), part.dtype) * jnp.expand_dims(part, axis)
    for column, part in zip(matrix.T, parts, strict=True)
  ]
  return sum(terms[1:], start=terms[0])


def _sum_of(weights, parts):
  pairs = zip(weights, parts, strict=True)
  terms = [part if c == 1 else float(c) * part for c, part in pairs if c]
  return sum(terms[1:], start=terms[0])


def _write(x):
  """A barrier around `x`; without it XLA recomputes `x` at each use."""
  return lax.optimization_barrier(x)


def _transform_input(x):
  """`[36, tiles, c]`: overlapping tiles of 6x6 pixels, four apart."""
  _, h, w, c = x.shape
  rows, columns = _num_tiles(x.shape)
  margins = [(1, tiles * _TILE + 1 - side) for tiles, side in ((rows, h), (columns, w))]
  x = _write(jnp.pad(x, ((0, 0), *margins, (0, 0))))
  taps = range(len(_INPUT))
  x = _write(_combine(_INPUT, [_every_fourth(x, 1, k, rows) for k in taps], 0))
  x = _write(_combine(_INPUT, [_every_fourth(x, 3, k, columns) for k in taps], 1))
  return x.reshape(len(_INPUT) ** 2, -1, c)


def _every_fourth(x, axis, start, count):
  return lax.slice_in_dim(x, start, start + _TILE * (count - 1) + 1, _TILE, axis)


def _transform_kernel(w):
  """`[36, c, o]`."""
  w = _write(_combine(_KERNEL, list(_write(w)), 0))
  w = _write(_combine(_KERNEL, [w[:, k] for k in range(3)], 1))
  return w.reshape(-1, *w.shape[2:])


def _transpose_kernel(w):
  """Transposes `_transform_kernel`."""
  six = range(len(_KERNEL))
  w = _write(w).reshape(len(six), len(six), *w.shape[1:])
  w = _write(_combine(_KERNEL.T, [w[k] for k in six], 0))
  return _combine(_KERNEL.T, [w[:, k] for k in six], 1)


def _transform_output(products, shape):
  """`[36, tiles, o]` to `[n, h, w, o]`, given the shape of the input."""
  n, h, w, _ = shape
  rows, columns = _num_tiles(shape)
  six = range(len(_INPUT))
  y = products.reshape(len(six), len(six), n, rows, columns, -1)
  y = _write(_combine(_OUTPUT, [y[k] for k in six], 0)).transpose(2, 3, 0, 1, 4, 5)
  y = _combine(_OUTPUT, [y[:, :, :, k] for k in six], 4)
  y = y.reshape(n, _TILE * rows, _TILE * columns, -1)
  return _write(y[:, :h, :w])


def _transpose_output(g):
  """Transposes `_transform_output`: `[36, tiles, o]`."""
  _, h, w, o = g.shape
  rows, columns = _num_tiles(g.shape)
  margins = [(0, tiles * _TILE - side) for tiles, side in ((rows, h), (columns, w))]
  if any(high for _, high in margins):
    g = _write(jnp.pad(g, ((0, 0), *margins, (0, 0))))
  g = _combine(_OUTPUT.T, [_every_fourth(g, 1, k, rows) for k in range(_TILE)], 0)
  g = _write(g)
  g = _combine(_OUTPUT.T, [_every_fourth(g, 3, k, columns) for k in range(_TILE)], 1)
  return _write(g).reshape(len(_INPUT) ** 2, -1, o)
