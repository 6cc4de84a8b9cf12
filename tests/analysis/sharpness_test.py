"""The measures of sharpness against closed forms in NumPy, and third derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from jsharp import Batch, Task, after_adaptation, inner_loop, maml
from jsharp.analysis import (
  average_case_rise,
  eigenvalues,
  hessian_vector_product,
  kendall_tau,
  meta_objective,
  per_task,
  rank_correlation,
  spearman_rho,
  trace,
  worst_case_rise,
)
from jsharp.core.objectives import on_query
from jsharp.losses import batch_loss, cross_entropy
from jsharp.nn import conv2d, max_pool
from tests import quadratics

KEY = jax.random.key(0)
DIMENSION = 6


def bowl(curvature, slope, params):
  """`slope' e + e' H e / 2` with `e` the two leaves one after another."""
  e = jnp.concatenate([params["a"], params["b"].reshape(-1)])
  return slope @ e + e @ curvature @ e / 2


def problem(seed=0, lowest=0.0):
  """A symmetric matrix, a slope, and the loss of both around zero."""
  generator = np.random.default_rng(seed)
  q, _ = np.linalg.qr(generator.normal(size=(DIMENSION, DIMENSION)))
  curvature = q @ np.diag(lowest + np.array([0, 1, 1, 2, 3, 6.0])) @ q.T
  slope = generator.normal(size=DIMENSION)
  loss = Partial(bowl, *(jnp.asarray(x, jnp.float32) for x in (curvature, slope)))
  return curvature, slope, loss


def at(values):
  values = jnp.asarray(values, jnp.float32)
  return {"a": values[:2], "b": values[2:].reshape(2, 2)}


ORIGIN = at(np.zeros(DIMENSION))


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


class CurvatureTest(parameterized.TestCase):
  def test_trace_is_exact_where_the_hessian_is_diagonal(self):
    loss = Partial(
      bowl, jnp.diag(jnp.arange(6, dtype=jnp.float32) - 2), jnp.ones(DIMENSION)
    )
    found = trace(loss, at(np.ones(6)), num_samples=3, key=KEY)
    self.assertEqual((found.value, found.standard_error), (3.0, 0.0))

  def test_trace_lies_within_its_error(self):
    curvature, _, loss = problem()
    found = trace(loss, ORIGIN, num_samples=400, key=KEY)
    # The variance of Hutchinson's estimate is twice the squares off the diagonal.
    off = curvature - np.diag(np.diag(curvature))
    exact = np.sqrt(2 * (off**2).sum() / 400)
    self.assertAlmostEqual(found.standard_error, exact, delta=0.15 * exact)
    self.assertLess(abs(found.value - np.trace(curvature)), 4 * exact)

  def test_eigenvalues(self):
    _, _, loss = problem()
    found = eigenvalues(loss, ORIGIN, num_eigenvalues=3, num_steps=6, key=KEY)
    np.testing.assert_allclose(found.values, [6, 3, 2], atol=1e-4)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, "num_samples .* at least 2, got 1"):
      trace(jnp.sum, jnp.ones(2), num_samples=1, key=KEY)
    with self.assertRaisesRegex(ValueError, "num_steps .* at least 3, got 2"):
      eigenvalues(jnp.sum, jnp.ones(2), num_eigenvalues=3, num_steps=2, key=KEY)

  def test_can_be_stopped_between_samples(self):
    def stop():
      raise InterruptedError

    for measure in (
      functools.partial(trace, num_samples=2),
      functools.partial(worst_case_rise, rho=1.0),
      functools.partial(average_case_rise, rho=1.0, num_samples=2),
    ):
      with self.assertRaises(InterruptedError):
        measure(problem()[2], ORIGIN, key=KEY, between=stop)


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


class MetaObjectiveTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_hessian_of_the_quadratic_family(self, chunk):
    tasks = quadratics.random_tasks(5)
    w, lr = quadratics.start(), 0.1
    algorithm = maml(
      quadratics.loss_fn, optax.sgd(lr), optax.sgd(0.1), num_inner_steps=2
    )
    task_loss_fn = after_adaptation(algorithm.adapt, on_query(quadratics.loss_fn))
    loss = meta_objective(task_loss_fn, quadratics.on_device(tasks), chunk=chunk)
    gradient, losses = quadratics.meta_gradient(tasks, w, lr, 2)
    hessian = 0
    for task in range(5):
      _, jacobian = quadratics.inner(tasks, task, w, lr, 2)
      hessian += jacobian.T @ tasks.query.inputs[task] @ jacobian / 5
    params = jnp.asarray(w, jnp.float32)
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(grads, gradient, rtol=1e-4, atol=1e-5)
    for derivative in (jax.hessian(loss), jax.jacrev(jax.grad(loss))):
      np.testing.assert_allclose(
        jax.jit(derivative)(params), hessian, rtol=1e-4, atol=1e-5
      )
    each = per_task(task_loss_fn, quadratics.on_device(tasks))
    np.testing.assert_allclose(each(params)["loss"], losses, rtol=1e-4)

  def test_is_compiled_once_for_all_tasks_of_a_shape(self):
    traced = []

    def task_loss_fn(w, task):
      traced.append(1)
      return w * task, {}

    for seed in range(3):
      loss = meta_objective(task_loss_fn, jnp.full((2,), float(seed)))
      average_case_rise(loss, jnp.float32(1), rho=0.1, num_samples=2, key=KEY)
      if not seed:
        first = len(traced)
    self.assertLen(traced, first)


class ThirdDerivativeTest(absltest.TestCase):
  def test_hessian_of_mamls_objective_through_convolution_and_pooling(self):
    def apply_fn(params, inputs):
      return max_pool(conv2d(inputs, params["kernel"])).mean((1, 2)) ** 2

    loss_fn = batch_loss(apply_fn, cross_entropy)
    adapt = inner_loop(loss_fn, optax.sgd(0.7), num_steps=1)
    task_loss_fn = after_adaptation(adapt, on_query(loss_fn))
    draw = lambda *shape: np.random.default_rng(0).normal(size=shape)
    with jax.enable_x64(True):
      support, query = (
        Batch(jnp.asarray(inputs), jnp.arange(2)[None])
        for inputs in draw(2, 1, 2, 4, 4, 1)
      )
      loss = meta_objective(task_loss_fn, Task(support, query))
      params, vector = ({"kernel": jnp.asarray(x)} for x in draw(2, 3, 3, 1, 2))

      @jax.jit
      def slope_and_product(params):
        return jax.grad(loss)(params), hessian_vector_product(loss, params)(vector)

      move = lambda by: jax.tree.map(lambda w, v: w + by * v, params, vector)
      product = slope_and_product(params)[1]["kernel"]
      # Small against the distance to the next kink of the pooling.
      ahead, behind = (slope_and_product(move(by))[0]["kernel"] for by in (1e-6, -1e-6))
      numeric = np.asarray(ahead - behind) / 2e-6
    self.assertGreater(np.linalg.norm(product), 1e-2)
    np.testing.assert_allclose(product, numeric, rtol=1e-6, atol=1e-8)


class RankCorrelationTest(parameterized.TestCase):
  @parameterized.parameters(range(6))
  def test_equals_scipy_with_ties(self, seed):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 2 + 3 * seed, size=12)
    y = x + generator.integers(0, 8, size=12)
    expected = scipy.stats.kendalltau(x, y, variant="b").statistic
    self.assertAlmostEqual(kendall_tau(x, y), expected, places=12)
    self.assertAlmostEqual(
      spearman_rho(x, y), scipy.stats.spearmanr(x, y).statistic, places=12
    )

  def test_interval(self):
    generator = np.random.default_rng(0)
    x = generator.normal(size=30)
    y = x + generator.normal(size=30)
    found = rank_correlation(x, y, num_resamples=1000, seed=1)
    draws = np.random.default_rng(1).integers(30, size=(1000, 30))
    values = [scipy.stats.kendalltau(x[d], y[d]).statistic for d in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-12)
    self.assertBetween(found.value, found.low, found.high)
    self.assertEqual(found.num_runs, 30)
    same = rank_correlation(x, y, num_resamples=1000, seed=1)
    self.assertEqual(found, same)

  def test_perfect_order_and_a_constant_side(self):
    self.assertEqual(rank_correlation([1, 2, 3], [4, 5, 9])[:3], (1, 1, 1))
    found = rank_correlation([1, 2, 3], [4, 4, 4])
    self.assertTrue(np.isnan(found[:3]).all())

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, "x has 2 runs; .* at least 3"):
      rank_correlation([1, 2], [1, 2])
    with self.assertRaisesRegex(ValueError, "must be finite; leave out"):
      rank_correlation([1, 2, np.nan], [1, 2, 3])
    with self.assertRaisesRegex(ValueError, r"shapes \(3,\) and \(2,\)"):
      rank_correlation([1, 2, 3], [1, 2])


if __name__ == "__main__":
  absltest.main()
