"""The ball ascent: variational identities, scale, zero, NaN, geometry, derivatives."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

import jsharp
from jsharp import perturbations

NORMS = (1.0, 1.3, 2.0, 3.5, 10.0, math.inf)


def dual(p):
  if p == 1:
    return math.inf
  return 1.0 if math.isinf(p) else p / (p - 1)


def norm(tree, p):
  flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  return np.linalg.norm(flat, p)


def inner_product(a, b):
  return sum(
    float(np.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
  )


def example_gradient():
  generator = np.random.default_rng(3)
  return {
    "w": jnp.asarray(generator.normal(size=(3, 4))),
    "b": (jnp.asarray(generator.normal(size=2)), jnp.asarray(0.7)),
  }


def perturbation(ascent, grads, params=None):
  return ascent.update(grads, ascent.init(params), params)[0]


class AscentTest(parameterized.TestCase):
  @parameterized.product(p=NORMS, adaptive=(False, True), eta=(0.0, 0.3))
  def test_it_maximises_the_inner_product_over_its_ball(self, p, adaptive, eta):
    with jax.enable_x64(True):
      grads = example_gradient()
      params = jax.tree.map(lambda g: jnp.sin(5 * g) + 0.1, grads)
      ascent = jsharp.sam_ascent(0.3, p=p, adaptive=adaptive, eta=eta)
      e = perturbation(ascent, grads, params)
      metric = jax.tree.map(
        lambda w: jnp.abs(w) + eta if adaptive else jnp.ones_like(w), params
      )
      size = norm(jax.tree.map(jnp.divide, e, metric), p)
      best = 0.3 * norm(jax.tree.map(jnp.multiply, grads, metric), dual(p))
      self.assertAlmostEqual(size, 0.3, places=12)
      self.assertAlmostEqual(inner_product(grads, e), best, places=12)

  def test_p_2_is_rho_times_the_normalised_gradient(self):
    grads = example_gradient()
    e = perturbation(jsharp.sam_ascent(0.05), grads)
    expected = jax.tree.map(lambda g: 0.05 * g / norm(grads, 2), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), e, expected)

  def test_ties_share_the_radius_of_the_1_ball(self):
    e = perturbation(jsharp.sam_ascent(1.0, p=1), jnp.array([2.0, -2.0, 1.0]))
    np.testing.assert_array_equal(e, [0.5, -0.5, 0.0])

  @parameterized.product(p=NORMS, scale=(1e-37, 1e-30, 1e-5, 1.0, 1e30, 1e38))
  def test_the_scale_of_the_gradient_does_not_matter(self, p, scale):
    grads = jnp.array([0.3, -1.0, 2.0])
    ascent = jsharp.sam_ascent(0.05, p=p)
    np.testing.assert_allclose(
      perturbation(ascent, grads * scale), perturbation(ascent, grads), rtol=1e-5
    )

  @parameterized.parameters(jnp.float16, jnp.bfloat16)
  def test_half_precision_neither_underflows_nor_overflows(self, dtype):
    for scale in (1e-5, 1e4):
      grads = jnp.array([3.0, 4.0, 0.0], dtype) * jnp.asarray(scale, dtype)
      e = perturbation(jsharp.sam_ascent(0.5), grads)
      self.assertEqual(e.dtype, dtype)
      np.testing.assert_allclose(e.astype(jnp.float32), [0.3, 0.4, 0], rtol=2e-2)

  @parameterized.product(p=NORMS, adaptive=(False, True))
  def test_zero_gradient_has_zero_value_and_zero_derivative(self, p, adaptive):
    ascent = jsharp.sam_ascent(0.05, p=p, adaptive=adaptive)
    params = jnp.array([1.0, 0.0, -2.0])

    def of_gradient(g):
      return perturbation(ascent, g, params)

    np.testing.assert_array_equal(of_gradient(jnp.zeros(3)), jnp.zeros(3))
    np.testing.assert_array_equal(
      jax.jacrev(of_gradient)(jnp.zeros(3)), np.zeros((3, 3))
    )

  @parameterized.product(p=NORMS, adaptive=(False, True))
  def test_one_zero_entry_keeps_the_derivative_finite_for_p_up_to_2(self, p, adaptive):
    ascent = jsharp.sam_ascent(0.05, p=p, adaptive=adaptive)
    params = jnp.array([1.0, 0.5, -2.0])
    jacobian = jax.jacrev(lambda g: perturbation(ascent, g, params))(
      jnp.array([0.0, 1.0, 3.0])
    )
    self.assertTrue(np.isfinite(jacobian).all(), jacobian)

  @parameterized.parameters(*NORMS)
  def test_nan_stays_nan(self, p):
    for bad in (jnp.nan, jnp.inf):
      e = perturbation(
        jsharp.sam_ascent(0.05, p=p), [jnp.array([1.0, bad]), jnp.ones(2)]
      )
      self.assertTrue(np.isnan(e[0]).all() and np.isnan(e[1]).all(), e)

  @parameterized.parameters((1.3, True), (2.0, False), (3.5, False))
  def test_derivatives_match_finite_differences(self, p, adaptive):
    ascent = jsharp.sam_ascent(0.2, p=p, adaptive=adaptive, eta=0.1)
    with jax.enable_x64(True):
      grads, params = jnp.array([0.4, -1.0, 0.7]), jnp.array([1.0, 0.5, -2.0])

      @jax.jit
      def of_both(g, w):
        return perturbation(ascent, g, w)

      check_grads(of_both, (grads, params), order=1, modes=("fwd",), rtol=1e-5)
      check_grads(of_both, (grads, params), order=2, modes=("rev",), rtol=1e-5)

  def test_gradients_of_every_scale_side_by_side_under_vmap(self):
    """Both branches of the rescue are computed there; neither may spoil the other."""
    grads = jnp.outer(
      jnp.array([1.0, 0.0, 1e-30, 1e30, 1e-37, 1e38]), jnp.array([3.0, -1.0, 2.0])
    )
    of_gradient = lambda g: perturbation(jsharp.sam_ascent(0.05), g)
    together = jax.jit(jax.vmap(of_gradient))(grads)
    np.testing.assert_allclose(together[0], of_gradient(grads[0]), rtol=1e-6)
    for row in (2, 3, 4, 5):
      np.testing.assert_allclose(together[row], together[0], rtol=1e-5)
    np.testing.assert_array_equal(together[1], np.zeros(3))
    jacobians = jax.jit(jax.vmap(jax.jacrev(of_gradient)))(grads)
    np.testing.assert_allclose(
      jacobians[0], jax.jacrev(of_gradient)(grads[0]), rtol=1e-5, atol=1e-9
    )
    np.testing.assert_array_equal(jacobians[1], np.zeros((3, 3)))
    self.assertFalse(np.isnan(jacobians).any(), jacobians)

  def test_a_traced_p_gives_the_same_perturbation(self):
    grads = jnp.array([0.4, -1.0, 0.7, 0.0])
    for p in NORMS:
      traced = jax.jit(lambda p: perturbation(jsharp.sam_ascent(0.2, p=p), grads))(p)
      np.testing.assert_allclose(
        traced, perturbation(jsharp.sam_ascent(0.2, p=p), grads), rtol=1e-5, atol=1e-9
      )

  def test_a_schedule_of_radii(self):
    ascent = jsharp.sam_ascent(lambda count: 0.1 * (count.astype(jnp.float32) + 1))
    state, sizes = ascent.init(jnp.ones(2)), []
    for _ in range(3):
      e, state = ascent.update(jnp.array([3.0, 4.0]), state)
      sizes.append(norm(e, 2))
    np.testing.assert_allclose(sizes, [0.1, 0.2, 0.3], rtol=1e-6)

  def test_plain_ascent_has_no_state_and_takes_an_empty_tree(self):
    ascent = jsharp.sam_ascent(0.05)
    self.assertEmpty(jax.tree.leaves(ascent.init(jnp.ones(3))))
    self.assertEqual(perturbation(ascent, {}), {})

  def test_a_mask_confines_the_ball(self):
    ascent = perturbations.conjugate(
      jsharp.sam_ascent(0.1), by=lambda w: {"a": jnp.float32(1), "b": jnp.float32(0)}
    )
    w = {"a": jnp.ones(2), "b": jnp.ones(2)}
    e = perturbation(ascent, jax.tree.map(lambda x: 5 * x, w), w)
    np.testing.assert_allclose(norm(e["a"], 2), 0.1, rtol=1e-6)
    np.testing.assert_array_equal(e["b"], np.zeros(2))

  def test_conjugation_by_ones_changes_nothing(self):
    grads = example_gradient()
    plain = jsharp.sam_ascent(0.1)
    same = perturbations.conjugate(plain, by=lambda w: jax.tree.map(jnp.ones_like, w))
    jax.tree.map(
      np.testing.assert_array_equal,
      perturbation(same, grads, grads),
      perturbation(plain, grads, grads),
    )

  def test_bad_arguments_are_named(self):
    for p, rho in itertools.product((0.5, -1, math.nan), (0.1,)):
      with self.assertRaisesRegex(ValueError, "p must be in"):
        jsharp.sam_ascent(rho, p=p)
    for rho in (-0.1, math.nan, math.inf):
      with self.assertRaisesRegex(ValueError, "rho must be finite"):
        jsharp.sam_ascent(rho)
    with self.assertRaisesRegex(ValueError, "params=None"):
      jsharp.sam_ascent(0.1, adaptive=True).update(
        jnp.ones(2), optax.EmptyState(), None
      )


if __name__ == "__main__":
  absltest.main()
