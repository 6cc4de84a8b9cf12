"""How the three maps of a convolution are computed: direct, im2col or Winograd.

A convolution `y = conv(x, w)` is bilinear. Without the spatial axes, with example `n`,
input channel `c` and output channel `o`, its operands are `x [n, c]`, `w [c, o]` and
`y [n, o]`, and the three maps

    forward(x, w) -> y,    input_gradient(g, w) -> x,    weight_gradient(x, g) -> w

(`g` shaped like `y`) are transposes of one another. Every array here has one more
leading axis, `groups`: independent convolutions of the same shape, which `jax.vmap`
over both operands produces.

`direct` calls `lax.conv_general_dilated`, always in the dimension order batch, height,
width, channels: XLA:CPU has a fast path for this order only, also inside loops.
`im2col` uses strided slices, concatenations and matrix products. `shifted` is the
weight gradient at stride 1 as one matrix product: `kh` copies of `x`, shifted by rows,
and `kw` copies of `g`, shifted by columns, are concatenated along the channels; the
products of all copies of `x` with all copies of `g`, summed over pixels, are the
weights' gradients. It copies `kh + kw` maps where im2col copies `kh * kw`. `winograd`
(`jsharp.nn._winograd`) is for 3x3 kernels at stride 1 and needs fewer multiplications.
`strided` computes `forward` directly and `input_gradient` by im2col: XLA is slow at
convolving maps with zeros between the pixels. `shifted` and `winograd` are used on CPUs
only; elsewhere they are computed as `direct`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh

from jsharp.nn import _winograd
from jsharp.nn._chunks import num_chunks, sum_of_chunks

FEW_CHANNELS = 3
"""With fewer channels than this, the matrix product per kernel row is too narrow."""

_TRANSPOSES = jax.__version_info__ < (0, 11)

SHIFTED_CHANNELS = 8 if _TRANSPOSES else 64
"""At or above this many input channels the shifted form is faster than the direct one;
from jax 0.11 on, the direct one is often a product."""

MANY_CHANNELS = 64
"""Large batches with at least this many channels suit Winograd's weight gradient on
several threads too; with twice as many, all of Winograd's maps."""

MANY_PIXELS = 8192
"""A batch with at least this many output pixels is large."""

WINOGRAD_CHANNELS = 16
"""With fewer input or output channels than this, the transforms cost too much."""

WINOGRAD_SIDE = 6
"""On maps with a shorter side, too many tiles are partly empty."""

_CHUNK_PIXELS = 9000
"""More output pixels than this exceed a CPU's cache in the direct weight gradient."""

_CHUNK_ENTRIES = 1_000_000
"""More entries of shifted copies than this exceed a CPU's cache."""


