"""A 2-D convolution that is closed under differentiation.

Among the derivatives of `lax.conv_general_dilated`, the derivative of the *weight
gradient* with respect to the input leaves XLA:CPU's fast path, and it is exactly the
one that second-order meta-learning needs. Here the three maps of a convolution
(`jsharp.nn._conv_forms`) are three primitives, each the transpose of the other two,
so derivatives of every order, forward and reverse, are made of the same three maps.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jsharp._checks import check_choice
from jsharp.nn import _conv_forms
from jsharp.nn._conv_forms import Geometry
from jsharp.nn._divided import TASK_AXIS, over_examples, undivided_mesh
from jsharp.nn._plain import ARITHMETIC
from jsharp.types import Convolution

_FORMS = ("direct", "im2col", "winograd")


def conv2d(
  x: jax.Array, w: jax.Array, *, stride: int = 1, convolution: Convolution = "auto"
) -> jax.Array:
  """Convolves with SAME padding, without bias, closed under differentiation.

  The same function as `lax.conv_general_dilated(x, w, (stride, stride), "SAME")`
  in the dimension orders NHWC, HWIO, NHWC, but fast at every order of derivative.

  Args:
    x: `[batch, height, width, in_channels]`, float.
    w: `[kernel_height, kernel_width, in_channels, out_channels]`, odd kernel sizes,
      the dtype of `x`.
    stride: step between two outputs in both directions.
    convolution: how all three maps are computed, with equal results up to rounding.
      "direct" is XLA's convolution, "im2col" uses matrix products, and "winograd" uses
      fewer multiplications; it is for 3x3 kernels at stride 1, and is computed as
      "direct" on platforms other than the CPU. "auto" chooses by shape and platform:
      Winograd's form only for large batches of maps with many channels.
      "auto_winograd" is "auto" with Winograd's form wherever the shape suits it, which
      is the fastest if each device of a CPU has one core: XLA is slow at dividing small
      products among threads.

  Returns:
    `[batch, ceil(height / stride), ceil(width / stride), out_channels]`.

  Raises:
    ValueError: if shapes, dtypes, `stride` or `convolution` do not fit.

  Example:
    >>> x, w = jnp.ones([2, 5, 5, 3]), jnp.ones([3, 3, 3, 8])
    >>> conv2d(x, w).shape
    (2, 5, 5, 8)
    >>> conv2d(x, w, stride=2)[0, :, :, 0]
    Array([[12., 18., 12.],
           [18., 27., 18.],
           [12., 18., 12.]], dtype=float32)
  """
  _check(x, w, stride, convolution)
  form, weight_form = _choose(x, w, stride, convolution)
  config: Any = jax.config  # jax 0.10 does not declare its attributes.
  geometry = Geometry(
    size=(x.shape[1], x.shape[2]),
    kernel=(w.shape[0], w.shape[1]),
    stride=stride,
    form=form,
    weight_form=weight_form,
    precision=config.jax_default_matmul_precision,
    mesh=_mesh_for(x.shape[0]),
  )
  x, w = _match_manual_axes(x, w)
  return _forward.bind(x[None], w[None], geometry=geometry)[0]


def _check(x, w, stride, convolution):
  if x.ndim != 4 or w.ndim != 4:
    raise ValueError(
      "conv2d needs x [batch, height, width, in_channels] and w [kernel_height, "
      f"kernel_width, in_channels, out_channels]; got x {x.shape} and w {w.shape}."
    )
  if x.shape[3] != w.shape[2]:
    raise ValueError(
      f"conv2d: x {x.shape} has {x.shape[3]} channels, but w {w.shape} expects "
      f"{w.shape[2]}."
    )
  if w.shape[0] % 2 == 0 or w.shape[1] % 2 == 0:
    raise ValueError(f"conv2d: kernel sizes must be odd; got w {w.shape}.")
  if x.dtype != w.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"conv2d: x and w must share one float dtype; got x {x.dtype} and w {w.dtype}. "
      "Cast one of them."
    )
  if stride < 1:
    raise ValueError(f"conv2d: stride must be at least 1; got {stride}.")
  check_choice("convolution", convolution, get_args(Convolution))
  if convolution == "winograd" and (stride > 1 or w.shape[:2] != (3, 3)):
    raise ValueError(
      'conv2d: convolution="winograd" is for 3x3 kernels at stride 1; got w '
      f'{w.shape} and stride={stride}. Pass "auto_winograd" to use it where it applies.'
    )


def _choose(x, w, stride, convolution):
  """The form of a convolution and of its input gradient, and of its weight gradient.

  The thresholds are the outcomes of `benchmarks.convolution`.
  """
  if convolution in _FORMS:
    return convolution, convolution
  channels = min(w.shape[2:])
  is_large = _is_large(x, stride)
  if w.shape[:2] == (1, 1):
    return "im2col", "im2col"
  if stride > 1:
    if channels < _conv_forms.WINOGRAD_CHANNELS:
      return "im2col", "im2col"
    is_narrow = channels < _conv_forms.MANY_CHANNELS
    return "strided", "direct" if is_large and is_narrow else "im2col"
  if _suits_winograd(x, w):
    if convolution == "auto_winograd":
      return "winograd", "winograd"
    if is_large and channels >= _conv_forms.MANY_CHANNELS:
      is_wide = channels >= 2 * _conv_forms.MANY_CHANNELS
      return "winograd" if is_wide else "direct", "winograd"
  if x.shape[3] < _conv_forms.FEW_CHANNELS:
    return "im2col", "im2col"
  if x.shape[3] >= _conv_forms.SHIFTED_CHANNELS:
    return "direct", "shifted"
  return "direct", "direct"


def _mesh_for(num_images):
  """The mesh of the devices that share these images evenly, if there is one."""
  mesh = undivided_mesh()
  if mesh is None or not isinstance(num_images, int):
    return None
  return mesh if num_images % mesh.shape[TASK_AXIS] == 0 else None


def _is_large(x, stride):
  num_images, height, width = x.shape[:3]
  if not isinstance(num_images, int):  # A symbolic dimension of `jax.export`.
    return False
  return num_images * (height // stride) * (width // stride) >= _conv_forms.MANY_PIXELS


def _suits_winograd(x, w):
  return (
    w.shape[:2] == (3, 3)
    and min(w.shape[2:]) >= _conv_forms.WINOGRAD_CHANNELS
    and min(x.shape[1:3]) >= _conv_forms.WINOGRAD_SIDE
    and x.dtype.itemsize >= 4  # The transforms of narrower dtypes would lose digits.
  )


def _match_manual_axes(x, w):
  """Inside `shard_map`, both operands must vary over the same mesh axes."""
  axes = [jax.typeof(a).manual_axis_type.varying for a in (x, w)]
  missing = [tuple(sorted((axes[0] | axes[1]) - own)) for own in axes]
  return tuple(
    lax.pcast(a, names, to="varying") if names else a
    for a, names in zip((x, w), missing, strict=True)
  )


# Axis of the example, the input channel and the output channel in each operand.
_X, _W, _Y = {"n": 1, "c": 4}, {"c": 3, "o": 4}, {"n": 1, "o": 4}


def _map_primitive(name, function, shape, *, axes):
  """A bilinear primitive for one of the three maps, without its transposes.

  Args:
    name: the primitive's name, as shown in a jaxpr.
    function: the arithmetic.
    shape: `shape(a_shape, b_shape, geometry)`, the shape of the result.
    axes: the axis of each letter, for both operands and the result.

  Returns:
    The primitive.
  """

  def computed(a, b, *, geometry):
    # The precision that applied when the convolution was traced, even if it and its
    # transposes are compiled elsewhere, as for XLA's own convolution.
    part: Callable[[Any, Any], Any] = functools.partial(function, geometry=geometry)
    if geometry.mesh is not None:
      letters = (a_axes.get("n"), b_axes.get("n"), out_axes.get("n"))
      part = over_examples(part, geometry.mesh, axes=letters)
    with jax.default_matmul_precision(geometry.precision), jax.named_scope("conv2d"):
      return part(a, b)

  a_axes, b_axes, out_axes = axes
  primitive = Primitive(name)
  primitive.def_impl(jax.jit(computed, static_argnames="geometry"))
  primitive.def_abstract_eval(
    lambda a, b, *, geometry: a.update(
      shape=shape(a.shape, b.shape, geometry), weak_type=False
    )
  )
  mlir.register_lowering(primitive, mlir.lower_fun(computed, multiple_results=False))
  ARITHMETIC[primitive] = computed

  def batch(operands, dims, *, geometry):
    (a, b), (a_dim, b_dim) = operands, dims
    if a_dim is not None and b_dim is not None:
      size = a.shape[a_dim]
      a, b = _fold(a, a_dim, 0), _fold(b, b_dim, 0)
      return _unfold(primitive.bind(a, b, geometry=geometry), size, 0), 0
    # Only one operand is batched: its batch becomes more examples or more channels of
    # the same convolution, along the letter that only it shares with the result.
    if a_dim is not None:
      (letter,) = a_axes.keys() - b_axes.keys()
      size, a = a.shape[a_dim], _fold(a, a_dim, a_axes[letter])
    else:
      (letter,) = b_axes.keys() - a_axes.keys()
      size, b = b.shape[b_dim], _fold(b, b_dim, b_axes[letter])
    axis = out_axes[letter]
    return _unfold(primitive.bind(a, b, geometry=geometry), size, axis), axis

  batching.primitive_batchers[primitive] = batch
  return primitive


def _fold(x, batch_axis, axis):
  """Merges the batch axis into axis `axis` (counted without it)."""
  x = jnp.moveaxis(x, batch_axis, axis)
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _unfold(x, size, axis):
  return x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :])


_forward = _map_primitive(
  "conv2d",
  _conv_forms.forward,
  lambda x, w, geometry: (*x[:2], *geometry.out, w[4]),
  axes=(_X, _W, _Y),
)
_input_gradient = _map_primitive(
  "conv2d_input_gradient",
  _conv_forms.input_gradient,
  lambda g, w, geometry: (*g[:2], *geometry.size, w[3]),
  axes=(_Y, _W, _X),
)
_weight_gradient = _map_primitive(
  "conv2d_weight_gradient",
  _conv_forms.weight_gradient,
  lambda x, g, geometry: (x[0], *geometry.kernel, x[4], g[4]),
  axes=(_X, _Y, _W),
)

# Rules get the cotangent and both operands; one of the operands is undefined.
ad.defbilinear(
  _forward,
  lambda g, x, w, **kw: _input_gradient.bind(g, w, **kw),
  lambda g, x, w, **kw: _weight_gradient.bind(x, g, **kw),
)
ad.defbilinear(
  _input_gradient,
  lambda x, g, w, **kw: _forward.bind(x, w, **kw),
  lambda x, g, w, **kw: _weight_gradient.bind(x, g, **kw),
)
ad.defbilinear(
  _weight_gradient,
  lambda w, x, g, **kw: _input_gradient.bind(g, w, **kw),
  lambda w, x, g, **kw: _forward.bind(x, w, **kw),
)
