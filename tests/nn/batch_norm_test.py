"""BatchNorm: batch statistics, the rows they come from, and no state."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.nn import BatchNorm, max_pool
from jsharp.nn._channels import moments
from jsharp.nn.batch_norm import KeptStatistics


def normalised(x, rows, epsilon=1e-5):
  axes = tuple(range(x.ndim - 1))
  mean, variance = x[:rows].mean(axes), x[:rows].var(axes)
  return (x - mean) / np.sqrt(variance + epsilon)


class BatchNormTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x = np.random.default_rng(0).normal(3, 2, (6, 4, 5, 2)).astype(np.float32)

  @parameterized.parameters(None, 1, 2, 6)
  def test_statistics_come_from_the_first_rows(self, num_statistics):
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), self.x)
    y = layer.apply(variables, self.x, num_statistics)
    expected = normalised(self.x, num_statistics or 6)
    np.testing.assert_allclose(y, expected, atol=2e-5)

  def test_kept_statistics_are_those_of_the_first_rows(self):
    first, second = BatchNorm(pool=True), BatchNorm()
    variables = [layer.init(jax.random.key(0), self.x) for layer in (first, second)]
    variables[0]["params"]["scale"] = jnp.array([-2.0, 3.0])

    def network(x, statistics):
      y = jnp.sin(first.apply(variables[0], x, statistics))
      return second.apply(variables[1], y, statistics)

    kept = KeptStatistics()
    alone = network(self.x[:4], kept)
    self.assertLen(kept.layers, 2)
    together = network(self.x, 4)
    np.testing.assert_allclose(alone, together[:4], rtol=1e-5, atol=1e-6)
    later = network(self.x[4:], KeptStatistics(kept.layers))
    np.testing.assert_allclose(later, together[4:], rtol=1e-5, atol=1e-6)

  def test_later_rows_do_not_touch_earlier_ones(self):
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), self.x)
    alone = layer.apply(variables, self.x[:4])
    changed = np.concatenate([self.x[:4], 100 * self.x[4:]])
    np.testing.assert_allclose(
      layer.apply(variables, changed, num_statistics=4)[:4], alone, atol=1e-6
    )

  def test_scale_offset_and_their_absence(self):
    params = {"scale": jnp.array([2.0, 3.0]), "offset": jnp.array([-1.0, 1.0])}
    y = BatchNorm().apply({"params": params}, self.x)
    expected = normalised(self.x, 6) * np.array([2.0, 3.0]) + np.array([-1.0, 1.0])
    np.testing.assert_allclose(y, expected, atol=5e-5)
    bare = BatchNorm(use_scale=False, use_bias=False)
    self.assertEqual(bare.init(jax.random.key(0), self.x), {})
    np.testing.assert_allclose(bare.apply({}, self.x), normalised(self.x, 6), atol=2e-5)

  def test_a_kept_variance_is_not_below_the_rounding_of_the_square(self):
    x = jnp.array([[1000.0], [1001.0]])
    for square in (1e6, 1e6 - 1):  # a difference of zero, or below
      kept = {"mean": jnp.array([1000.0]), "square": jnp.array([square])}
      layer = BatchNorm(use_scale=False, use_bias=False)
      y = layer.apply({"statistics": kept}, x)
      expected = 1 / np.sqrt(2.0**-23 * square + 1e-5)
      np.testing.assert_allclose(y[1, 0] - y[0, 0], expected, rtol=1e-3)

  @parameterized.product(mean=(1.0, 100.0, 1e4), first=(0, 100))
  def test_statistics_far_from_zero(self, mean, first):
    x = np.random.default_rng(0).normal(size=(16, 5, 5, 1))
    x[0] += first  # The worst row that could come first: all the others are alike.
    x = (mean + x).astype(np.float32)
    found = moments(jnp.asarray(x))
    exact = x.astype(np.float64)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    # In deviations, but for the rounding of the mean itself.
    tolerance = 1e-6 * np.sqrt(variance).item()
    np.testing.assert_allclose(found[0], mean, rtol=2.0**-23, atol=tolerance)
    np.testing.assert_allclose(found[1], variance, rtol=16 * 2.0**-22)

  @parameterized.parameters(16, 1000)
  def test_one_row_unlike_all_others(self, rows):
    x = np.zeros((rows, 1), np.float32)
    x[0] = 1.2345
    _, variance = jax.jit(moments)(x)
    expected = x.astype(np.float64).var(axis=0)
    np.testing.assert_allclose(variance, expected, rtol=rows * 2.0**-18)

  @parameterized.parameters(0.0, 123.456, 1e8, 1.1e9)
  def test_a_constant_channel_has_hardly_a_variance(self, value):
    constant = jnp.full((25, 28, 28, 4), value)
    _, variance = jax.jit(moments)(constant)
    self.assertTrue((variance >= 0).all())
    self.assertTrue((jnp.sqrt(variance) <= 1e-6 * value).all())
    y = jax.jit(lambda x: BatchNorm(use_scale=False, use_bias=False).apply({}, x))
    self.assertTrue(jnp.isfinite(y(constant)).all())

  def test_no_rows_are_refused(self):
    with self.assertRaisesRegex(ValueError, "shape .0, 3.*at least one row"):
      moments(jnp.ones((0, 3)))

  def test_narrow_dtypes_are_summed_in_float32(self):
    x = jnp.asarray(20 + self.x, jnp.bfloat16)
    mean, variance = moments(x)
    self.assertEqual({mean.dtype, variance.dtype}, {jnp.dtype(jnp.float32)})
    expected = np.asarray(x, np.float64).var((0, 1, 2))
    np.testing.assert_allclose(variance, expected, rtol=1e-5)

  def test_pooled_is_the_pool_of_the_normalised(self):
    with jax.enable_x64(True):
      x = jnp.asarray(self.x, jnp.float64)
      params = {"scale": jnp.array([2.0, -3.0]), "offset": jnp.array([-1.0, 1.0])}

      def together(x, params):
        return BatchNorm(pool=True).apply({"params": params}, x, 4)

      def apart(x, params):
        return max_pool(BatchNorm().apply({"params": params}, x, 4))

      def derivatives(layer):
        def loss(x, params):
          return jnp.sum(jnp.sin(layer(x, params)))

        gradient = jax.grad(loss, (0, 1))
        tangents = jnp.cos(x), jax.tree.map(jnp.sin, params)
        return layer(x, params), jax.jvp(gradient, (x, params), tangents)

      actual, expected = jax.jit(lambda: (derivatives(together), derivatives(apart)))()
      for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)

  def test_no_state_and_the_inputs_dtype(self):
    with jax.enable_x64(True):
      variables = BatchNorm().init(jax.random.key(0), jnp.asarray(self.x, jnp.float64))
    self.assertEqual(set(variables), {"params"})
    self.assertEqual(set(variables["params"]), {"scale", "offset"})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
    self.assertEqual(dtypes, {jnp.dtype("float64")})

  def test_constant_channel_has_finite_second_derivatives(self):
    x = jnp.ones([4, 2])

    def loss(x):
      return jnp.sum(jnp.sin(BatchNorm(use_scale=False, use_bias=False).apply({}, x)))

    self.assertTrue(bool(jnp.isfinite(jax.hessian(loss)(x)).all()))

  @parameterized.parameters(0, 7, -1)
  def test_bad_num_statistics_is_named(self, num_statistics):
    with self.assertRaisesRegex(ValueError, f"num_statistics.*{num_statistics}"):
      BatchNorm().init(jax.random.key(0), self.x, num_statistics)


if __name__ == "__main__":
  absltest.main()