class Geometry(NamedTuple):
  """The static facts of one convolution.

  Attributes:
    size: height and width of the input map.
    kernel: height and width of the kernel.
    stride: step between two outputs, the same in both directions.
    form: "direct", "im2col", "winograd" or "strided", which is direct with the input
      gradient of im2col.
    weight_form: the form of the weight gradient: one of the first three or "shifted".
    precision: a value of `jax.default_matmul_precision`; None for JAX's default.
    mesh: the devices that share the examples, if the compiler divides the rest.
  """

  size: tuple[int, int]
  kernel: tuple[int, int]
  stride: int
  form: str
  weight_form: str
  precision: str | None = None
  mesh: AbstractMesh | None = None

  @property
  def out(self) -> tuple[int, int]:
    """Height and width of the output map."""
    return -(-self.size[0] // self.stride), -(-self.size[1] // self.stride)

  @property
  def dilated(self) -> tuple[int, int]:
    """Height and width of the output map with `stride - 1` zeros between pixels."""
    return (self.out[0] - 1) * self.stride + 1, (self.out[1] - 1) * self.stride + 1

  @property
  def padding(self) -> list[tuple[int, int]]:
    """Zeros before and after the input map, as in XLA's SAME padding."""
    totals = [
      max(dilated - 1 + kernel - size, 0)
      for dilated, kernel, size in zip(
        self.dilated, self.kernel, self.size, strict=True
      )
    ]
    return [(total // 2, total - total // 2) for total in totals]


def forward(x: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
  """Convolves `x [groups, n, h, w, c]` with `w [groups, kh, kw, c, o]`."""
  form = {
    "direct": _direct_forward,
    "strided": _direct_forward,
    "im2col": _im2col_forward,
    "winograd": _on_cpu(_winograd.forward, _direct_forward),
  }[geometry.form]
  return _per_group(lambda x, w: form(x, w, geometry), x, w, geometry.form)


def input_gradient(g: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
  """Transposes `forward` in `x`: `g [groups, n, oh, ow, o]` to `x`'s shape."""
  form = {
    "direct": _direct_input_gradient,
    "strided": _im2col_input_gradient,
    "im2col": _im2col_input_gradient,
    "winograd": _on_cpu(_winograd.input_gradient, _direct_input_gradient),
  }[geometry.form]
  return _per_group(lambda g, w: form(g, w, geometry), g, w, geometry.form)


def weight_gradient(x: jax.Array, g: jax.Array, *, geometry: Geometry) -> jax.Array:
  """Transposes `forward` in `w`: `x` and `g` to `[groups, kh, kw, c, o]`."""
  form = {
    "direct": _direct_weight_gradient,
    "im2col": _im2col_weight_gradient,
    "shifted": _shifted_weight_gradient,
    "winograd": _on_cpu(_winograd.weight_gradient, _whole_weight_gradient),
  }[geometry.weight_form]
  # Without the barrier XLA recomputes x and g inside the transposed copies.
  x, g = lax.optimization_barrier((x, g))
  return _per_group(lambda x, g: form(x, g, geometry), x, g, geometry.weight_form)


def _on_cpu(function, elsewhere):
  """`function(a, b)` on a CPU, `elsewhere(a, b, geometry)` on other platforms."""
  return lambda a, b, geometry: lax.platform_dependent(
    a, b, cpu=function, default=lambda a, b: elsewhere(a, b, geometry)
  )


def _per_group(function, a, b, form):
  if a.shape[0] == 1:
    return function(a[0], b[0])[None]
  batched = jax.vmap(function)
  if form == "im2col":
    return batched(a, b)
  # XLA:CPU is several times slower with a grouped convolution than with a loop.
  return lax.platform_dependent(
    a, b, cpu=lambda a, b: lax.map(lambda one: function(*one), (a, b)), default=batched
  )


def _convolve(x, w, *, padding, window_strides=(1, 1), **dilation):
  return lax.conv_general_dilated(
    x,
    w,
    window_strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    **dilation,
  )


def _direct_forward(x, w, geometry):
  strides = (geometry.stride, geometry.stride)
  return _convolve(x, w, padding=geometry.padding, window_strides=strides)


def _direct_input_gradient(g, w, geometry):
  padding = [
    (kernel - 1 - low, size + low - dilated)
    for (low, _), size, kernel, dilated in zip(
      geometry.padding, geometry.size, geometry.kernel, geometry.dilated, strict=True
    )
  ]
  w = w[::-1, ::-1].swapaxes(2, 3)
  return _convolve(g, w, padding=padding, lhs_dilation=(geometry.stride,) * 2)


def _direct_weight_gradient(x, g, geometry):
  def whole(x, g):
    return _whole_weight_gradient(x, g, geometry)

  chunks = num_chunks(x.shape[0], geometry.out[0] * geometry.out[1], _CHUNK_PIXELS)
  if chunks == 1:
    return whole(x, g)
  return lax.platform_dependent(
    x, g, cpu=lambda x, g: sum_of_chunks(whole, x, g, chunks), default=whole
  )


def _shifted_weight_gradient(x, g, geometry):
  (h, w), (kh, kw) = geometry.size, geometry.kernel
  c, o = x.shape[-1], g.shape[-1]
  rows, columns = geometry.padding

  def whole(x, g):
    x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
    by_row = jnp.concatenate([x[:, i : i + h] for i in range(kh)], axis=-1)
    by_column = jnp.concatenate(
      [jnp.pad(g, ((0, 0), (0, 0), (j, kw - 1 - j), (0, 0))) for j in range(kw)],
      axis=-1,
    )
    pixels = (0, 1, 2)
    return jnp.tensordot(by_row, by_column, axes=(pixels, pixels))

  def shifted(x, g):
    entries = h * (w + kw - 1) * (kh * c + kw * o)
    chunks = num_chunks(x.shape[0], entries, _CHUNK_ENTRIES)
    total = sum_of_chunks(whole, x, g, chunks)
    return total.reshape(kh, c, kw, o).swapaxes(1, 2)

  return lax.platform_dependent(
    x,
    g,
    cpu=shifted,
    default=lambda x, g: _whole_weight_gradient(x, g, geometry),
  )


def _whole_weight_gradient(x, g, geometry):
  padding = [
    (low, kernel - 1 + dilated - size - low)
    for (low, _), size, kernel, dilated in zip(
      geometry.padding, geometry.size, geometry.kernel, geometry.dilated, strict=True
    )
  ]
  w = _convolve(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    padding=padding,
    rhs_dilation=(geometry.stride,) * 2,
  )
  return w.transpose(1, 2, 0, 3)


def _im2col_forward(x, w, geometry):
  parts = _patches(x, geometry)
  w = w.reshape(len(parts), -1, w.shape[-1])
  return sum(jnp.tensordot(part, w[i], axes=1) for i, part in enumerate(parts))


def _im2col_input_gradient(g, w, geometry):
  c, o = w.shape[2:]
  if geometry.stride == 1:
    # Odd kernels with stride 1 have the same padding on both sides.
    return _im2col_forward(g, w[::-1, ::-1].swapaxes(2, 3), geometry)
  columns = jnp.tensordot(g, w.reshape(-1, o), axes=((3,), (1,)))
  columns = columns.reshape(*g.shape[:3], *geometry.kernel, c)
  zero = jnp.zeros((), g.dtype)
  taps = []
  for i in range(geometry.kernel[0]):
    for j in range(geometry.kernel[1]):
      margins = [
        (k - low, size + low - k - dilated, geometry.stride - 1)
        for k, (low, _), size, dilated in zip(
          (i, j), geometry.padding, geometry.size, geometry.dilated, strict=True
        )
      ]
      spread = ((0, 0, 0), *margins, (0, 0, 0))
      taps.append(lax.pad(columns[:, :, :, i, j], zero, spread))
  return sum(taps[1:], start=taps[0])


def _im2col_weight_gradient(x, g, geometry):
  c, o = x.shape[-1], g.shape[-1]
  # Before jax 0.11 the product transposes its first operand, so this is the one with
  # fewer columns.
  pixels = (0, 1, 2)
  rows = [
    jnp.tensordot(part, g, axes=(pixels, pixels))
    if part.shape[-1] < o or not _TRANSPOSES
    else jnp.tensordot(g, part, axes=(pixels, pixels)).T
    for part in _patches(x, geometry)
  ]
  return jnp.stack(rows).reshape(*geometry.kernel, c, o)


def _patches(x, geometry):
  """The input patch of each output pixel: arrays `[n, oh, ow, taps * c]`.

  In kernel order: one array per kernel row, which copies less, or a single array if
  there are few channels.
  """
  x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
  n, _, _, c = x.shape
  (rows, columns), stride = geometry.dilated, geometry.stride
  taps = [
    [
      lax.slice(x, (0, i, j, 0), (n, i + rows, j + columns, c), (1, stride, stride, 1))
      for j in range(geometry.kernel[1])
    ]
    for i in range(geometry.kernel[0])
  ]
  if c < FEW_CHANNELS:
    taps = [[tap for row in taps for tap in row]]
  return [jnp.concatenate(row, axis=-1) for row in taps]
