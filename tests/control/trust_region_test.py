"""The step of a trust region against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jsharp import control
from jsharp.core import conjugate_gradients


def definite(seed, size=5):
  factor = np.random.default_rng(seed).normal(size=(size, size))
  return factor @ factor.T + 0.5 * np.eye(size)


def step_of(link, loss_fn, params):
  return link.update(
    jax.grad(loss_fn)(params),
    link.init(params),
    params,
    value=loss_fn(params),
    value_fn=loss_fn,
  )[0]


class ConjugateGradientsTest(absltest.TestCase):
  def test_they_solve_what_a_direct_method_solves(self):
    with jax.enable_x64(True):
      matrix, vector = definite(0), np.random.default_rng(1).normal(size=5)
      tree = {"a": jnp.asarray(vector[:2]), "b": jnp.asarray(vector[2:])}

      def product(x):
        found = jnp.asarray(matrix) @ jnp.concatenate([x["a"], x["b"]])
        return {"a": found[:2], "b": found[2:]}

      found = conjugate_gradients(product, tree, num_steps=5)
      np.testing.assert_allclose(
        np.concatenate([found["a"], found["b"]]),
        np.linalg.solve(matrix, vector),
        rtol=1e-8,
      )


class TrustRegionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.start = jnp.asarray(np.random.default_rng(2).normal(size=5))

  def link(self, hessian, **options):
    options = {"max_divergence": 0.02, "num_cg_steps": 5, "damping": 0.0, **options}
    return control.trust_region(
      lambda point: 0.5 * (point - self.start) @ hessian @ (point - self.start),
      lambda params, vector: hessian @ vector,
      **options,
    )

  def test_on_a_plane_it_goes_to_the_end_of_the_region(self):
    """With a linear loss the best point of an ellipse has a closed form."""
    hessian, slope = jnp.asarray(definite(3)), jnp.arange(1.0, 6.0)
    # Rounding may put the full step outside of the region by an epsilon.
    link = self.link(hessian, shrink=1 - 1e-9)
    step = step_of(link, lambda w: slope @ w, self.start)
    natural = np.linalg.solve(hessian, slope)
    expected = -natural * np.sqrt(2 * 0.02 / (slope @ natural))
    np.testing.assert_allclose(step, expected, rtol=1e-6)

  def test_a_gaussian_policy_takes_its_natural_gradient(self):
    """The Fisher matrix of means and logarithms of scales is `diag(s^-2, 2)`."""
    outputs = jnp.array([0.3, -0.5, jnp.log(0.5), jnp.log(2.0)])
    slope = jnp.array([1.0, -2.0, 0.5, 3.0])
    kl = lambda w: control.kl_divergence(outputs, w)
    fisher = np.diag([1 / 0.5**2, 1 / 2.0**2, 2, 2])
    np.testing.assert_allclose(jax.hessian(kl)(outputs), fisher, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(jax.grad(kl)(outputs), np.zeros(4), atol=1e-12)
    link = control.trust_region(
      kl,
      lambda w, v: jax.jvp(jax.grad(kl), (w,), (v,))[1],
      max_divergence=1e-6,  # So small that the divergence is its own quadratic.
      num_cg_steps=4,
      damping=0.0,
      shrink=0.999,
    )
    step = step_of(link, lambda w: slope @ w, outputs)
    natural = np.linalg.solve(fisher, slope)
    expected = -natural * np.sqrt(2e-6 / (slope @ natural))
    np.testing.assert_allclose(step, expected, rtol=5e-3)
    self.assertLessEqual(float(kl(outputs + step)), 1e-6)

  def test_a_step_out_of_the_region_is_shortened(self):
    hessian = jnp.eye(5)
    link = control.trust_region(
      lambda point: 2.0 * jnp.sum((point - self.start) ** 2),  # 4 times what H says.
      lambda params, vector: vector,
      max_divergence=0.02,
      damping=0.0,
      shrink=0.8,
    )
    del hessian
    step = step_of(link, lambda w: jnp.sum(w), self.start)
    # 0.8**4 is the first power that is at most 1/2.
    np.testing.assert_allclose(jnp.linalg.norm(step), 0.8**4 * np.sqrt(0.04), rtol=1e-9)

  def test_a_step_uphill_is_shortened_and_one_that_finds_nothing_is_not_taken(self):
    hessian = jnp.eye(5)

    def valley(w):  # Its minimum is at 0.3 of the way to the end of the region.
      along = (w - self.start) @ jnp.ones(5) / np.sqrt(5)
      return (along + 0.3 * 0.2) ** 2

    step = step_of(self.link(hessian), valley, self.start)
    np.testing.assert_allclose(jnp.linalg.norm(step), 0.8**3 * 0.2, rtol=1e-9)
    few = step_of(self.link(hessian, max_backtracks=3), valley, self.start)
    np.testing.assert_array_equal(few, jnp.zeros(5))

  def test_no_gradient_no_step_and_nan_in_nan_out(self):
    link = self.link(jnp.eye(5))
    still = step_of(link, lambda w: 0.0 * jnp.sum(w), self.start)
    np.testing.assert_array_equal(still, jnp.zeros(5))
    broken = step_of(link, lambda w: jnp.nan * jnp.sum(w), self.start)
    self.assertTrue(np.isnan(broken).all())

  def test_it_stands_behind_other_links(self):
    chain = optax.chain(optax.clip(0.5), self.link(jnp.eye(5)))
    step = step_of(chain, lambda w: jnp.arange(1.0, 6.0) @ w, self.start)
    np.testing.assert_allclose(step, jnp.full(5, step[0]))

  @parameterized.parameters(
    ({"max_divergence": 0.0}, "max_divergence must be .* got 0.0"),
    ({"shrink": 1.0}, "shrink must lie between 0 and 1, got 1.0"),
    ({"num_cg_steps": 0}, "num_cg_steps"),
  )
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      self.link(jnp.eye(5), **options)

  def test_what_is_missing_is_named(self):
    link = self.link(jnp.eye(5))
    with self.assertRaisesRegex(ValueError, "needs params, value= and value_fn="):
      link.update(self.start, link.init(self.start), self.start)


if __name__ == "__main__":
  absltest.main()
