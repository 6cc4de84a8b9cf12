"""iMAML: the exact solution of quadratic tasks, and MAML in the limit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp.algorithms import imaml, implicit_adaptation
from jsharp.core import conjugate_gradients
from tests import quadratics as quad

OUTER_LR, PROXIMITY = 0.3, 0.7


def solution(tasks, task, w, proximity=PROXIMITY):
  """The regularised minimiser of a quadratic task, and its Jacobian in `w`."""
  a, b = tasks.support.inputs[task], tasks.support.targets[task]
  system = a + proximity * np.eye(len(w))
  return np.linalg.solve(system, a @ b + proximity * w), proximity * np.linalg.inv(
    system
  )


def meta_gradient(tasks, w):
  gradients, losses = [], []
  for task in range(len(tasks.query.targets)):
    adapted, jacobian = solution(tasks, task, w)
    g = quad.gradient(tasks.query, task, adapted)
    gradients.append(jacobian.T @ g)
    losses.append(0.5 * (adapted - tasks.query.targets[task]) @ g)
  return np.mean(gradients, axis=0), np.array(losses)


class SolvedTest(parameterized.TestCase):
  """Enough inner steps and as many conjugate gradients as dimensions."""

  def test_meta_gradient_is_that_of_the_solution(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      algorithm = imaml(
        quad.loss_fn,
        optax.sgd(0.2),
        optax.sgd(OUTER_LR),
        num_inner_steps=400,
        proximity=PROXIMITY,
        num_cg_steps=quad.DIMENSION,
      )
      on_device = quad.on_device(tasks)
      state, metrics = jax.jit(algorithm.step)(algorithm.init(w), on_device)
      gradient, losses = meta_gradient(tasks, w)
      np.testing.assert_allclose(state.params, w - OUTER_LR * gradient, rtol=1e-9)
      np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-9)
      support = jax.tree.map(lambda x: x[2], on_device.support)
      adapted = jax.jit(algorithm.adapt)(w, support)
      np.testing.assert_allclose(adapted, solution(tasks, 2, w)[0], rtol=1e-9)

  def test_an_outer_sam_link(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(3), quad.start()
      algorithm = imaml(
        quad.loss_fn,
        optax.sgd(0.2),
        optax.chain(jsharp.sam(0.25), optax.sgd(OUTER_LR)),
        num_inner_steps=400,
        proximity=PROXIMITY,
        num_cg_steps=quad.DIMENSION,
      )
      state, _ = jax.jit(algorithm.step)(algorithm.init(w), quad.on_device(tasks))
      point = w + quad.ball(meta_gradient(tasks, w)[0], 0.25)[0]
      sharp, _ = meta_gradient(tasks, point)
      np.testing.assert_allclose(state.params, w - OUTER_LR * sharp, rtol=1e-9)

  def test_steps_at_test_are_their_own(self):
    tasks, w = quad.random_tasks(1), quad.start()
    support = quad.on_device(jax.tree.map(lambda x: x[0], tasks.support))
    a, b = (np.asarray(x) for x in support)
    algorithm = imaml(
      quad.loss_fn,
      optax.sgd(0.2),
      optax.sgd(1.0),
      num_inner_steps=3,
      proximity=PROXIMITY,
    )
    expected = w
    for _ in range(2):
      expected = expected - 0.1 * (a @ (expected - b) + PROXIMITY * (expected - w))
    w = jnp.asarray(w, jnp.float32)
    actual = algorithm.adapt(w, support, num_steps=2, optimizer=optax.sgd(0.1))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def network_loss_fn(params, batch):
  hidden = jnp.tanh(batch.inputs @ params["body"])
  return jnp.mean((hidden @ params["head"] - batch.targets) ** 2), {}


@functools.cache
def network():
  generator = np.random.default_rng(0)
  params = {
    "body": jnp.asarray(generator.normal(size=(2, 4))),
    "head": jnp.asarray(generator.normal(size=4)),
  }
  make = lambda: jsharp.Batch(
    jnp.asarray(generator.normal(size=(6, 2))), jnp.asarray(generator.normal(size=6))
  )
  return params, jsharp.Task(make(), make())


def proximal_maml_gradient(num_steps, mask):
  """Exact derivatives through the same inner steps."""
  params, task = network()

  def objective(params):
    def regularised(point, batch):
      distance = sum(
        jnp.sum((a - b) ** 2)
        for a, b in zip(jax.tree.leaves(point), jax.tree.leaves(params), strict=True)
      )
      return network_loss_fn(point, batch)[0] + 1.5 / 2 * distance, {}

    adapt = jsharp.inner_loop(
      regularised, optax.sgd(0.2), num_steps=num_steps, adapted_mask=mask
    )
    return network_loss_fn(adapt(params, task.support), task.query)[0]

  return jax.jit(jax.grad(objective))(params)


class LimitTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("all", None),
    ("head", lambda params: {"body": False, "head": True}),
  )
  def test_exact_maml_as_the_steps_grow(self, mask):
    with jax.enable_x64(True):
      params, task = network()

      def gradient(num_steps):
        adapt = implicit_adaptation(
          network_loss_fn,
          optax.sgd(0.2),
          num_steps=num_steps,
          proximity=1.5,
          num_cg_steps=12,
          adapted_mask=mask,
        )
        objective = lambda p: network_loss_fn(adapt(p, task.support), task.query)[0]
        return jax.jit(jax.grad(objective))(params)

      def error(num_steps):
        exact = proximal_maml_gradient(num_steps, mask)
        differences = jax.tree.map(
          lambda a, b: float(jnp.abs(a - b).max()), gradient(num_steps), exact
        )
        return max(jax.tree.leaves(differences))

      self.assertGreater(error(11), 1e-6)
      self.assertLess(error(200), 1e-9)

  def test_one_step_of_conjugate_gradients_is_the_best_multiple(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(1), quad.start()
      support, query = jax.tree.map(lambda x: x[0], quad.on_device(tasks))
      adapt = implicit_adaptation(
        quad.loss_fn,
        optax.sgd(0.2),
        num_steps=20,
        proximity=PROXIMITY,
        num_cg_steps=1,
      )
      objective = lambda w: quad.loss_fn(adapt(w, support), query)[0]
      actual = jax.grad(objective)(jnp.asarray(w))
      v = quad.gradient(tasks.query, 0, np.asarray(adapt(jnp.asarray(w), support)))
      matrix = np.asarray(support.inputs) + PROXIMITY * np.eye(len(w))
      expected = PROXIMITY * (v @ v) / (v @ matrix @ v) * v
      np.testing.assert_allclose(actual, expected, rtol=1e-10)

  def test_memory_is_that_of_one_step(self):
    batch = jsharp.Batch(jnp.ones((64, 2)), jnp.ones(64))
    params = {"body": jnp.ones((2, 32)), "head": jnp.ones(32)}

    def bytes_of(constructor, num_steps, **options):
      algorithm = constructor(
        network_loss_fn,
        optax.sgd(0.1),
        optax.sgd(0.1),
        num_inner_steps=num_steps,
        **options,
      )
      tasks = jax.tree.map(lambda x: x[None], jsharp.Task(batch, batch))
      compiled = jax.jit(algorithm.step).lower(algorithm.init(params), tasks).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    few, many = (bytes_of(imaml, n, proximity=2.0) for n in (5, 50))
    self.assertLess(many, 1.1 * few)
    # The measure sees what MAML keeps: an activation for each step.
    activation = 64 * 32 * 4
    self.assertGreater(bytes_of(jsharp.maml, 50), few + 40 * activation)


class ConjugateGradientsTest(parameterized.TestCase):
  def solve(self, matrix, vector, num_steps):
    solve = lambda v: conjugate_gradients(lambda x: matrix @ x, v, num_steps=num_steps)
    return np.asarray(jax.jit(solve)(jnp.asarray(vector)))

  @parameterized.parameters(4, 9)
  def test_it_solves_and_then_stays(self, num_steps):
    with jax.enable_x64(True):
      generator = np.random.default_rng(0)
      factor = generator.normal(size=(4, 4))
      matrix, vector = factor @ factor.T + np.eye(4), generator.normal(size=4)
      actual = self.solve(matrix, vector, num_steps)
      np.testing.assert_allclose(actual, np.linalg.solve(matrix, vector), rtol=1e-9)

  @parameterized.parameters(0, 1, 3)
  def test_zero_gives_zero(self, num_steps):
    np.testing.assert_array_equal(self.solve(np.eye(3), np.zeros(3), num_steps), 0)

  def test_an_exact_solution_ends_it(self):
    vector = np.array([3.0, 0.0, -6.0])
    np.testing.assert_allclose(
      self.solve(3 * np.eye(3), vector, 5), vector / 3, rtol=1e-6
    )

  def test_nan_stays_nan(self):
    nan = np.array([1.0, np.nan])
    self.assertTrue(np.isnan(self.solve(np.eye(2), nan, 3)).all())
    matrix = np.array([[np.nan, 0.0], [0.0, 1.0]])
    for num_steps in (1, 3):
      self.assertTrue(np.isnan(self.solve(matrix, np.ones(2), num_steps)).any())

  def test_negative_curvature_ends_it(self):
    matrix = np.diag([1.0, -4.0])
    np.testing.assert_array_equal(self.solve(matrix, np.array([0.0, 1.0]), 3), 0)
    finite = self.solve(matrix, np.array([3.0, 1.0]), 3)
    self.assertTrue(np.isfinite(finite).all())

  def test_it_stops_for_good_at_non_positive_curvature(self):
    with jax.enable_x64(True):
      size, generator, stops = 4, np.random.default_rng(0), set()
      solves = [
        jax.jit(lambda m, v, n=n: conjugate_gradients(lambda x: m @ x, v, num_steps=n))
        for n in range(size + 3)
      ]
      for _ in range(20):
        factor = generator.normal(size=(size, size))
        matrix, vector = (
          factor + factor.T + 3 * np.eye(size),
          generator.normal(size=size),
        )
        # Steps by the book, as many as there are of positive curvature.
        x, residual = np.zeros(size), vector
        direction, stop = residual, 0
        while stop < size and (curvature := direction @ matrix @ direction) > 0:
          step = residual @ residual / curvature
          x, new = x + step * direction, residual - step * matrix @ direction
          direction = new + new @ new / (residual @ residual) * direction
          residual, stop = new, stop + 1
        if stop == size:
          continue
        stops.add(stop)
        for solve in solves[stop:]:
          actual = solve(jnp.asarray(matrix), jnp.asarray(vector))
          np.testing.assert_allclose(actual, x, rtol=1e-8, atol=1e-10)
      self.assertGreater(len(stops), 2)

  @parameterized.parameters(1e-21, 1e19)
  def test_the_length_of_the_right_side_does_not_matter(self, scale):
    matrix, vector = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([1.0, -2.0])
    matrix, vector = np.float32(matrix), np.float32(scale * vector)
    np.testing.assert_allclose(
      self.solve(matrix, vector, 2), np.linalg.solve(matrix, vector), rtol=1e-5
    )

  def test_infinite_curvature_is_no_solution(self):
    matrix = np.diag([-np.inf, 1.0])
    self.assertTrue(np.isnan(self.solve(matrix, np.ones(2), 1)).any())

  def test_leaves_of_several_dtypes_are_summed_in_the_widest(self):
    vector = {"a": jnp.full(300, 300.0, jnp.float16), "b": jnp.ones(2)}
    triple = lambda x: jax.tree.map(lambda leaf: 3 * leaf, x)
    x = jax.jit(lambda v: conjugate_gradients(triple, v, num_steps=3))(vector)
    self.assertEqual([leaf.dtype for leaf in x.values()], [jnp.float16, jnp.float32])
    np.testing.assert_allclose(x["a"], np.full(300, 100.0), rtol=2e-3)
    np.testing.assert_allclose(x["b"], np.full(2, 1 / 3), rtol=2e-3)

    def loss_fn(w, batch):
      return sum(jnp.sum(x.astype(jnp.float32)) for x in w.values()), {}

    adapt = implicit_adaptation(loss_fn, optax.sgd(1.0), num_steps=2, proximity=0.5)
    adapted = jax.jit(adapt)(vector, None)
    for name, leaf in vector.items():
      self.assertEqual(adapted[name].dtype, leaf.dtype)
      np.testing.assert_allclose(adapted[name], np.asarray(leaf) - 1.5)

  def test_a_zero_cotangent_and_an_integer_in_the_support(self):
    loss_fn = lambda w, batch: (jnp.sum((w - batch.inputs) ** 2) * batch.targets, {})
    adapt = implicit_adaptation(loss_fn, optax.sgd(0.1), num_steps=1, proximity=2.0)
    batch = jsharp.Batch(jnp.ones(2), jnp.int32(3))
    with jax.numpy_dtype_promotion("standard"):
      adapted, pull_back = jax.vjp(adapt, jnp.zeros(2), batch)
      by_params, by_support = pull_back(jnp.zeros_like(adapted))
    np.testing.assert_array_equal(by_params, 0)
    np.testing.assert_array_equal(by_support.inputs, 0)
    self.assertEqual(by_support.targets.dtype, jax.dtypes.float0)

  def test_bad_arguments_are_named(self):
    for options, message in (
      ({"proximity": 0.0}, "proximity must be finite and above 0, got 0.0"),
      ({"proximity": -1}, "proximity"),
      ({"proximity": np.float32(-1)}, "proximity must be finite and above 0"),
      ({"proximity": float("nan")}, "proximity"),
      ({"proximity": float("inf")}, "proximity"),
      ({"num_cg_steps": 0}, "num_cg_steps"),
      ({"num_inner_steps": -1}, "num_inner_steps"),
    ):
      options = {"num_inner_steps": 1, "proximity": 1.0, **options}
      with self.assertRaisesRegex(ValueError, message):
        imaml(quad.loss_fn, optax.sgd(0.1), optax.sgd(0.1), **options)
    algorithm = imaml(
      quad.loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1, proximity=1.0
    )
    with self.assertRaisesRegex(ValueError, "num_steps .* got 1.5"):
      algorithm.adapt(quad.start(), None, num_steps=1.5)


if __name__ == "__main__":
  absltest.main()
