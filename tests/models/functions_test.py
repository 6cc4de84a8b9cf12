"""as_functions and norm_mask on modules of any kind."""

import jax
import jax.numpy as jnp
from absl.testing import absltest
from flax import linen as nn

from jsharp.models import Conv4, as_functions, norm_mask


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
      norm_mask(params),
      {
        "Dense_0": {"kernel": True, "bias": True},
        "LayerNorm_0": {"scale": False, "bias": False},
      },
    )


if __name__ == "__main__":
  absltest.main()
