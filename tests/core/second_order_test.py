"""Losses that keep less: the same numbers, and memory apart from inner steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jsharp import losses
from jsharp.algorithms import fomaml, imaml, maml, meta_sgd, sharp_maml
from jsharp.analysis import hessian_vector_product
from jsharp.core import second_order as memory
from jsharp.core.objectives import on_query
from jsharp.types import Batch, Task

LOSSES = (
  ("recomputed", memory.recomputed),
  ("forward_over_reverse", memory.forward_over_reverse),
)
MODES = (lambda loss_fn: loss_fn, *(less for _, less in LOSSES))


def network(params, inputs):
  hidden = jnp.tanh(inputs @ params["w"] + params["b"][None])
  return hidden @ params["out"]


def criterion(outputs, targets):
  loss, metrics = losses.squared_error(outputs, targets)
  return loss, {**metrics, "largest": jnp.max(outputs)}


def problem(dtype=jnp.float64, *, width=8, num_examples=6, num_tasks=3):
  keys = iter(jax.random.split(jax.random.key(0), 9))

  def draw(*shape):
    return jax.random.normal(next(keys), shape, dtype)

  params = {"w": draw(4, width), "b": draw(width), "out": draw(width, 2)}
  support, query = (
    Batch(draw(num_tasks, num_examples, 4), draw(num_tasks, num_examples, 2))
    for _ in range(2)
  )
  return losses.batch_loss(network, criterion), params, Task(support, query)


def meta_gradient(loss_fn, optimizer, params, tasks, *, num_steps, **options):
  """By `step` with an outer SGD of step size 1."""
  algorithm = maml(
    loss_fn, optimizer, optax.sgd(1.0), num_inner_steps=num_steps, **options
  )
  state, _ = algorithm.step(algorithm.init(params), tasks)
  return jax.tree.map(jnp.subtract, params, state.params)


class MemoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # optax's Adam multiplies floats by its integer count.
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  def assert_trees_close(self, actual, expected, rtol):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 0.1),
      actual,
      expected,
    )

  @parameterized.named_parameters(
    ("sgd_in_a_scan", optax.sgd(0.3), 12),
    ("adam", optax.adam(0.1, eps_root=1e-6), 2),
  )
  def test_meta_gradients_are_the_same(self, optimizer, num_steps):
    with jax.enable_x64(True):
      loss_fn, params, tasks = problem()
      compute = jax.jit(
        functools.partial(meta_gradient, num_steps=num_steps), static_argnums=(0, 1)
      )
      expected, *others = (
        compute(less(loss_fn), optimizer, params, tasks) for less in MODES
      )
      for actual in others:
        self.assert_trees_close(actual, expected, 1e-11)

  @parameterized.named_parameters(
    ("fomaml", fomaml, {}),
    ("meta_sgd", meta_sgd, {"inner_lr": 0.3}),
    (
      "equation_14",
      sharp_maml,
      {"inner_rho": 0.1, "outer_rho": 0.1, "reuse_perturbation": True},
    ),
  )
  def test_every_algorithm_takes_the_same_step(self, constructor, options):
    with jax.enable_x64(True):
      loss_fn, params, tasks = problem()
      states = []
      for less in MODES:
        algorithm = constructor(
          less(loss_fn),
          inner_optimizer=optax.sgd(0.3),
          outer_optimizer=optax.sgd(0.1),
          num_inner_steps=1,
          **options,
        )
        states.append(jax.jit(algorithm.step)(algorithm.init(params), tasks))
      for actual in states[1:]:
        self.assert_trees_close(actual, states[0], 1e-11)

  def test_a_custom_vjp_without_a_forward_mode(self):
    """A rule that calls the function itself, as most do, at every order."""
    squash = jax.custom_vjp(jnp.tanh)
    squash.defvjp(
      lambda x: (squash(x), x), lambda x, g: (g * (1 - jnp.square(squash(x))),)
    )

    def loss_of(fn):
      def loss_fn(params, batch):
        return jnp.sum((fn(params["w"] * batch.inputs) + params["b"]) ** 2), {}

      return loss_fn

    def implicit(loss_fn, *optimizers):
      return imaml(loss_fn, *optimizers, num_inner_steps=2, proximity=2.0)

    def explicit(loss_fn, *optimizers):
      query = on_query(loss_fn)
      return maml(
        memory.forward_over_reverse(loss_fn),
        *optimizers,
        num_inner_steps=2,
        query_loss_fn=query,
      )

    def after_a_step(constructor, fn):
      algorithm = constructor(loss_of(fn), optax.sgd(0.1), optax.sgd(0.1))
      state = algorithm.init({"w": jnp.array([0.5, -1.0]), "b": jnp.array(0.2)})
      return jax.jit(algorithm.step)(state, Task(batch, batch))[0].params

    def product(fn):
      one = jax.tree.map(lambda x: x[0], batch)
      loss = lambda w: loss_of(fn)(w, one)[0]
      point = {"w": jnp.array([0.5, -1.0]), "b": jnp.array(0.2)}
      return jax.jit(hessian_vector_product(loss, point))(point)

    with jax.enable_x64(True):
      batch = Batch(jnp.linspace(-1.0, 2.0, 6).reshape(3, 2), None)
      for compute in (
        functools.partial(after_a_step, implicit),
        functools.partial(after_a_step, explicit),
        product,
      ):
        # Inside of jitted functions and loops too.
        looped = lambda x: jax.lax.fori_loop(0, 1, lambda _, x: jax.jit(squash)(x), x)
        self.assert_trees_close(compute(looped), compute(jnp.tanh), 1e-11)

  @parameterized.named_parameters(*LOSSES)
  def test_value_metrics_and_gradient_are_the_same_in_any_mode(self, less):
    loss_fn, params, tasks = problem(jnp.float32)
    batch = jax.tree.map(lambda x: x[0], tasks.support)
    for fn in (lambda f: f, jax.jit):
      expected, actual = (
        (one(params, batch), fn(jax.grad(one, has_aux=True))(params, batch))
        for one in (loss_fn, less(loss_fn))
      )
      self.assert_trees_close(actual, expected, 1e-5)

  @parameterized.named_parameters(*LOSSES)
  def test_hessian_of_the_meta_objective(self, less):
    with jax.enable_x64(True):
      loss_fn, params, tasks = problem()
      plain = {"query_loss_fn": on_query(loss_fn), "num_steps": 2}

      def product(loss_fn):
        def grads(point):
          return meta_gradient(loss_fn, optax.sgd(0.3), point, tasks, **plain)

        return jax.jvp(grads, (params,), (params,))[1]

      self.assert_trees_close(product(less(loss_fn)), product(loss_fn), 1e-10)

  @parameterized.named_parameters(*LOSSES)
  def test_integer_targets_and_a_loss_scaled_afterwards(self, less):
    loss_fn = losses.batch_loss(lambda w, x: x @ w, losses.cross_entropy)
    batch = Batch(jnp.eye(3, 4), jnp.array([0, 2, 1]))
    weights = jnp.arange(12.0).reshape(4, 3) / 12

    def scaled(loss_fn):
      return jax.grad(lambda w: 3 * loss_fn(w, batch)[0] ** 2)(weights)

    self.assert_trees_close(scaled(less(loss_fn)), scaled(loss_fn), 1e-6)

  @parameterized.named_parameters(*LOSSES)
  def test_a_derivative_of_value_and_gradient_together(self, less):
    def both(loss_fn):
      def product(w):
        (value, _), slope = jax.value_and_grad(loss_fn, has_aux=True)(w, None)
        return value * slope

      return jax.grad(product)(2.0)

    cube = lambda w, batch: (w**3, {})
    self.assertAlmostEqual(float(both(less(cube))), 15 * 2**4, places=3)

  @parameterized.named_parameters(*LOSSES)
  def test_a_learned_batch_is_refused(self, less):
    loss_fn = less(lambda w, x: (w * x**2, {}))
    with self.assertRaisesRegex(ValueError, "no derivative with respect to the batch"):
      jax.grad(lambda x: loss_fn(2.0, x)[0])(3.0)

  def test_nor_is_it_in_the_gradient(self):
    loss_fn = memory.forward_over_reverse(lambda w, x: (w * x**2, {}))
    with self.assertRaisesRegex(ValueError, "no derivative with respect to the batch"):
      jax.grad(lambda x: jax.grad(lambda w: loss_fn(w, x)[0])(2.0))(3.0)

  @parameterized.named_parameters(
    ("stored", lambda loss_fn: loss_fn, True),
    ("recomputed", memory.recomputed, False),
    ("forward_over_reverse", memory.forward_over_reverse, False),
  )
  def test_memory_and_the_number_of_inner_steps(self, less, grows):
    loss_fn, params, tasks = problem(jnp.float32, width=64, num_examples=500)
    activations = 500 * 64 * 4

    def needed(num_steps):
      algorithm = maml(
        less(loss_fn), optax.sgd(0.3), optax.sgd(0.1), num_inner_steps=num_steps
      )
      state = algorithm.init(params)
      compiled = jax.jit(algorithm.step).lower(state, tasks).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    for few, many in ((2, 5), (20, 40)):
      # jax 0.10 takes the barriers out on a CPU, so unrolled steps are kept there.
      if jax.__version_info__ < (0, 11) and many <= 10 and not grows:
        continue
      added = (needed(many) - needed(few)) / (many - few) / activations
      if grows:
        self.assertGreater(added, 0.9)
      else:
        self.assertLess(added, 0.1)


if __name__ == "__main__":
  absltest.main()
