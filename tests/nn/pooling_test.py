"""max_pool: values, ties, and derivatives against another formulation."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from jsharp.nn import max_pool


def gathering_pool(x):
  """The same function by argmax and gather; only for [n, h, w, c]."""
  n, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
  windows = x.transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)
  which = jnp.argmax(lax.stop_gradient(windows), axis=-1, keepdims=True)
  return jnp.take_along_axis(windows, which, axis=-1)[..., 0]


class PoolingTest(parameterized.TestCase):
  @parameterized.parameters((4, 4), (5, 7), (2, 3), (84, 84))
  def test_values(self, height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    expected = lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(max_pool(x), expected)
    np.testing.assert_array_equal(jax.vmap(max_pool)(x), expected)

  def test_derivatives(self):
    with jax.enable_x64(True):
      x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3), jnp.float64)
      direction = jnp.cos(x)

      def derivatives(pool):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x) * jnp.tanh(pool(x)))))
        return gradient(x), jax.jvp(gradient, (x,), (direction,))[1]

      for actual, expected in zip(
        jax.jit(lambda: derivatives(max_pool))(),
        jax.jit(lambda: derivatives(gathering_pool))(),
        strict=True,
      ):
        np.testing.assert_allclose(actual, expected, atol=1e-13)

  @parameterized.parameters(
    (np.zeros([2, 2]), [[1, 0], [0, 0]]),
    (np.array([[0, 1], [1, 0]]), [[0, 0], [1, 0]]),
    (np.array([[0, 1], [0, 1]]), [[0, 1], [0, 0]]),
  )
  def test_a_tie_has_one_winner(self, window, expected):
    x = jnp.asarray(window, jnp.float32)[None, :, :, None]
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)

  def test_where_the_sign_is_negative_the_smallest_is_taken(self):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    factor = jnp.array([2.0, -0.5, 0.0])
    scaled = factor[None, None, None, :]
    pooled = max_pool(x, sign=factor) * scaled
    np.testing.assert_array_equal(pooled, max_pool(x * scaled))

  @parameterized.parameters(None, -1.0)
  def test_not_a_number_is_not_hidden(self, sign):
    sign = None if sign is None else jnp.array([sign])
    for row in range(2):
      for column in range(2):
        x = jnp.zeros([1, 2, 2, 1]).at[0, row, column, 0].set(jnp.nan)
        self.assertTrue(bool(jnp.isnan(max_pool(x, sign=sign)).all()), (row, column))

  @parameterized.parameters(((4, 4),), ((2, 1, 4, 3),))
  def test_too_small_inputs_are_named(self, shape):
    with self.assertRaisesRegex(ValueError, "height and width at least 2"):
      max_pool(jnp.zeros(shape))


if __name__ == "__main__":
  absltest.main()
