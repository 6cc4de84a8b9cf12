"""Tree arithmetic against NumPy in float64, at every scale and in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import tree as trees

SHAPES = {"a": (3, 2), "b": (), "c": (5,)}


def draw(seed, scale=1.0, dtype=np.float32):
  generator = np.random.default_rng(seed)
  return {
    name: jnp.asarray(scale * generator.normal(size=shape), dtype)
    for name, shape in SHAPES.items()
  }


def flat(tree):
  return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])


class LengthTest(parameterized.TestCase):
  # The squares of the first and the last are no float32 numbers.
  @parameterized.parameters(1e-30, 1e-10, 1.0, 1e10, 1e30)
  def test_at_every_scale(self, scale):
    tree = draw(0, scale)
    exact = np.linalg.norm(flat(tree))
    np.testing.assert_allclose(trees.length(tree), exact, rtol=1e-6)
    np.testing.assert_allclose(flat(trees.unit(tree)), flat(tree) / exact, rtol=1e-6)

  def test_half_precision_is_summed_in_single(self):
    tree = {"w": jnp.full((4096,), 0.5, jnp.bfloat16)}
    self.assertEqual(trees.length(tree), jnp.float32(32))
    self.assertEqual(trees.inner_product(tree, tree), jnp.float32(1024))
    self.assertEqual(trees.unit(tree)["w"].dtype, jnp.bfloat16)

  def test_zero_stays_zero_with_a_zero_derivative(self):
    zero = jax.tree.map(jnp.zeros_like, draw(0))
    self.assertEqual(trees.length(zero), 0)
    value, tangent = jax.jvp(trees.unit, (zero,), (draw(1),))
    np.testing.assert_array_equal(flat(value), 0)
    np.testing.assert_array_equal(flat(tangent), 0)

  @parameterized.parameters(np.nan, np.inf)
  def test_what_is_not_finite_spoils_every_entry(self, bad):
    tree = draw(0) | {"b": jnp.float32(bad)}
    self.assertTrue(np.isnan(flat(trees.unit(tree))).all())

  def test_a_tree_without_leaves(self):
    self.assertEqual(trees.length({}), 0)
    self.assertEqual(trees.inner_product({}, {}), 0)
    self.assertEqual(trees.unit({}), {})


class ProductTest(absltest.TestCase):
  def test_inner_product(self):
    a, b = draw(0), draw(1)
    np.testing.assert_allclose(
      trees.inner_product(a, b), flat(a) @ flat(b), rtol=1e-5, atol=1e-6
    )

  def test_complex_numbers_are_pairs_of_real_ones(self):
    a, b = (jax.lax.complex(draw(s)["c"], draw(s + 2)["c"]) for s in (0, 1))
    exact = np.vdot(np.asarray(a, np.complex128), np.asarray(b, np.complex128)).real
    np.testing.assert_allclose(trees.inner_product(a, b), exact, rtol=1e-5)

  def test_the_orthogonal_part(self):
    a, b = draw(0), draw(1, 1e-25)
    rest = flat(trees.orthogonal_part(a, to=b))
    direction = flat(b) / np.linalg.norm(flat(b))
    exact = flat(a) - (flat(a) @ direction) * direction
    np.testing.assert_allclose(rest, exact, rtol=1e-5, atol=1e-6)

  def test_add_scaled_keeps_the_dtype_of_each_leaf(self):
    a = draw(0) | {"b": jnp.bfloat16(1.0)}
    found = trees.add_scaled(a, jnp.float32(0.5), a)
    np.testing.assert_array_equal(flat(found), 1.5 * flat(a).astype(np.float32))
    self.assertEqual(
      jax.tree.map(lambda x: x.dtype, found), jax.tree.map(lambda x: x.dtype, a)
    )


if __name__ == "__main__":
  absltest.main()
