"""Meta-SGD: the rates' gradient, their start, and which leaves have one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp.algorithms import WithRates, meta_sgd
from tests import quadratics as quad

OUTER_LR = 0.3


def objective(tasks, w, rates, steps):
  """The mean query loss, in NumPy and for complex arguments too."""
  losses = []
  for task in range(len(tasks.query.targets)):
    point = w
    for _ in range(steps):
      point = point - rates * quad.gradient(tasks.support, task, point)
    offset = point - tasks.query.targets[task]
    losses.append(0.5 * offset @ tasks.query.inputs[task] @ offset)
  return np.mean(losses)


def gradient(fn, w):
  """By complex steps, exact for polynomials."""
  return np.array([fn(w + 1e-30j * unit).imag / 1e-30 for unit in np.eye(len(w))])


def build(**options):
  return meta_sgd(quad.loss_fn, optax.sgd(1.0), optax.sgd(OUTER_LR), **options)


class MetaSGDTest(parameterized.TestCase):
  def test_one_step_gives_minus_the_product_of_two_gradients(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      rates = np.array([0.1, -0.2, 0.05, 0.3])
      algorithm = build(num_inner_steps=1)
      state = algorithm.init(w)._replace(params=WithRates(jnp.asarray(w), rates))
      state, _ = jax.jit(algorithm.step)(state, quad.on_device(tasks))
      products, by_params = [], []
      for task in range(5):
        support = quad.gradient(tasks.support, task, w)
        query = quad.gradient(tasks.query, task, w - rates * support)
        products.append(-support * query)
        matrix = np.eye(4) - rates[:, None] * tasks.support.inputs[task]
        by_params.append(matrix.T @ query)
      learned = state.params
      for actual, before, slopes in (
        (learned.rates, rates, products),
        (learned.params, w, by_params),
      ):
        expected = before - OUTER_LR * np.mean(slopes, axis=0)
        np.testing.assert_allclose(actual, expected, rtol=1e-11)

  @parameterized.parameters(3, 12)
  def test_several_steps(self, steps):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(3), quad.start()
      algorithm = build(num_inner_steps=steps, inner_lr=(-0.05, 0.15))
      start = algorithm.init(w)
      state, metrics = jax.jit(algorithm.step)(start, quad.on_device(tasks))
      rates = np.asarray(start.params.rates)
      slopes = (
        gradient(lambda x: objective(tasks, x, rates, steps), w),
        gradient(lambda x: objective(tasks, w, x, steps), rates),
      )
      for actual, before, slope in zip(state.params, (w, rates), slopes, strict=True):
        np.testing.assert_allclose(actual, before - OUTER_LR * slope, rtol=1e-10)
      expected = objective(tasks, w, rates, steps)
      np.testing.assert_allclose(metrics["loss"].mean(), expected, rtol=1e-12)

  def test_equal_rates_are_maml(self):
    with jax.enable_x64(True):
      tasks, w = quad.on_device(quad.random_tasks(3)), quad.start()
      options = {"num_inner_steps": 2}
      ours = build(inner_lr=0.1, **options)
      maml = jsharp.maml(quad.loss_fn, optax.sgd(0.1), optax.sgd(OUTER_LR), **options)
      state, metrics = jax.jit(ours.step)(ours.init(w), tasks)
      expected, expected_metrics = jax.jit(maml.step)(maml.init(w), tasks)
      np.testing.assert_allclose(state.params.params, expected.params, rtol=1e-13)
      np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-13)
      support = jax.tree.map(lambda x: x[0], tasks.support)
      np.testing.assert_allclose(
        ours.adapt(ours.init(w).params, support, num_steps=5),
        maml.adapt(w, support, num_steps=5),
        rtol=1e-13,
      )

  def test_sharp_by_link(self):
    with jax.enable_x64(True):
      tasks, w = quad.on_device(quad.random_tasks(3)), quad.start()
      link = jsharp.sam(0.2)
      outer = optax.sgd(OUTER_LR)
      ours = meta_sgd(
        quad.loss_fn,
        optax.chain(link, optax.sgd(1.0)),
        outer,
        num_inner_steps=2,
        inner_lr=0.1,
      )
      sharp = jsharp.maml(
        quad.loss_fn, optax.chain(link, optax.sgd(0.1)), outer, num_inner_steps=2
      )
      state, _ = jax.jit(ours.step)(ours.init(w), tasks)
      expected, _ = jax.jit(sharp.step)(sharp.init(w), tasks)
      np.testing.assert_allclose(state.params.params, expected.params, rtol=1e-12)

  def test_the_start_is_a_draw_of_the_key_within_the_range(self):
    params = {"a": jnp.zeros((20, 20)), "b": jnp.zeros(300)}

    def rates(**options):
      return build(num_inner_steps=1, **options).init(params).params.rates

    default = rates()
    for leaf in jax.tree.leaves(default):
      self.assertTrue(bool(((leaf >= 0.005) & (leaf <= 0.1)).all()))
      self.assertAlmostEqual(float(leaf.mean()), 0.0525, delta=0.006)
    np.testing.assert_array_equal(rates()["a"], default["a"])
    # Parameters are often drawn with key 0: the default is another one.
    first, second = (rates(key=jax.random.key(i))["a"] for i in range(2))
    for other in (first, second):
      self.assertGreater(int((other != default["a"]).sum()), 390)
    self.assertTrue(bool((first != second).any()))
    np.testing.assert_array_equal(
      rates(inner_lr=-0.2)["b"], np.full(300, np.float32(-0.2))
    )

  def test_only_adapted_leaves_have_rates(self):
    def loss_fn(params, batch):
      return jnp.sum((params["a"] * params["b"] - batch.targets) ** 2), {}

    algorithm = meta_sgd(
      loss_fn,
      optax.sgd(1.0),
      optax.sgd(0.1),
      num_inner_steps=1,
      adapted_mask=lambda params: {"a": False, "b": True},
    )
    state = algorithm.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    self.assertEqual(set(state.params.rates), {"a", "b"})
    self.assertIsNone(state.params.rates["a"])
    batch = jsharp.Batch(None, jnp.zeros((1, 2)))
    state, _ = jax.jit(algorithm.step)(state, jsharp.Task(batch, batch))
    self.assertTrue(bool((state.params.params["a"] != 1).all()))
    self.assertTrue(bool((state.params.rates["b"] != 0.05).all()))

  def test_a_list_is_a_range(self):
    one, other = (
      build(num_inner_steps=1, inner_lr=pair).init(jnp.zeros(3)).params.rates
      for pair in ([0.1, 0.2], (0.1, 0.2))
    )
    np.testing.assert_array_equal(one, other)
    self.assertGreater(float(one.min()), 0.1)

  @parameterized.parameters(
    (float("nan"),),
    ((0.2, 0.1),),
    ((0.1, float("inf")),),
    ("0.1",),
    ([0.1, 0.2, 0.3],),
    (None,),
  )
  def test_bad_rates_are_named(self, inner_lr):
    with self.assertRaisesRegex(ValueError, "inner_lr must be a finite number or"):
      build(num_inner_steps=1, inner_lr=inner_lr)


if __name__ == "__main__":
  absltest.main()
