"""conv2d against XLA's convolution: values, three orders of derivative, batching."""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from jsharp import models
from jsharp.nn import BatchNorm, _conv_forms, _convolved_map, _winograd, conv2d
from jsharp.nn._chunks import num_chunks, sum_of_chunks
from jsharp.nn._conv_forms import Geometry
from jsharp.nn.convolution import _choose

_FORMS = ("direct", "im2col")
_CASES = [
  # name, map, kernel, in channels, stride
  ("square", (5, 5), (3, 3), 9, 1),
  ("strided_odd", (7, 5), (3, 3), 9, 2),
  ("strided_even", (6, 4), (3, 3), 9, 2),
  ("strided_mixed_few_channels", (6, 7), (3, 3), 2, 2),
  ("strided_one_pixel", (1, 1), (3, 3), 2, 2),
  ("stride_three_wide_kernel", (7, 4), (5, 3), 2, 3),
  ("pointwise", (4, 4), (1, 1), 3, 1),
]
# "auto" chooses; at stride 1 and nine channels that is the shifted weight gradient.
_BY_FORM = (
  [(f"{name}_{form}", *case, form) for name, *case in _CASES for form in _FORMS]
  + [
    (f"{name}_chosen", *case, "auto")
    for name, *case in (
      ("shifted", (5, 4), (3, 3), 9, 1),
      ("shifted_wide_kernel", (4, 7), (5, 3), 8, 1),
      ("shifted_pointwise", (3, 4), (1, 1), 9, 1),
      ("shifted_tall_kernel_one_pixel", (1, 1), (1, 3), 9, 1),
    )
  ]
  + [
    (f"winograd_{h}x{w}", (h, w), (3, 3), channels, 1, "winograd")
    for h, w, channels in ((1, 1, 3), (2, 3, 1), (5, 4, 9), (6, 8, 2))
  ]
)
_EACH_FORM = (("direct", 1), ("im2col", 2), ("winograd", 1))
_ALL_FORMS = (*_FORMS, "winograd")


def plain(x, w, stride):
  return lax.conv_general_dilated(
    x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def operands(size, kernel, channels, dtype=np.float64, seed=0):
  generator = np.random.default_rng(seed)
  x = generator.normal(size=(3, *size, channels))
  w = generator.normal(size=(*kernel, channels, 4))
  return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


def of_order(order, conv):
  """A scalar function whose value holds derivatives of `conv` up to `order`."""

  def value(x, w):
    return jnp.sum(jnp.sin(conv(x, w)))

  for _ in range(order):
    value = functools.partial(
      lambda inner, x, w: sum(
        jnp.sum(jnp.sin(g)) for g in jax.grad(inner, (0, 1))(x, w)
      ),
      value,
    )
  return value


@functools.cache
def plain_third_derivatives(stride):
  reference = functools.partial(plain, stride=stride)
  return jax.jit(jax.grad(of_order(2, reference), (0, 1)))


def assert_near(actual, expected, rtol=1e-11):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    scale = float(jnp.max(jnp.abs(b))) if b.size else 0.0
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * (scale + 1e-30))


