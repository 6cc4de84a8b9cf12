"""Reptile: closed forms, the paper's expansions, mini-batches, the sine waves."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses
from jsharp.algorithms import WithInnerState, reptile
from jsharp.algorithms._mini_batches import mini_batch_loop, mini_batches
from jsharp.core.objectives import after_adaptation, on_query, over_tasks
from jsharp.data import sinusoid
from jsharp.evaluation import evaluator
from jsharp.models import MLP, as_functions
from tests import quadratics as quad

INNER_LR, OUTER_LR, RHO = 0.1, 0.3, 0.25

# A family of four losses of one task with a gradient and a Hessian that both move:
# L_i(w) = w' A_i w / 2 + b_i' w + sum(c_i w^3).
NUM_LOSSES, DIMENSION = 4, 3


def family():
  generator = np.random.default_rng(3)
  factor = generator.normal(size=(NUM_LOSSES, DIMENSION, DIMENSION))
  return (
    factor @ factor.transpose(0, 2, 1),
    generator.normal(size=(NUM_LOSSES, DIMENSION)),
    generator.normal(size=(NUM_LOSSES, DIMENSION)),
  )


def cubic_loss_fn(w, batch):
  """The mean of the losses that are the rows of `batch`."""
  a, b, c = batch
  values = 0.5 * jnp.einsum("j,ijk,k->i", w, a, w) + b @ w + c @ w**3
  return values.mean(), {}


def gradients_and_hessians(w):
  a, b, c = family()
  return a @ w + b + 3 * c * w**2, a + np.array([np.diag(6 * x * w) for x in c])


@functools.cache
def orders(k):
  """The gradient of each of the three algorithms as a function of the inner step size.

  Tasks are all ordered choices of `k` different losses. As in the paper, MAML and
  FOMAML step on all but the last, which is their query set; Reptile steps on all.
  """
  w = jnp.asarray(np.random.default_rng(4).normal(size=DIMENSION))
  rows = np.array(list(itertools.permutations(range(NUM_LOSSES), k)))
  each = jax.tree.map(lambda x: jnp.asarray(x[rows]), family())
  tasks = jsharp.Task(
    support=jax.tree.map(lambda x: x[:, :-1], each),
    query=jax.tree.map(lambda x: x[:, -1:], each),
  )

  def of_maml(loss_fn, lr):
    loop = mini_batch_loop(loss_fn, optax.sgd(lr), num_steps=k - 1, batch_size=1)
    adapt = lambda w, support: loop(w, optax.sgd(lr).init(w), support)[0]
    task_loss_fn = after_adaptation(adapt, on_query(loss_fn))
    return over_tasks(
      lambda w, task: (jax.grad(task_loss_fn, has_aux=True)(w, task)[0], ())
    )(w, tasks)[0]

  def of_reptile(lr):
    algorithm = reptile(
      cubic_loss_fn,
      optax.sgd(lr),
      optax.sgd(1.0),
      num_inner_steps=k,
      inner_batch_size=1,
    )
    state, _ = algorithm.step(algorithm.init(w), jsharp.Task(each, each))
    return (w - state.params) / lr

  return w, {
    "maml": jax.jit(lambda lr: of_maml(cubic_loss_fn, lr)),
    "fomaml": jax.jit(lambda lr: of_maml(losses.first_order(cubic_loss_fn), lr)),
    "reptile": jax.jit(of_reptile),
  }


def value_and_slope_at_zero(f, step=3e-4):
  """Value and derivative of a smooth function by extrapolated differences."""
  at = {s: np.asarray(f(s)) for s in (-2 * step, -step, step, 2 * step)}
  far, near = ((at[s] + at[-s]) / 2 for s in (2 * step, step))
  wide, narrow = ((at[s] - at[-s]) / (2 * s) for s in (2 * step, step))
  return (4 * near - far) / 3, (4 * narrow - wide) / 3


class ExpansionTest(parameterized.TestCase):
  """Section 5.1 of the paper, in the inner step size."""

  @parameterized.product(name=("maml", "fomaml", "reptile"), k=(2, 3))
  def test_first_order_terms(self, name, k):
    with jax.enable_x64(True):
      w, algorithms = orders(k)
      value, slope = value_and_slope_at_zero(algorithms[name])
      g, h = gradients_and_hessians(np.asarray(w))
      values, slopes = [], []
      for order in itertools.permutations(range(NUM_LOSSES), k):
        pairs = [(i, j) for n, i in enumerate(order) for j in order[:n]]
        last = order[-1]
        if name == "reptile":
          values.append(sum(g[i] for i in order))
          slopes.append(-sum(h[i] @ g[j] for i, j in pairs))
        else:
          values.append(g[last])
          slopes.append(-sum(h[i] @ g[j] for i, j in pairs if i == last))
        if name == "maml":
          slopes[-1] -= sum(h[j] @ g[last] for i, j in pairs if i == last)
      np.testing.assert_allclose(value, np.mean(values, axis=0), rtol=1e-8)
      np.testing.assert_allclose(slope, np.mean(slopes, axis=0), rtol=1e-7)

  @parameterized.product(name=("maml", "fomaml", "reptile"), k=(2, 3))
  def test_coefficients_of_the_two_averages(self, name, k):
    with jax.enable_x64(True):
      w, algorithms = orders(k)
      value, slope = value_and_slope_at_zero(algorithms[name])
      g, h = gradients_and_hessians(np.asarray(w))
      average = g.mean(axis=0)
      inner = np.mean(
        [h[i] @ g[j] for i, j in itertools.permutations(range(NUM_LOSSES), 2)], axis=0
      )
      fitted = value @ average / (average @ average), -slope @ inner / (inner @ inner)
      expected = {
        "maml": (1, 2 * (k - 1)),
        "fomaml": (1, k - 1),
        "reptile": (k, k * (k - 1) / 2),
      }[name]
      np.testing.assert_allclose(fitted, expected, rtol=1e-7)
      # Nothing but the two averages is in it.
      np.testing.assert_allclose(value, expected[0] * average, rtol=1e-7)
      np.testing.assert_allclose(slope, -expected[1] * inner, rtol=1e-7)


class ReptileTest(parameterized.TestCase):
  def one_step(self, outer, tasks, w, inner=None, steps=3, **options):
    inner = inner or optax.sgd(INNER_LR)
    algorithm = reptile(quad.loss_fn, inner, outer, num_inner_steps=steps, **options)
    state, metrics = jax.jit(algorithm.step)(algorithm.init(w), quad.on_device(tasks))
    return np.asarray(state.params), np.asarray(metrics["loss"])

  def adapted(self, tasks, w, steps, rho=None):
    return np.array(
      [quad.inner(tasks, i, w, INNER_LR, steps, rho=rho)[0] for i in range(5)]
    )

  @parameterized.product(steps=(1, 3, 13), rho=(None, 0.3))
  def test_it_moves_to_the_mean_of_the_adapted_parameters(self, steps, rho):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      inner = optax.sgd(INNER_LR)
      if rho is not None:
        inner = optax.chain(jsharp.sam(rho), inner)
      adapted = self.adapted(tasks, w, steps, rho)
      params, query_losses = self.one_step(optax.sgd(1.0), tasks, w, inner, steps)
      np.testing.assert_allclose(params, adapted.mean(axis=0), rtol=1e-10)
      offsets = adapted - tasks.query.targets
      expected = [
        0.5 * x @ a @ x for x, a in zip(offsets, tasks.query.inputs, strict=True)
      ]
      np.testing.assert_allclose(query_losses, expected, rtol=1e-10)

  def test_an_outer_sam_link_moves_from_the_perturbed_parameters(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      clean = w - self.adapted(tasks, w, 3).mean(axis=0)
      point = w + quad.ball(clean, RHO)[0]
      sharp = point - self.adapted(tasks, point, 3).mean(axis=0)
      outer = optax.chain(jsharp.sam(RHO), optax.sgd(OUTER_LR))
      params, query_losses = self.one_step(outer, tasks, w)
      np.testing.assert_allclose(params, w - OUTER_LR * sharp, rtol=1e-10)
      _, clean_losses = self.one_step(optax.sgd(1.0), tasks, w)
      np.testing.assert_allclose(query_losses, clean_losses, rtol=1e-12)

  def test_an_annealed_outer_step(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      outer = optax.sgd(optax.linear_schedule(1.0, 0.0, 4))
      algorithm = reptile(quad.loss_fn, optax.sgd(INNER_LR), outer, num_inner_steps=2)
      state, step = algorithm.init(w), jax.jit(algorithm.step)
      for epsilon in (1.0, 0.75, 0.5, 0.25, 0.0):
        state, _ = step(state, quad.on_device(tasks))
        w = w + epsilon * (self.adapted(tasks, w, 2).mean(axis=0) - w)
        np.testing.assert_allclose(state.params, w, rtol=1e-10)

  def test_unadapted_leaves_are_not_learned(self):
    loss_fn = lambda params, x: (params["body"] * params["head"] * x, {})
    algorithm = reptile(
      loss_fn,
      optax.sgd(0.5),
      optax.sgd(1.0),
      num_inner_steps=1,
      adapted_mask=lambda params: {"body": False, "head": True},
    )
    task = jsharp.Task(jnp.ones(2), jnp.ones(2))
    start = {"body": jnp.float32(2), "head": jnp.float32(3)}
    state, _ = algorithm.step(algorithm.init(start), task)
    self.assertEqual({k: float(v) for k, v in state.params.items()},
                     {"body": 2.0, "head": 2.0})  # fmt: skip

  def test_no_derivative_goes_through_the_inner_loop(self):
    """A loss without a second derivative would fail; memory stays that of one step."""

    @jax.custom_jvp
    def opaque_gradient(w):
      return 2 * w

    @opaque_gradient.defjvp
    def _(primals, tangents):
      raise AssertionError("a second derivative was asked for")

    @jax.custom_vjp
    def square(w):
      return jnp.sum(w * w)

    square.defvjp(lambda w: (square(w), w), lambda w, t: (opaque_gradient(w) * t,))
    algorithm = reptile(
      lambda w, batch: (square(w), {}), optax.sgd(0.25), optax.sgd(1.0),
      num_inner_steps=2,
    )  # fmt: skip
    tasks = jsharp.Task(jnp.ones((2, 1)), jnp.ones((2, 1)))
    state, _ = algorithm.step(algorithm.init(jnp.full(2, 4.0)), tasks)
    np.testing.assert_allclose(state.params, [1.0, 1.0])


class InnerStateTest(parameterized.TestCase):
  def adam(self, w, m, v, count, tasks, task):
    g = quad.gradient(tasks.support, task, w)
    m, v, count = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g, count + 1
    step = m / (1 - 0.5**count) / (np.sqrt(v / (1 - 0.9**count)) + 1e-8)
    return w - 0.05 * step, m, v, count

  @parameterized.parameters((False, None), (True, None), (True, 2), (True, 3))
  def test_adam_moments(self, keep, chunk):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
      tasks, w = quad.random_tasks(3), quad.start()
      algorithm = reptile(
        quad.loss_fn,
        optax.adam(0.05, b1=0.5, b2=0.9),
        optax.sgd(0.5),
        num_inner_steps=2,
        keep_inner_state=keep,
        execution=jsharp.Execution(task_chunk=chunk),
      )
      step = jax.jit(algorithm.step)
      state = algorithm.init(w)
      structure = jax.tree.map(lambda x: (x.shape, x.dtype), state)
      moments = np.zeros_like(w), np.zeros_like(w), 0
      for _ in range(3):
        state, metrics = step(state, quad.on_device(tasks))
        ends = []
        for task in range(3):
          end = w, *moments
          for _ in range(2):
            end = self.adam(*end, tasks, task)
          ends.append(end)
        adapted, m, v, counts = zip(*ends, strict=True)
        w = w + 0.5 * (np.mean(adapted, axis=0) - w)
        if keep:
          moments = np.mean(m, axis=0), np.mean(v, axis=0), counts[0]
        self.assertEqual(jax.tree.map(lambda x: (x.shape, x.dtype), state), structure)
        params = state.params
        if keep:
          self.assertIsInstance(params, WithInnerState)
          carried = params.inner_state[0]
          np.testing.assert_allclose(carried.mu, moments[0], rtol=1e-10)
          np.testing.assert_allclose(carried.nu, moments[1], rtol=1e-10)
          self.assertEqual(int(carried.count), moments[2])
          params = params.params
        np.testing.assert_allclose(params, w, rtol=1e-10)
      # Evaluation starts from the carried moments and changes nothing.
      end = w, *moments
      for _ in range(3):
        end = self.adam(*end, tasks, 1)
      support = quad.on_device(jax.tree.map(lambda x: x[1], tasks.support))
      adapt = functools.partial(algorithm.adapt, num_steps=3)
      adapted = jax.jit(adapt)(state.params, support)
      np.testing.assert_allclose(adapted, end[0], rtol=1e-10)
      measure = jax.jit(evaluator(adapt, on_query(quad.loss_fn)))
      metrics = measure(state.params, quad.on_device(tasks))
      offset = end[0] - tasks.query.targets[1]
      expected = 0.5 * offset @ tasks.query.inputs[1] @ offset
      np.testing.assert_allclose(metrics["loss"][1], expected, rtol=1e-9)

  def test_a_mask_and_outer_sam_go_with_it(self):
    loss_fn = lambda params, x: (params["body"] * params["head"] ** 2 * x, {})
    algorithm = reptile(
      loss_fn,
      optax.sgd(0.1, momentum=0.5),
      optax.chain(jsharp.sam(0.1), optax.sgd(1.0)),
      num_inner_steps=2,
      keep_inner_state=True,
      adapted_mask=lambda params: {"body": False, "head": True},
    )
    state = algorithm.init({"body": jnp.float32(1), "head": jnp.float32(3)})
    task = jsharp.Task(jnp.ones(2), jnp.ones(2))
    new, _ = algorithm.step(state, task)
    self.assertEqual(jax.tree.structure(new), jax.tree.structure(state))
    # The moments are those of the pass at the unperturbed parameters.
    w, trace = 3.0, 0.0
    for _ in range(2):
      trace = 0.5 * trace + 2 * w
      w -= 0.1 * trace
    carried = new.params.inner_state[0].trace["head"]
    np.testing.assert_allclose(carried, trace, rtol=1e-6)


class SineWavesTest(absltest.TestCase):
  def test_the_papers_demonstration(self):
    """Section 7 of the paper in 1,500 meta-steps of one task instead of 30,000.

    Adapting to 10 points from what was learned leaves less than a quarter of the error
    that adapting from the same random start leaves.
    """
    num_meta_steps = 1_500
    init_fn, apply_fn = as_functions(MLP((64, 64, 1), activation=jnp.tanh))
    loss_fn = losses.batch_loss(apply_fn, losses.squared_error)
    algorithm = reptile(
      loss_fn,
      optax.sgd(0.02),
      optax.sgd(optax.linear_schedule(0.1, 0.0, num_meta_steps)),
      num_inner_steps=32,
      inner_batch_size=10,
    )
    sample = functools.partial(
      sinusoid.sample_tasks, shot=10, query_shot=50, phases=(0.0, 2 * math.pi)
    )

    @jax.jit
    def train(params, key):
      def meta_step(state, key):
        return algorithm.step(state, sample(key, num_tasks=1))[0], None

      keys = jax.random.split(key, num_meta_steps)
      return jax.lax.scan(meta_step, algorithm.init(params), keys)[0].params

    start = init_fn(jax.random.key(0), jnp.zeros((1, 1)))
    learned = train(start, jax.random.key(1))
    evaluate, tasks = (
      jax.jit(evaluator(algorithm.adapt, on_query(loss_fn))),
      sample(jax.random.key(2), num_tasks=50),
    )
    before, after = (evaluate(p, tasks)["loss"].mean() for p in (start, learned))
    self.assertLess(4 * after, before)


class MiniBatchesTest(parameterized.TestCase):
  @parameterized.parameters(*itertools.product((1, 5, 7, 12, 25, 75), (1, 4, 10, 15)))
  def test_every_pass_takes_every_row_once(self, num_examples, size):
    if size > num_examples:
      with self.assertRaisesRegex(ValueError, f"size={size} .* {num_examples}"):
        mini_batches(num_examples, size=size, num_batches=1)
      return
    rows = mini_batches(num_examples, size=size, num_batches=3 * num_examples)
    self.assertEqual(rows.shape, (3 * num_examples, size))
    for one_pass in rows.reshape(-1, num_examples):
      np.testing.assert_array_equal(np.sort(one_pass), np.arange(num_examples))

  @parameterized.parameters(
    (5, 10, 10), (20, 10, 20), (5, 2, 5), (5, 4, 1), (6, 3, 2), (6, 2, 3), (4, 6, 12)
  )  # fmt: skip
  def test_balanced_classes(self, way, shot, size):
    labels = np.repeat(np.arange(way), shot)
    for rows in mini_batches(way * shot, size=size, num_batches=2 * way * shot):
      counts = np.bincount(labels[rows], minlength=way)
      if size >= way:
        np.testing.assert_array_equal(counts, size // way)
      else:
        self.assertEqual(counts.max(), 1)

  def test_the_published_uneven_sizes_are_spread(self):
    # 5-way mini-ImageNet: 15 examples per class, 8 batches of 10.
    labels = np.repeat(np.arange(5), 15)
    for rows in mini_batches(75, size=10, num_batches=8):
      counts = np.bincount(labels[rows], minlength=5)
      self.assertBetween(counts.min(), 1, 2)
      self.assertBetween(counts.max(), 2, 3)

  def test_of_a_number_that_is_known_when_the_program_runs(self):
    (n,) = jax.export.symbolic_shape("n", constraints=["n >= 4"])
    exported = jax.export.export(
      jax.jit(lambda x: mini_batches(x.shape[0], size=4, num_batches=7))
    )(jax.ShapeDtypeStruct((n,), jnp.float32))
    for size in (4, 7, 12):
      np.testing.assert_array_equal(
        exported.call(np.zeros(size, np.float32)),
        mini_batches(size, size=4, num_batches=7),
      )

  @parameterized.parameters(2, 14)
  def test_the_inner_loop_takes_them_in_turn(self, steps):
    with jax.enable_x64(True):
      x = np.random.default_rng(0).normal(size=6)
      loop = mini_batch_loop(
        lambda w, x: (0.5 * jnp.mean((w - x) ** 2), {}),
        optax.sgd(0.2),
        num_steps=steps,
        batch_size=4,
      )
      w = 1.5
      for step in range(steps):
        rows = [(0, 2, 4, 1), (3, 5, 0, 2), (4, 1, 3, 5)][step % 3]
        w -= 0.2 * (w - x[list(rows)].mean())
      adapted, _ = loop(1.5, optax.sgd(0.2).init(1.5), jnp.asarray(x))
      np.testing.assert_allclose(adapted, w, rtol=1e-12)

  def test_what_belongs_to_the_whole_task_is_refused_or_left_alone(self):
    def loss_fn(w, batch):
      scale, key = batch.inputs["scale"], batch.inputs["key"]
      noise = jax.random.uniform(key) * jnp.sum(scale)
      return jnp.mean(w * (batch.inputs["x"] + noise)), {}

    adapt = reptile(
      loss_fn, optax.sgd(1.0), optax.sgd(1.0), num_inner_steps=2, inner_batch_size=2
    ).adapt
    x, key = jnp.arange(6.0), jax.random.key(0)
    support = jsharp.Batch({"x": x, "scale": jnp.float32(2), "key": key}, None)
    expected = -(x[jnp.array([0, 3, 1, 4])].mean() + 2 * jax.random.uniform(key)) * 2
    self.assertAlmostEqual(float(adapt(0.0, support)), float(expected), places=5)
    support.inputs["scale"] = jnp.ones(3)
    message = r"inner_batch_size .*support.inputs\['scale'\] has 3.*\['x'\] has 6"
    with self.assertRaisesRegex(ValueError, message):
      adapt(0.0, support)

  def test_sizes_at_training_and_at_test(self):
    build = functools.partial(
      reptile,
      lambda w, x: (0.5 * jnp.mean((w - x) ** 2), {}),
      optax.sgd(1.0),
      optax.sgd(1.0),
      num_inner_steps=1,
    )
    support = jnp.array([1.0, 2.0, 4.0])
    # Whole set; the first of batches of one; rows 0 and 2; the same, asked for.
    for size, options, expected in (
      (None, {}, 7 / 3),
      (1, {}, 1.0),
      (1, {"batch_size": 2}, 2.5),
      (1, {"num_steps": 3}, 4.0),
      (1, {"num_steps": 0}, 0.0),
      (None, {"optimizer": optax.sgd(0.5)}, 7 / 6),
      # The optimizer of training has no state here; that of the test starts anew.
      (None, {"optimizer": optax.sgd(0.5, momentum=0.9)}, 7 / 6),
    ):
      adapted = build(inner_batch_size=size).adapt(0.0, support, **options)
      self.assertAlmostEqual(float(adapted), expected, places=6)
    task = jsharp.Task(support[None], support[None])
    algorithm = build(inner_batch_size=1)
    self.assertEqual(float(algorithm.step(algorithm.init(0.0), task)[0].params), 1.0)

  def test_bad_arguments_are_named(self):
    loss_fn = lambda w, x: (jnp.mean((w - x) ** 2), {})
    build = functools.partial(reptile, loss_fn, optax.sgd(0.1), optax.sgd(0.1))
    for options, message in (
      ({"num_inner_steps": 0}, "num_inner_steps"),
      ({"num_inner_steps": 1, "inner_batch_size": 0}, "inner_batch_size"),
    ):
      with self.assertRaisesRegex(ValueError, f"^{message} must be an integer"):
        build(**options)
    support = jnp.zeros(3)
    algorithm = build(num_inner_steps=1, inner_batch_size=2)
    for options, message in (
      ({"num_steps": -1}, "num_steps"),
      ({"batch_size": 1.5}, "batch_size"),
    ):
      with self.assertRaisesRegex(ValueError, f"^{message} must be an integer"):
        algorithm.adapt(0.0, support, **options)
    with self.assertRaisesRegex(ValueError, "^batch_size=4 .* set's 3"):
      algorithm.adapt(0.0, support, batch_size=4)
    algorithm = build(num_inner_steps=1, inner_batch_size=4)
    with self.assertRaisesRegex(ValueError, "^inner_batch_size=4 .* set's 3"):
      algorithm.step(algorithm.init(0.0), jsharp.Task(support[None], support[None]))


if __name__ == "__main__":
  absltest.main()
