"""The worst and the average rise of a loss, against closed forms in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from jsharp.analysis import average_case_rise, worst_case_rise
from tests.analysis.bowls import DIMENSION, ORIGIN, at, bowl, problem

KEY = jax.random.key(0)


def largest_on_sphere(curvature, slope, rho):
  """max of `slope' e + e' H e / 2` with `|e| = rho`, by the secular equation."""
  values, vectors = np.linalg.eigh(curvature)
  along = vectors.T @ slope
  low, high = values[-1] + 1e-12, values[-1] + np.linalg.norm(slope) / rho + 1
  for _ in range(200):
    middle = (low + high) / 2
    if np.linalg.norm(along / (middle - values)) > rho:
      low = middle
    else:
      high = middle
  e = vectors @ (along / (high - values))
  return slope @ e + e @ curvature @ e / 2


class WorstCaseTest(parameterized.TestCase):
  @parameterized.parameters(0.05, 0.5, 5.0)
  def test_quadratic(self, rho):
    curvature, slope, loss = problem()
    found = worst_case_rise(loss, ORIGIN, rho=rho, num_steps=40, key=KEY)
    expected = largest_on_sphere(curvature, slope, rho)
    np.testing.assert_allclose(found.rise, expected, rtol=1e-4)
    unit = slope / np.linalg.norm(slope)
    one_step = rho * slope @ unit + rho**2 / 2 * unit @ curvature @ unit
    np.testing.assert_allclose(found.one_step, one_step, rtol=1e-4)
    self.assertLess(found.one_step, found.rise)
    e = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found.perturbation)])
    np.testing.assert_allclose(np.linalg.norm(e), rho, rtol=1e-5)
    np.testing.assert_allclose(slope @ e + e @ curvature @ e / 2, found.rise, rtol=1e-4)

  def test_cube(self):
    steepness, curvature = np.array([1, -2, 3, -4, 5, -6.0]), np.arange(6.0)
    loss = Partial(
      bowl, jnp.diag(jnp.float32(curvature)), jnp.asarray(steepness, jnp.float32)
    )
    found = worst_case_rise(
      loss, ORIGIN, rho=0.3, p=float("inf"), num_steps=2, num_starts=1, key=KEY
    )
    expected = 0.3 * np.abs(steepness).sum() + 0.3**2 / 2 * curvature.sum()
    np.testing.assert_allclose(found.rise, expected, rtol=1e-5)

  def test_adaptive_is_the_plain_ball_in_relative_coordinates(self):
    curvature, slope, loss = problem()
    w = np.array([1, -2, 0.5, 3, 1, 0.0])
    found = worst_case_rise(loss, at(w), rho=0.4, adaptive=True, num_steps=40, key=KEY)
    scale = np.abs(w)
    bent = scale[:, None] * curvature * scale
    expected = largest_on_sphere(bent, scale * (slope + curvature @ w), 0.4)
    np.testing.assert_allclose(found.rise, expected, rtol=1e-4)
    self.assertEqual(found.perturbation["b"][1, 1], 0)

  def test_leaves_a_minimum_and_stays_at_a_maximum(self):
    loss = lambda w: 2 * w[0] ** 2 + w[1] ** 2
    found = worst_case_rise(loss, jnp.zeros(2), rho=0.1, num_steps=20, key=KEY)
    self.assertAlmostEqual(found.rise, 0.02, delta=1e-5)
    self.assertEqual(found.one_step, 0)
    found = worst_case_rise(lambda w: -loss(w), jnp.zeros(2), rho=0.1, key=KEY)
    self.assertEqual(found.rise, 0)
    self.assertEqual(found.perturbation.tolist(), [0, 0])

  def test_a_maximum_inside_the_ball_is_found(self):
    # The whole step ends in a valley: only a shorter one rises.
    loss = lambda w: -((w[0] - 0.25) ** 2)
    found = worst_case_rise(loss, jnp.zeros(2), rho=1.0, num_starts=1, key=KEY)
    self.assertLess(found.one_step, 0)
    self.assertAlmostEqual(found.rise, 0.0625, delta=1e-4)
    there = float(loss(found.perturbation) - loss(jnp.zeros(2)))
    self.assertAlmostEqual(found.rise, there, delta=1e-6)

  def test_never_below_one_step(self):
    for seed in range(5):
      _, _, loss = problem(seed, lowest=-3.0)
      found = worst_case_rise(loss, ORIGIN, rho=1.0, num_steps=3, key=KEY)
      self.assertGreaterEqual(found.rise, found.one_step)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, "rho must be finite and at least 0"):
      worst_case_rise(jnp.sum, jnp.ones(2), rho=-1.0, key=KEY)
    with self.assertRaisesRegex(ValueError, "p must be in"):
      worst_case_rise(jnp.sum, jnp.ones(2), rho=1.0, p=0.5, key=KEY)


class AverageCaseTest(parameterized.TestCase):
  @parameterized.product(adaptive=(False, True), on_sphere=(False, True))
  def test_quadratic(self, adaptive, on_sphere):
    curvature, _, loss = problem()
    w = np.array([1, -2, 0.5, 3, 1, 0.5])
    found = average_case_rise(
      loss,
      at(w),
      rho=0.5,
      num_samples=500,
      key=KEY,
      adaptive=adaptive,
      on_sphere=on_sphere,
    )
    scale = np.abs(w) if adaptive else np.ones(DIMENSION)
    expected = 0.5**2 / (2 * DIMENSION) * np.trace(scale[:, None] * curvature * scale)
    self.assertLess(abs(found.value - expected), 4 * found.standard_error)
    self.assertLess(found.standard_error, 0.05 * expected)

  def test_the_gradient_has_no_share(self):
    loss = Partial(bowl, jnp.zeros((6, 6)), 100 * jnp.ones(6))
    found = average_case_rise(loss, ORIGIN, rho=1.0, num_samples=3, key=KEY)
    self.assertAlmostEqual(found.value, 0, delta=1e-5)
    self.assertAlmostEqual(found.standard_error, 0, delta=1e-5)


class StopTest(absltest.TestCase):
  def test_can_be_stopped_between_evaluations(self):
    def stop():
      raise InterruptedError

    for measure in (
      functools.partial(worst_case_rise, rho=1.0),
      functools.partial(average_case_rise, rho=1.0, num_samples=2),
    ):
      with self.assertRaises(InterruptedError):
        measure(problem()[2], ORIGIN, key=KEY, between=stop)


if __name__ == "__main__":
  absltest.main()
