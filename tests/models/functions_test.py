"""as_functions, with_statistics and the masks on modules of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from flax import linen as nn

from jsharp.models import (
  MLP,
  Conv4,
  all_but_norm,
  as_functions,
  part_mask,
  with_statistics,
)


class FunctionsTest(absltest.TestCase):
  def test_modules_without_num_statistics_work(self):
    init_fn, apply_fn = as_functions(nn.Dense(2))
    params = init_fn(jax.random.key(0), jnp.ones([1, 3]))
    self.assertEqual(apply_fn(params, jnp.ones([4, 3])).shape, (4, 2))

  def test_inputs_of_another_size_are_named(self):
    init_fn, apply_fn = as_functions(nn.Dense(2))
    params = init_fn(jax.random.key(0), jnp.ones([1, 3]))
    with self.assertRaisesRegex(ValueError, r"do not fit inputs of shape \(4, 5\)"):
      apply_fn(params, jnp.ones([4, 5]))

  def test_modules_with_state_are_refused(self):
    init_fn, _ = as_functions(nn.BatchNorm(use_running_average=False))
    with self.assertRaisesRegex(ValueError, "batch_stats"):
      init_fn(jax.random.key(0), jnp.ones([4, 3]))

  def test_initialisation_is_a_function_of_the_key(self):
    init_fn = jax.jit(as_functions(Conv4(5, num_filters=2, stride=2))[0])
    images = jnp.zeros([1, 8, 8, 1])
    first, again, other = (
      init_fn(jax.random.key(seed), images)["head"]["kernel"] for seed in (0, 0, 1)
    )
    self.assertTrue(bool((first == again).all()))
    self.assertFalse(bool((first == other).any()))

  def test_norm_mask_knows_flax_layers_too(self):
    class Net(nn.Module):
      @nn.compact
      def __call__(self, x):
        return nn.LayerNorm()(nn.Dense(3)(x))

    params = as_functions(Net())[0](jax.random.key(0), jnp.ones([1, 2]))
    self.assertEqual(
      all_but_norm(params),
      {
        "Dense_0": {"kernel": True, "bias": True},
        "LayerNorm_0": {"scale": False, "bias": False},
      },
    )

  def test_part_mask_marks_the_named_modules(self):
    params = {"a": {"x": 1.0, "y": 2.0}, "b": [1.0, {"c": {"a": 3.0}}], "d": {"a": 4.0}}
    self.assertEqual(
      part_mask("a", "c")(params),
      {
        "a": {"x": True, "y": True},
        "b": [False, {"c": {"a": True}}],
        "d": {"a": False},
      },
    )
    # The name of a parameter is not that of a module.
    with self.assertRaisesRegex(ValueError, "no module named .'x'.; .*'a', 'b', 'c'"):
      part_mask("x")(params)
    with self.assertRaisesRegex(ValueError, "no module named .'heads'.; it has"):
      part_mask("heads", "a")(params)
    with self.assertRaisesRegex(ValueError, "at least one module"):
      part_mask()


class WithStatisticsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.module = MLP((4, 3, 2), normalize=True)
    self.init_fn, self.apply_fn = with_statistics(self.module)
    self.x = 1 + jax.random.normal(jax.random.key(0), (6, 5))
    self.params, self.kept = self.init_fn(jax.random.key(1), self.x)

  def test_params_are_those_of_as_functions_and_statistics_start_at_0_and_1(self):
    expected = as_functions(self.module)[0](jax.random.key(1), self.x)
    jax.tree.map(np.testing.assert_array_equal, self.params, expected)
    self.assertEqual(set(self.kept), {"norm_0", "norm_1"})
    for i, width in enumerate((4, 3)):
      layer = self.kept[f"norm_{i}"]
      np.testing.assert_array_equal(layer["mean"], np.zeros(width))
      np.testing.assert_array_equal(layer["square"], np.ones(width))

  def test_without_statistics_the_batch_normalises_and_is_recorded(self):
    outputs, seen = self.apply_fn(self.params, self.x)
    expected = as_functions(self.module)[1](self.params, self.x)
    np.testing.assert_array_equal(outputs, expected)
    layer = jax.tree.map(np.asarray, self.params["dense_0"])
    hidden = np.asarray(self.x) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(seen["norm_0"]["mean"], hidden.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
      seen["norm_0"]["square"], np.square(hidden).mean(0), rtol=1e-5
    )

  def test_given_statistics_normalise_whatever_the_batch(self):
    outputs, seen = self.apply_fn(self.params, self.x)
    again, same = self.apply_fn(self.params, self.x, seen)
    np.testing.assert_allclose(again, outputs, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same, seen)
    alone, _ = self.apply_fn(self.params, self.x[:1], seen)
    np.testing.assert_allclose(alone, outputs[:1], rtol=1e-5, atol=1e-6)

  def test_a_module_without_statistics_is_refused(self):
    init_fn, _ = with_statistics(MLP((4, 2)))
    with self.assertRaisesRegex(ValueError, "MLP has no layer with statistics"):
      init_fn(jax.random.key(0), self.x)


if __name__ == "__main__":
  absltest.main()
