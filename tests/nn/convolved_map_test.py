"""A convolved map that is never whole: as the whole one, at every order."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.nn import BatchNorm, _convolved_map, conv2d, max_pool
from jsharp.nn._channels import moments


def operands(dtype=jnp.float64):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (6, 5, 4, 3), dtype) + 1
  w = jax.random.normal(keys[1], (3, 3, 3, 4), dtype)
  return x, w, jax.random.normal(keys[2], (4,), dtype)


class ConvolvedMapTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Two examples a chunk.
    limit = mock.patch.object(_convolved_map, "_CHUNK_ENTRIES", 2 * 5 * 4 * 4)
    self.enterContext(limit)

  @parameterized.parameters(True, False)
  def test_statistics_and_pool_are_those_of_the_whole_map(self, signed):
    with jax.enable_x64(True):
      x, w, sign = operands()
      sign = sign if signed else None
      y = conv2d(x, w)
      actual = _convolved_map.moments_and_pool(x, w, sign=sign)
      expected = *moments(y), max_pool(y, sign=sign)
      for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)

  @parameterized.parameters(False, True)
  def test_a_layer_is_the_same_up_to_third_derivatives(self, batched):
    with jax.enable_x64(True):
      x, w, scale = operands()
      layer = BatchNorm(pool=True)
      variables = {"params": {"scale": scale, "offset": jnp.cos(scale)}}

      def value(w, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x, kernel=w)))

      def slope(w, x):
        return jnp.sum(jnp.cos(jax.grad(value)(w, x)))

      def curvature(w, x):
        return jnp.sum(jnp.sin(jax.grad(slope)(w, x)))

      x = jnp.stack([x, jnp.sin(x)]) if batched else x
      found = []
      for worthwhile in (False, True):
        with mock.patch.object(
          _convolved_map, "is_worthwhile", return_value=worthwhile
        ):
          derivatives = lambda w, x: (
            value(w, x),
            jax.grad(value, (0, 1))(w, x),
            jax.grad(slope, (0, 1))(w, x),
            () if batched else jax.grad(curvature)(w, x),
          )
          if batched:
            derivatives = jax.vmap(derivatives, (None, 0))
          program = str(jax.make_jaxpr(derivatives)(w, x))
          self.assertEqual("scan" in program, worthwhile)
          found.append(jax.jit(derivatives)(w, x))
      for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max()))

  def test_statistics_far_from_zero_in_float32(self):
    x, w, _ = operands(jnp.float32)
    mean, variance, _ = _convolved_map.moments_and_pool(x + 1000, w, sign=None)
    with jax.enable_x64(True):
      # The map's own rounding is not that of the sums.
      y = np.asarray(conv2d(x + 1000, w), np.float64)
    np.testing.assert_allclose(mean, y.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, y.var((0, 1, 2)), rtol=2e-5)

  def test_statistics_are_recorded_and_obeyed(self):
    x, w, _ = operands(jnp.float32)
    layer = BatchNorm(pool=True)
    with mock.patch.object(_convolved_map, "is_worthwhile", return_value=True):
      variables = layer.init(jax.random.key(0), x, kernel=w)
      self.assertEqual(variables["params"]["scale"].shape, (4,))
      whole = layer.apply(variables, conv2d(x, w), mutable=["statistics"])
      y, seen = layer.apply(variables, x, kernel=w, mutable=["statistics"])
      np.testing.assert_allclose(y, whole[0], atol=1e-5)
      np.testing.assert_allclose(
        seen["statistics"]["square"], whole[1]["statistics"]["square"], rtol=1e-5
      )
      given = variables | {
        "statistics": {"mean": jnp.ones(4), "square": jnp.full(4, 5.0)}
      }
      expected = (max_pool(conv2d(x, w)) - 1) / np.sqrt(4 + 1e-5)
      np.testing.assert_allclose(
        layer.apply(given, x, kernel=w), expected, rtol=1e-5, atol=1e-5
      )
      some = layer.apply(variables, x, 2, kernel=w)
      np.testing.assert_allclose(
        some, layer.apply(variables, conv2d(x, w), 2), atol=1e-6
      )

  def test_it_is_for_large_maps_of_few_channels(self):
    for shape, filters, expected in (
      ((75, 84, 84, 3), 32, True),
      ((75, 28, 28, 1), 64, True),
      ((5, 28, 28, 1), 64, False),
      ((75, 42, 42, 32), 32, False),
    ):
      x = jax.ShapeDtypeStruct(shape, jnp.float32)
      w = jax.ShapeDtypeStruct((3, 3, shape[-1], filters), jnp.float32)
      expected = expected and jax.default_backend() == "cpu"
      self.assertEqual(_convolved_map.is_worthwhile(x, w), expected, shape)

  def test_it_is_not_for_a_number_of_examples_that_is_not_known(self):
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 84, 84, 3), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 3, 64), jnp.float32)
    self.assertFalse(_convolved_map.is_worthwhile(x, w))

  def test_a_direct_convolution_is_one(self):
    x, w = jnp.ones([2, 8, 8, 1]), jnp.ones([3, 3, 1, 4])
    with mock.patch.object(_convolved_map, "is_worthwhile", return_value=True):
      for convolution, loops in (("direct", 0), ("auto", 1)):
        layer = BatchNorm(pool=True, convolution=convolution)
        variables = layer.init(jax.random.key(0), x, kernel=w)
        jaxpr = jax.make_jaxpr(lambda x: layer.apply(variables, x, kernel=w))(x)  # noqa: B023
        self.assertEqual(str(jaxpr).count("scan["), loops)

  def test_the_map_is_not_held(self):
    x, w = jnp.ones([75, 28, 28, 1]), jnp.ones([3, 3, 1, 64])
    layer = BatchNorm(pool=True)
    variables = layer.init(jax.random.key(0), x[:1], kernel=w)

    def needed(function):
      gradient = jax.jit(jax.grad(lambda w: jnp.sum(function(w) ** 2)))
      return gradient.lower(w).compile().memory_analysis().temp_size_in_bytes

    whole = needed(lambda w: layer.apply(variables, conv2d(x, w)))
    chunked = needed(lambda w: layer.apply(variables, x, kernel=w))
    self.assertLess(chunked, 0.7 * whole)


if __name__ == "__main__":
  absltest.main()
