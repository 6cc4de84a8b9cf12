"""Initial parameters: the numbers of Flax's initialisers, without their cost."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jsharp.models import MLP, ResNet, initial

SHAPES = ((1, 7), (3, 3, 3, 64), (3, 3, 70, 64))  # Two sizes of draws.


class LooksAtValues(nn.Module):
  @nn.compact
  def __call__(self, x):
    width = 2 if bool((x > 0).all()) else 3
    return nn.Dense(width)(x)


class InitialTest(parameterized.TestCase):
  @parameterized.product(shape=SHAPES, dtype=(jnp.float32, jnp.bfloat16))
  def test_numbers_are_flax_ones(self, shape, dtype):
    key = jax.random.key(3)
    found = initial.glorot_uniform(key, shape, dtype)
    np.testing.assert_array_equal(
      found, nn.initializers.glorot_uniform()(key, shape, dtype)
    )
    self.assertEqual(found.dtype, dtype)
    normal = initial.he_normal_of_outputs(key, shape, dtype)
    reference = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    np.testing.assert_allclose(
      np.asarray(normal, np.float32),
      np.asarray(reference(key, shape, dtype), np.float32),
      rtol=4 * float(jnp.finfo(dtype).eps),
    )

  def test_float64(self):
    with jax.enable_x64():
      found = initial.glorot_uniform(jax.random.key(0), (2, 5), jnp.float64)
      expected = nn.initializers.glorot_uniform()(
        jax.random.key(0), (2, 5), jnp.float64
      )
      self.assertEqual(found.dtype, jnp.float64)
      np.testing.assert_array_equal(found, expected)

  @parameterized.parameters(
    (MLP((4, 2), normalize=True), (), jnp.ones((2, 3))),
    (ResNet(3, depth=8), (False,), jnp.ones((1, 8, 8, 1))),
    (LooksAtValues(), (), jnp.ones((1, 4))),
  )
  def test_variables_are_those_of_init(self, module, rest, inputs):
    key = jax.random.key(1)
    found = initial.initialised(module, key, inputs, *rest)
    compiled = (lambda f: f) if isinstance(module, LooksAtValues) else jax.jit
    expected = compiled(lambda key: module.init(key, inputs, *rest))(key)
    self.assertEqual(jax.tree.structure(found), jax.tree.structure(expected))
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_outputs_are_not_computed(self):
    calls = []

    class Reports(nn.Module):
      @nn.compact
      def __call__(self, x):
        y = nn.Dense(2)(x)
        return jax.pure_callback(
          lambda value: calls.append(1) or value,
          jax.ShapeDtypeStruct(y.shape, y.dtype),
          y,
        )

    made = initial.initialised(Reports(), jax.random.key(0), jnp.ones((1, 3)))
    jax.block_until_ready(made)
    self.assertEmpty(calls)
    self.assertEqual(made["params"]["Dense_0"]["kernel"].shape, (3, 2))

  def test_shapes_share_a_draw(self):
    initial.glorot_uniform(jax.random.key(0), (1, 3), jnp.float32)
    before = initial._draw._cache_size()
    for shape in ((2, 3), (3, 3, 5, 7), (1, 11)):
      initial.glorot_uniform(jax.random.key(0), shape, jnp.float32)
    self.assertEqual(initial._draw._cache_size(), before)


if __name__ == "__main__":
  absltest.main()
