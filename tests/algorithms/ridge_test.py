"""R2-D2 against least squares in NumPy, finite differences, both formulations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses, normalization
from jsharp.algorithms.ridge import (
  WithRidge,
  predict_with_ridge,
  ridge,
  ridge_weights,
)
from jsharp.evaluation import evaluator

WAY = 3


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def least_squares(x, y, penalty):
  """Ridge regression as ordinary least squares on `penalty`'s extra rows."""
  rows = np.concatenate([x, np.sqrt(penalty) * np.eye(x.shape[1])])
  targets = np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
  return np.linalg.lstsq(rows, targets, rcond=None)[0]


def network(params, x):
  return jnp.tanh(x @ params)


def start():
  return jnp.asarray(random(4, 5, seed=5))


def tasks(num_support=6):
  def batch(size, seed):
    return jsharp.Batch(random(1, size, 4, seed=seed), np.arange(size)[None] % WAY)

  return jax.tree.map(jnp.asarray, jsharp.Task(batch(num_support, 1), batch(7, 2)))


class WeightsTest(parameterized.TestCase):
  @parameterized.parameters((4, 7), (6, 6), (9, 5), (7, 6), (1, 3), (8, 1))
  def test_weights_are_least_squares(self, n, dim):
    x, y = random(n, dim), random(n, WAY, seed=1)
    with jax.enable_x64(True):
      weights = jax.jit(ridge_weights)(jnp.asarray(x), jnp.asarray(y), 0.3)
      np.testing.assert_allclose(weights, least_squares(x, y, 0.3), rtol=1e-9)
      normal = x.T @ (x @ weights - y) + 0.3 * weights
      np.testing.assert_allclose(normal, np.zeros_like(normal), atol=1e-12)

  def test_both_formulations_agree_and_so_do_their_derivatives(self):
    # Columns of zeros change the problem not at all, but the side that is solved.
    with jax.enable_x64(True):
      x, y = jnp.asarray(random(6, 4)), jnp.asarray(random(6, WAY, seed=1))
      probe = jnp.asarray(random(4, WAY, seed=2))

      def primal(x, penalty):
        return (probe * ridge_weights(x, y, penalty)).sum()

      def dual(x, penalty):
        weights = ridge_weights(jnp.pad(x, ((0, 0), (0, 3))), y, penalty)
        return (probe * weights[:4]).sum() + 100 * jnp.abs(weights[4:]).sum()

      for first, second in zip(
        jax.value_and_grad(primal, (0, 1))(x, 0.7),
        jax.value_and_grad(dual, (0, 1))(x, 0.7),
        strict=True,
      ):
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
          np.testing.assert_allclose(a, b, rtol=1e-9)

  @parameterized.parameters((3, 8), (6, 4))
  def test_examples_twice_are_the_penalty_halved(self, n, dim):
    x, y = np.float32(random(n, dim)), np.float32(random(n, WAY, seed=1))
    twice = jnp.concatenate([x, x]), jnp.concatenate([y, y])
    weights = ridge_weights(*twice, 1e-3)
    expected = least_squares(np.float64(x), np.float64(y), 5e-4)
    np.testing.assert_allclose(weights, expected, rtol=2e-3, atol=2e-3)
    gradient = jax.grad(lambda x: ridge_weights(x, twice[1], 1e-3).sum())(twice[0])
    self.assertTrue(np.isfinite(gradient).all())

  def test_half_precision_is_solved_in_single(self):
    x, y = (jnp.asarray(random(*s), jnp.bfloat16) for s in ((6, 4), (6, WAY)))
    expected = least_squares(np.float64(x), np.float64(y), 0.3)
    weights = ridge_weights(x, y, 0.3)
    self.assertEqual(weights.dtype, jnp.bfloat16)
    np.testing.assert_allclose(np.float64(weights), expected, rtol=4e-3)

  def test_exported_for_any_number_of_examples(self):
    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(ridge_weights))(
      jax.ShapeDtypeStruct((n, 5), jnp.float32),
      jax.ShapeDtypeStruct((n, WAY), jnp.float32),
      jax.ShapeDtypeStruct((), jnp.float32),
    )
    for size in (3, 5, 12):  # Below, at and above the size of a feature vector.
      x, y = np.float32(random(size, 5)), np.float32(random(size, WAY, seed=1))
      expected = least_squares(np.float64(x), np.float64(y), 0.3)
      actual = exported.call(x, y, np.float32(0.3))
      np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

  def test_a_large_system_is_refused_when_traced(self):
    def shapes(n, dim):
      return jax.eval_shape(
        ridge_weights,
        jax.ShapeDtypeStruct((n, dim), jnp.float32),
        jax.ShapeDtypeStruct((n, WAY), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
      )

    self.assertEqual(shapes(9000, 64).shape, (64, WAY))
    self.assertEqual(shapes(25, 9000).shape, (9000, WAY))
    with self.assertRaisesRegex(ValueError, "5000 support .* dim 4097 .* 4097 rows"):
      shapes(5000, 4097)


class RidgeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  @parameterized.parameters(4, 9)
  def test_logits_are_the_scaled_regression_with_a_bias(self, num_support):
    algorithm = ridge(
      network, optax.sgd(1.0), way=WAY, penalty=0.4, scale=3.0, offset=0.2
    )
    task = jax.tree.map(lambda x: x[0], tasks(num_support))
    params = algorithm.init(start()).params
    adapted = jax.jit(algorithm.adapt)(params, task.support)
    x, queries = (
      np.pad(np.tanh(batch.inputs @ start()), ((0, 0), (0, 1)), constant_values=1)
      for batch in task
    )
    weights = least_squares(x, np.eye(WAY)[task.support.targets], 0.4)
    np.testing.assert_allclose(adapted.weights, weights, rtol=1e-9)
    np.testing.assert_allclose(
      predict_with_ridge(network)(adapted, task.query.inputs),
      3.0 * queries @ weights + 0.2,
      rtol=1e-9,
    )

  @parameterized.parameters(4, 9)
  def test_meta_gradient_by_finite_differences(self, num_support):
    algorithm = ridge(network, optax.sgd(1.0), way=WAY, penalty=0.4, scale=3.0)
    some_tasks = tasks(num_support)
    before = algorithm.init(start())
    after, _ = jax.jit(algorithm.step)(before, some_tasks)
    gradient = jax.tree.map(jnp.subtract, before.params, after.params)
    predict = normalization.transductive(predict_with_ridge(network))
    query_loss_fn = normalization.query_loss(predict, losses.cross_entropy)
    evaluate = jax.jit(evaluator(algorithm.adapt, query_loss_fn))
    directions = {
      "params": WithRidge(random(4, 5, seed=9), 0.0, 0.0, 0.0),
      "log_penalty": WithRidge(np.zeros((4, 5)), 1.0, 0.0, 0.0),
      "scale": WithRidge(np.zeros((4, 5)), 0.0, 1.0, 0.0),
    }
    for name, direction in directions.items():
      with self.subTest(name):

        def loss(shift):
          point = jax.tree.map(lambda p, d: p + shift * d, before.params, direction)  # noqa: B023
          return float(evaluate(point, some_tasks)["loss"][0])

        numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
        exact = sum(
          jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction))
        )
        np.testing.assert_allclose(exact, numeric, rtol=1e-7)
        self.assertGreater(abs(numeric), 1e-3)
    self.assertLess(abs(gradient.offset), 1e-12)  # A softmax does not see it.

  def test_what_is_meta_learned_starts_where_it_is_told(self):
    state = ridge(network, optax.adam(1.0), way=2, penalty=0.5, offset=0.1).init(
      start()
    )
    self.assertIsInstance(state.params, WithRidge)
    np.testing.assert_allclose(np.exp(state.params.log_penalty), 0.5)
    self.assertEqual(float(state.params.scale), 10.0)
    self.assertEqual(float(state.params.offset), 0.1)

  def test_single_precision_stays_single(self):
    def single(x):
      return x.astype(jnp.float32 if x.dtype == jnp.float64 else jnp.int32)

    some_tasks = jax.tree.map(single, tasks())
    with jax.enable_x64(False):
      algorithm = ridge(network, optax.sgd(1.0), way=WAY)
      start_state = algorithm.init(jnp.ones((4, 5)))
      state, metrics = jax.eval_shape(algorithm.step, start_state, some_tasks)
    leaves = [*jax.tree.leaves(state.params), *metrics.values()]
    self.assertEqual({leaf.dtype for leaf in leaves}, {jnp.dtype("float32")})

  @parameterized.parameters(
    ({"way": 1}, "way must be an integer"),
    ({"way": 3, "penalty": 0.0}, "penalty=0.0"),
    ({"way": 3, "penalty": float("inf")}, "penalty=inf"),
    ({"way": 3, "scale": float("nan")}, "scale=nan"),
  )
  def test_bad_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      ridge(network, optax.sgd(0.1), **options)


if __name__ == "__main__":
  absltest.main()
