"""The benchmarks' count of floating-point operations."""

import jax
import jax.numpy as jnp
import optax
from absl.testing import absltest

import jsharp
from benchmarks import arithmetic
from jsharp.nn import conv2d


class ArithmeticTest(absltest.TestCase):
  def test_convolutions_products_and_loops(self):
    x, w = jnp.ones([2, 5, 4, 3]), jnp.ones([3, 3, 3, 7])
    once = 2 * 2 * 5 * 4 * 9 * 3 * 7
    self.assertEqual(arithmetic.count(conv2d, x, w), once)
    strided = lambda x, w: conv2d(x, w, stride=2)
    self.assertEqual(arithmetic.count(strided, x, w), 2 * 2 * 3 * 2 * 9 * 3 * 7)

    def loss(x, w):
      return jnp.sum(jnp.sin(conv2d(x, w)))

    self.assertEqual(arithmetic.count(jax.grad(loss, (0, 1)), x, w), 3 * once)
    self.assertEqual(arithmetic.count(jax.jit(jax.grad(loss)), x, w), 2 * once)
    looped = lambda x, w: jax.lax.scan(
      lambda c, _: (c + loss(x, w), None), 0.0, length=5
    )
    self.assertEqual(arithmetic.count(looped, x, w), 5 * once)
    batched = jax.vmap(lambda a, b: a @ b)
    a, b = jnp.ones([6, 2, 3]), jnp.ones([6, 3, 4])
    self.assertEqual(arithmetic.count(batched, a, b), 6 * 2 * 2 * 3 * 4)

  def test_second_order_costs_six_more(self):
    x, w = jnp.ones([2, 5, 4, 3]), jnp.ones([3, 3, 3, 7])

    def slope(x, w):
      gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(conv2d(x, w))), (0, 1))
      return sum(jnp.sum(jnp.sin(g)) for g in gradient(x, w))

    once = arithmetic.count(conv2d, x, w)
    self.assertEqual(arithmetic.count(jax.grad(slope, (0, 1)), x, w), 9 * once)

  def test_what_is_computed_anew_counts_once(self):
    x, w = jnp.ones([2, 5, 4, 3]), jnp.ones([3, 3, 3, 7])
    loss_fn = lambda w, x: (jnp.sum(jnp.sin(conv2d(x, w))), {})
    counts = []
    for inner_steps in ("recomputed", "unrolled"):
      execution = jsharp.Execution(inner_steps=inner_steps)
      adapt = jsharp.inner_loop(
        loss_fn, optax.sgd(0.1), num_steps=4, execution=execution
      )
      meta_gradient = jax.grad(lambda w, x: jnp.sum(jnp.sin(adapt(w, x))))  # noqa: B023
      counts.append(arithmetic.count(meta_gradient, w, x))
    # Each step: an output and a weight gradient, and for the derivative of the latter
    # an output, and a weight gradient of that.
    self.assertEqual(counts, [4 * 4 * arithmetic.count(conv2d, x, w)] * 2)


if __name__ == "__main__":
  absltest.main()
