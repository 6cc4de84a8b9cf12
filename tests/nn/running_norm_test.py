"""Tests of the normalisation with running averages."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from flax import linen as nn

from jsharp.nn import RunningBatchNorm


class RunningBatchNormTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x = 3 + 2 * jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    self.layer = RunningBatchNorm()
    self.variables = self.layer.init(jax.random.key(1), self.x, True)

  def test_starts_at_zero_and_one_whatever_it_was_initialised_with(self):
    stats = self.variables["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(3))
    np.testing.assert_array_equal(stats["variance"], np.ones(3))

  def test_equals_flax_in_training_and_after_it(self):
    other = nn.BatchNorm(momentum=0.9, use_fast_variance=False)
    theirs = other.init(jax.random.key(1), self.x, use_running_average=False)
    ours = self.variables
    for _ in range(3):
      expected, theirs_changed = other.apply(
        theirs, self.x, use_running_average=False, mutable=["batch_stats"]
      )
      got, changed = self.layer.apply(ours, self.x, True, mutable=["batch_stats"])
      np.testing.assert_allclose(got, expected, atol=1e-5)
      theirs, ours = {**theirs, **theirs_changed}, {**ours, **changed}
    expected = other.apply(theirs, self.x, use_running_average=True)
    np.testing.assert_allclose(
      self.layer.apply(ours, self.x, False), expected, atol=1e-5
    )

  def test_evaluation_of_an_example_does_not_depend_on_the_others(self):
    whole = self.layer.apply(self.variables, self.x, False)
    alone = self.layer.apply(self.variables, self.x[2:3], False)
    np.testing.assert_array_equal(whole[2:3], alone)

  def test_averages_beside_narrow_inputs_are_exact(self):
    x = self.x.astype(jnp.bfloat16)
    y, changed = self.layer.apply(self.variables, x, True, mutable=["batch_stats"])
    expected, exact = self.layer.apply(
      self.variables, x.astype(jnp.float32), True, mutable=["batch_stats"]
    )
    self.assertEqual(y.dtype, jnp.bfloat16)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2.0**-8, atol=1e-6)
    for name, average in exact["batch_stats"].items():
      moved = changed["batch_stats"][name]
      self.assertEqual(moved.dtype, jnp.float32)
      np.testing.assert_allclose(moved, average, rtol=1e-6)

  def test_keeps_float64(self):
    with jax.enable_x64(True):
      x = jnp.ones((2, 3), jnp.float64)
      variables = self.layer.init(jax.random.key(0), x, False)
      dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
      self.assertEqual(dtypes, {jnp.dtype("float64")})
      self.assertEqual(self.layer.apply(variables, x, False).dtype, jnp.float64)


if __name__ == "__main__":
  absltest.main()