class ConvolutionTest(parameterized.TestCase):
  @parameterized.named_parameters(_BY_FORM)
  def test_value_and_first_derivatives(self, size, kernel, channels, stride, form):
    with jax.enable_x64(True):
      x, w = operands(size, kernel, channels)
      expected = plain(x, w, stride)

      @jax.jit
      def first_derivatives(x, w, slope):
        found = []
        for conv in (
          functools.partial(conv2d, stride=stride, convolution=form),
          functools.partial(plain, stride=stride),
        ):
          y, pullback = jax.vjp(conv, x, w)
          tangents = jnp.cos(x), jnp.sin(w)
          found.append((y, pullback(slope), jax.jvp(conv, (x, w), tangents)))
        return found

      assert_near(*first_derivatives(x, w, expected))

  @parameterized.parameters(
    ("direct", 1), ("im2col", 2), ("winograd", 1), ("auto", 1), ("auto", 2)
  )
  @mock.patch.object(_conv_forms, "WINOGRAD_CHANNELS", 1)  # So stride 2 is "strided".
  def test_second_and_third_derivatives(self, form, stride):
    with jax.enable_x64(True):
      x, w = operands((5, 4), (3, 3), 9)
      conv = functools.partial(conv2d, stride=stride, convolution=form)
      # The second derivative is in what is differentiated.
      actual = jax.jit(jax.grad(of_order(2, conv), (0, 1)))(x, w)
      assert_near(actual, plain_third_derivatives(stride)(x, w))

  @parameterized.parameters(
    *((*case, 2.5) for case in (*_EACH_FORM, ("auto", 1))),
    ("direct", 1, 0.5),
  )
  def test_exported_for_any_number_of_examples(self, form, stride, per_chunk):
    conv = functools.partial(conv2d, stride=stride, convolution=form)
    w = operands((5, 4), (3, 3), 9, np.float32)[1]

    def gradient(conv):
      return jax.jit(jax.grad(of_order(0, conv), (0, 1)))

    (n,) = jax.export.symbolic_shape("n")
    pixels = 5 * 4 // stride**2
    for module, name, one in (
      (_conv_forms, "_CHUNK_PIXELS", pixels),
      (_conv_forms, "_CHUNK_ENTRIES", 5 * 6 * (3 * 9 + 3 * w.shape[-1])),
      (_winograd, "_CHUNK_ENTRIES", 36 * 2 * 9),
    ):
      self.enter_context(mock.patch.object(module, name, int(per_chunk * one)))
    exported = jax.export.export(gradient(conv), platforms=["cpu", "cuda", "tpu"])(
      jax.ShapeDtypeStruct((n, 5, 4, 9), jnp.float32), w
    )
    for size in (1, 5):
      x = np.float32(np.random.default_rng(1).normal(size=(size, 5, 4, 9)))
      expected = gradient(functools.partial(plain, stride=stride))(x, w)
      assert_near(exported.call(x, w), expected, rtol=1e-4)

  def test_derivatives_against_finite_differences(self):
    with jax.enable_x64(True):
      x, w = operands((5, 4), (3, 3), 2)
      conv = functools.partial(conv2d, convolution="winograd")
      function = jax.jit(of_order(1, conv))
      dx, dw = operands((5, 4), (3, 3), 2, seed=1)
      step = 1e-5
      ahead = function(x + step * dx, w + step * dw)
      behind = function(x - step * dx, w - step * dw)
      # Reverse over reverse, then forward over reverse.
      gx, gw = jax.jit(jax.grad(function, (0, 1)))(x, w)
      slope = float(jnp.vdot(gx, dx) + jnp.vdot(gw, dw))
      difference = float(ahead - behind) / (2 * step)
      np.testing.assert_allclose(slope, difference, rtol=1e-6)
      forward = jax.jvp(function, (x, w), (dx, dw))[1]
      np.testing.assert_allclose(slope, forward, rtol=1e-12)

  @parameterized.parameters(*_EACH_FORM)
  def test_derivatives_stay_in_the_family(self, form, stride):
    x, w = operands((5, 4), (3, 3), 9, np.float32)
    conv = functools.partial(conv2d, stride=stride, convolution=form)
    function = jax.vmap(jax.grad(of_order(2, conv), (0, 1)), in_axes=(None, 0))
    jaxpr = str(jax.make_jaxpr(function)(x, jnp.stack([w, w])))
    for name in ("conv2d[", "conv2d_input_gradient[", "conv2d_weight_gradient["):
      self.assertIn(name, jaxpr)
    self.assertNotIn("conv_general_dilated", jaxpr)
    self.assertNotIn("dot_general", jaxpr)

  @parameterized.parameters(*_EACH_FORM)
  def test_vmap_equals_a_loop(self, form, stride):
    conv = functools.partial(conv2d, stride=stride, convolution=form)

    def gradients(x, w):
      return conv(x, w), jax.grad(of_order(1, conv), (0, 1))(x, w)

    single = jax.jit(gradients)
    with jax.enable_x64(True):
      x, w = operands((5, 4), (3, 3), 2)
      other = 2 * jnp.cos(x), jnp.sin(w)
      for axes in ((3, None), (None, 2), (1, 4)):
        many = [
          tuple(a if axis is None else b for a, b, axis in zip(
            (x, w), pair, axes, strict=True))
          for pair in ((x, w), other)
        ]  # fmt: skip
        stacked = [
          a if axis is None else jnp.stack([a, b], axis)
          for a, b, axis in zip(*many, axes, strict=True)
        ]
        actual = jax.jit(jax.vmap(gradients, axes))(*stacked)
        expected = jax.tree.map(
          lambda *parts: np.stack(parts), *(single(*pair) for pair in many)
        )
        assert_near(actual, expected)

  @parameterized.parameters((6, 3), (2, 1))
  def test_large_weight_gradient_is_a_sum_of_chunks(self, batch, chunks):
    pixels = 2 * _conv_forms._CHUNK_PIXELS // 5
    limit = _conv_forms._CHUNK_PIXELS
    self.assertEqual(num_chunks(batch, pixels, limit), chunks)
    x = jax.random.normal(jax.random.key(0), (batch, pixels // 40, 40, 3))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 2))
    function = functools.partial(conv2d, convolution="direct")
    y, pullback = jax.vjp(function, x, w)
    expected = jax.vjp(functools.partial(plain, stride=1), x, w)[1](jnp.cos(y))
    assert_near(pullback(jnp.cos(y)), expected, rtol=1e-4)

  def test_sums_of_chunks_outgrow_no_dtype(self):
    x = jnp.ones((512, 1), jnp.bfloat16)
    total = sum_of_chunks(lambda x, g: (x * g).sum(axis=0), x, x, 512)
    np.testing.assert_array_equal(total, jnp.full(1, 512, jnp.bfloat16))

  @parameterized.parameters((1, 1), (7, 7))
  def test_shifted_weight_gradient_is_a_sum_of_chunks(self, batch, chunks):
    size = 12 * 14 * (3 * 8 + 3 * 5)
    with mock.patch.object(_conv_forms, "_CHUNK_ENTRIES", 3 * size + size // 2):
      limit = _conv_forms._CHUNK_ENTRIES
      self.assertEqual(num_chunks(batch, size, limit), chunks)
      x = jax.random.normal(jax.random.key(0), (batch, 12, 12, 8))
      w = jax.random.normal(jax.random.key(1), (3, 3, 8, 5))
      y, pullback = jax.vjp(jax.jit(conv2d), x, w)
      expected = jax.vjp(functools.partial(plain, stride=1), x, w)[1](jnp.cos(y))
      assert_near(pullback(jnp.cos(y)), expected, rtol=1e-5)

  @parameterized.parameters((1, 1), (6, 3))
  def test_winograd_goes_through_chunks(self, batch, chunks):
    entries = 36 * 2 * 1 * 4  # Of one example, tiles by the larger number of channels.
    with mock.patch.object(_winograd, "_CHUNK_ENTRIES", 2 * entries + 1):
      self.assertEqual(num_chunks(batch, entries, 2 * entries + 1), chunks)
      x = jax.random.normal(jax.random.key(0), (batch, 5, 4, 3))
      w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
      conv = functools.partial(conv2d, convolution="winograd")
      program = str(jax.make_jaxpr(lambda x, w: _winograd.forward(x, w))(x, w))
      self.assertEqual("scan" in program, chunks > 1)
      y, pullback = jax.vjp(jax.jit(conv), x, w)
      expected, reference = jax.vjp(functools.partial(plain, stride=1), x, w)
      assert_near(y, expected, rtol=1e-5)
      assert_near(pullback(jnp.cos(y)), reference(jnp.cos(y)), rtol=1e-5)

  @parameterized.parameters(
    ((0, 1, -1),), ((0.0, 0.5, -2.0, 3.0),), ((0, 2**0.5, -(2**0.5), 1, -1),)
  )
  def test_winograd_of_any_points(self, points):
    of_input, of_kernel, of_output = _winograd.transforms(points)
    generator = np.random.default_rng(0)
    x, taps = generator.standard_normal(len(points) + 1), generator.standard_normal(3)
    found = of_output @ ((of_kernel @ taps) * (of_input @ x))
    np.testing.assert_allclose(found, np.correlate(x, taps, "valid"), rtol=1e-12)

  def test_winograd_loses_few_digits_of_float32(self):
    x, w = operands((14, 14), (3, 3), 64, np.float32)
    with jax.enable_x64(True):
      exact = plain(*(jnp.asarray(a, jnp.float64) for a in (x, w)), 1)
    errors = [
      np.linalg.norm(np.asarray(conv2d(x, w, convolution=form)) - np.asarray(exact))
      for form in ("direct", "winograd")
    ]
    self.assertLess(errors[1], 5 * errors[0])

  @parameterized.parameters("im2col", "winograd")
  def test_nested_vmap_and_gradient_of_vmap(self, form):
    conv = functools.partial(conv2d, convolution=form)

    def total(convolve, xs, ws):
      every = jax.vmap(jax.vmap(convolve, (0, None)), (None, 0))
      return jnp.sum(jnp.sin(every(xs, ws)))

    gradient = jax.jit(jax.grad(total, (1, 2)), static_argnums=0)
    with jax.enable_x64(True):
      x, w = operands((4, 4), (3, 3), 2)
      xs, ws = jnp.stack([x, 2 * x, -x]), jnp.stack([w, jnp.sin(w)])
      expected = gradient(functools.partial(plain, stride=1), xs, ws)
      assert_near(gradient(conv, xs, ws), expected)

  @parameterized.parameters("direct", "winograd")
  def test_scan_checkpoint_donation_and_jit(self, form):
    conv = functools.partial(conv2d, convolution=form)

    def chain(convolve, x, w):
      def body(carry, _):
        return jnp.tanh(convolve(carry, w)), None

      return jnp.sum(lax.scan(jax.checkpoint(body), x, length=3)[0] ** 2)

    gradient = jax.grad(functools.partial(chain, conv), (0, 1))
    reference = functools.partial(chain, functools.partial(plain, stride=1))
    with jax.enable_x64(True):
      x, w = operands((4, 4), (3, 3), 4)
      eager = gradient(x, w)
      assert_near(eager, jax.jit(jax.grad(reference, (0, 1)))(x, w))
      donated = jax.jit(gradient, donate_argnums=(0, 1))(jnp.array(x), jnp.array(w))
      assert_near(donated, eager)

  def test_hessian_and_eval_shape(self):
    with jax.enable_x64(True):
      x, w = operands((2, 3), (3, 3), 2)
      actual, expected = (
        jax.jit(jax.hessian(lambda w, f=f: jnp.sum(jnp.sin(f(x, w)))))(w)
        for f in (conv2d, functools.partial(plain, stride=1))
      )
      assert_near(actual, expected)
    shape = jax.eval_shape(functools.partial(conv2d, stride=2), x, w)
    self.assertEqual(shape.shape, (3, 1, 2, 4))
    self.assertEqual(shape.dtype, x.dtype)

  @parameterized.parameters(*_ALL_FORMS)
  def test_dtype_is_kept(self, form):
    dtype = jnp.bfloat16
    x, w = operands((4, 4), (3, 3), 2, dtype)
    function = functools.partial(conv2d, convolution=form)
    y, pullback = jax.vjp(function, x, w)
    self.assertEqual({a.dtype for a in (y, *pullback(y))}, {jnp.dtype(dtype)})
    expected = plain(x.astype(jnp.float32), w.astype(jnp.float32), 1)
    assert_near(y.astype(jnp.float32), expected, 0.03)

  def test_shard_map_over_examples_sums_the_weight_gradient(self):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    x, w = operands((4, 4), (3, 3), 2, np.float32)

    def local_loss(x, w):
      return lax.psum(jnp.sum(jnp.sin(conv2d(x, w))), "data")

    loss = jax.shard_map(
      local_loss, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec()
    )
    expected = jax.grad(lambda x, w: jnp.sum(jnp.sin(plain(x, w, 1))), (0, 1))(x, w)
    assert_near(jax.jit(jax.grad(loss, (0, 1)))(x, w), expected, rtol=1e-5)

  @parameterized.parameters(
    ((75, 14, 14, 64), 64, 1, "winograd", "winograd"),
    ((5, 42, 42, 32), 32, 1, "winograd", "winograd"),
    ((75, 14, 14, 64), 8, 1, "direct", "shifted"),
    ((75, 28, 28, 1), 64, 1, "im2col", "im2col"),
    ((75, 84, 84, 3), 32, 1, "direct", "direct"),
    ((75, 7, 7, 64), 64, 1, "winograd", "winograd"),
    ((75, 5, 5, 64), 64, 1, "direct", "shifted"),
    ((5, 14, 14, 64), 64, 2, "strided", "im2col"),
    ((5, 28, 28, 1), 64, 2, "im2col", "im2col"),
    ((128, 32, 32, 16), 32, 2, "strided", "direct"),
    ((128, 32, 32, 64), 128, 2, "strided", "im2col"),
  )
  def test_choice_of_forms(self, shape, channels, stride, form, weight_form):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, shape[3], channels), jnp.float32)
    self.assertEqual(_choose(x, w, stride, "auto_winograd"), (form, weight_form))

  @parameterized.parameters(
    ((128, 8, 8, 256), 256, "winograd", "winograd"),
    ((128, 32, 32, 64), 64, "direct", "winograd"),
    ((127, 8, 8, 256), 256, "direct", "shifted"),
    ((128, 32, 32, 64), 32, "direct", "shifted"),
  )
  def test_large_batches_suit_winograd_on_several_threads(
    self, shape, channels, form, weight_form
  ):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, shape[3], channels), jnp.float32)
    self.assertEqual(_choose(x, w, 1, "auto"), (form, weight_form))

  def test_kernels_of_one_pixel_are_products(self):
    x = jax.ShapeDtypeStruct((128, 8, 8, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((1, 1, 64, 64), jnp.float32)
    for stride in (1, 2):
      self.assertEqual(_choose(x, w, stride, "auto"), ("im2col", "im2col"))

  def test_choice_by_what_is_asked_for(self):
    x = jax.ShapeDtypeStruct((5, 14, 14, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)
    few = jax.ShapeDtypeStruct((5, 14, 14, 1), jnp.float32)
    narrow = jax.ShapeDtypeStruct((3, 3, 1, 64), jnp.float32)
    self.assertEqual(_choose(x, w, 1, "auto"), ("direct", "shifted"))
    asked = "auto_winograd"
    self.assertEqual(_choose(x, w, 1, asked), ("winograd", "winograd"))
    self.assertEqual(_choose(x, w, 2, asked), ("strided", "im2col"))
    self.assertEqual(_choose(few, narrow, 1, asked), ("im2col", "im2col"))
    self.assertEqual(_choose(few, narrow, 1, "winograd"), ("winograd", "winograd"))
    self.assertEqual(_choose(few, narrow, 2, "direct"), ("direct", "direct"))
    self.assertEqual(_choose(x, w, 1, "im2col"), ("im2col", "im2col"))

  @parameterized.parameters("direct", "im2col", "winograd")
  def test_the_form_is_that_of_the_whole_network(self, form):
    x = jnp.ones((2, 16, 16, 8))
    for module, named in (
      (models.Conv4(3, num_filters=8, convolution=form), {}),
      (models.ContextConv4(3, num_filters=8, convolution=form), {}),
      (BatchNorm(convolution=form), {"kernel": jnp.ones((3, 3, 8, 8))}),
      (BatchNorm(convolution=form, pool=True), {"kernel": jnp.ones((3, 3, 8, 8))}),
    ):
      for worthwhile in (False, True):
        with mock.patch.object(
          _convolved_map, "is_worthwhile", return_value=worthwhile
        ):
          apply = lambda x: module.init_with_output(jax.random.key(0), x, **named)  # noqa: B023
          found = set(re.findall(r"form='(\w+)'", str(jax.make_jaxpr(apply)(x))))
        self.assertEqual(found, {form})

  @parameterized.parameters("direct", "im2col")
  def test_strided_networks_take_it_too(self, form):
    x = jnp.ones((2, 16, 16, 8))
    for module, arguments in (
      (models.Conv4(3, num_filters=8, stride=2, convolution=form), ()),
      (models.ResNet(3, depth=8, convolution=form), (False,)),
      (models.WideResNet(3, depth=10, widen=1, convolution=form), (False,)),
    ):
      apply = lambda x: module.init_with_output(jax.random.key(0), x, *arguments)  # noqa: B023
      found = set(re.findall(r"form='(\w+)'", str(jax.make_jaxpr(apply)(x))))
      self.assertEqual(found, {form})

  def test_narrow_dtypes_and_other_kernels_are_not_transformed(self):
    x = jax.ShapeDtypeStruct((75, 14, 14, 64), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.bfloat16)
    self.assertEqual(_choose(x, w, 1, "auto_winograd"), ("direct", "shifted"))
    x, w = (jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (x, w))
    self.assertEqual(_choose(x, w, 1, "auto_winograd"), ("winograd", "winograd"))
    w = jax.ShapeDtypeStruct((5, 3, 64, 64), jnp.float32)
    self.assertEqual(_choose(x, w, 1, "auto_winograd"), ("direct", "shifted"))

  def test_padding_is_that_of_same(self):
    even = Geometry((6, 5), (3, 3), stride=2, form="direct", weight_form="direct")
    self.assertEqual(even.padding, [(0, 1), (1, 1)])
    self.assertEqual(even.out, (3, 3))

  @parameterized.named_parameters(
    ("rank", (4, 4, 2), (3, 3, 2, 4), {}, "batch, height"),
    ("channels", (1, 4, 4, 2), (3, 3, 3, 4), {}, "expects 3"),
    ("even_kernel", (1, 4, 4, 2), (2, 3, 2, 4), {}, "odd"),
    ("stride", (1, 4, 4, 2), (3, 3, 2, 4), {"stride": 0}, "stride"),
    ("form", (1, 4, 4, 2), (3, 3, 2, 4), {"convolution": "fft"}, "fft"),
    (
      "winograd_kernel",
      (1, 4, 4, 2),
      (5, 3, 2, 4),
      {"convolution": "winograd"},
      r"3x3 kernels at stride 1; got w \(5, 3",
    ),
    (
      "winograd_stride",
      (1, 4, 4, 2),
      (3, 3, 2, 4),
      {"convolution": "winograd", "stride": 2},
      "stride=2",
    ),
  )
  def test_bad_arguments_are_named(self, x_shape, w_shape, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      conv2d(jnp.zeros(x_shape), jnp.zeros(w_shape), **kwargs)

  def test_dtypes_must_agree_and_be_float(self):
    x, w = operands((4, 4), (3, 3), 2, np.float32)
    with self.assertRaisesRegex(ValueError, "bfloat16"):
      conv2d(x, w.astype(jnp.bfloat16))
    with self.assertRaisesRegex(ValueError, "int32"):
      conv2d(x.astype(jnp.int32), w.astype(jnp.int32))


if __name__ == "__main__":
  absltest.main()
