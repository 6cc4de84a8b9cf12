"""MAML++: every part alone and all together against a NumPy oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp.algorithms import annealed_step_weights, maml_plus_plus
from jsharp.core.objectives import on_query
from jsharp.evaluation import evaluator
from tests import quadratics as quad

INNER_LR, OUTER_LR = 0.1, 0.3
WEIGHTS = (0.2, 0.3, 0.5)


def loss_fn(params, batch):
  """The quadratic loss of `w * z`."""
  return quad.loss_fn(params["w"] * params["z"], batch)


def w_alone(params):
  return {"w": True, "z": False}


def z_alone(params):
  return {"w": False, "z": True}


def start():
  return {"w": quad.start(), "z": quad.start(2)}


def objective(tasks, w, z, rates, weights, losses_at_end=None):
  """The meta-objective in NumPy, for complex arguments too; row i of z is of step i."""
  total, num_tasks = 0, len(tasks.query.targets)
  for task in range(num_tasks):
    point = w
    for i, (rate, weight) in enumerate(zip(rates, weights, strict=True)):
      g = z[i] * quad.gradient(tasks.support, task, point * z[i])
      point = point - rate * g
      offset = point * z[i + 1] - tasks.query.targets[task]
      loss = 0.5 * offset @ tasks.query.inputs[task] @ offset
      total = total + weight * loss / num_tasks
    if losses_at_end is not None:
      losses_at_end.append(loss)
  return total


def gradient(fn, x):
  """By complex steps, exact for polynomials."""
  slopes = np.zeros(x.shape)
  for index in np.ndindex(x.shape):
    moved = x.astype(complex)
    moved[index] += 1e-30j
    slopes[index] = fn(moved).imag / 1e-30
  return slopes


def build(loss_fn=loss_fn, inner=None, outer=None, **options):
  return maml_plus_plus(
    loss_fn,
    inner or optax.sgd(1.0),
    outer or optax.sgd(OUTER_LR),
    **{"num_inner_steps": 3, "inner_lr": INNER_LR} | options,
  )


class PartsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.tasks = quad.random_tasks(3)

  @parameterized.named_parameters(
    ("nothing", 3, False, False, None),
    ("rates", 3, True, False, None),
    ("copies", 3, False, True, None),
    ("weights", 3, False, False, WEIGHTS),
    ("no_weight_on_the_last_step", 3, False, False, (0.7, 0.3, 0.0)),
    ("last_weight_alone", 3, False, False, (0.0, 0.0, 0.7)),
    ("all", 3, True, True, WEIGHTS),
    ("all_in_a_scan", 12, True, True, np.linspace(0.1, 1.2, 12)),
  )
  def test_gradients_are_those_of_the_oracle(self, steps, rates, copies, weights):
    algorithm = build(
      num_inner_steps=steps,
      learn_rates=rates,
      per_step=z_alone if copies else None,
      adapted_mask=w_alone,
      step_weights=None if weights is None else lambda step: jnp.asarray(weights),
    )
    before = algorithm.init(start())
    state, metrics = jax.jit(algorithm.step)(before, quad.on_device(self.tasks))
    learned = state.params
    if weights is None:
      weights = np.eye(steps)[-1]
    w, z = start()["w"], np.tile(start()["z"], (steps + 1, 1))
    r, ends = np.full(steps, INNER_LR), []
    value = functools.partial(objective, self.tasks)
    value(w, z, r, weights, ends)
    by_z = gradient(lambda x: value(w, x, r, weights), z)
    checks = [(learned.params["w"], w, gradient(lambda x: value(x, z, r, weights), w))]
    if copies:
      self.assertIsNone(learned.params["z"])
      checks.append((learned.per_step["z"], z, by_z))
    else:
      checks.append((learned.params["z"], z[0], by_z.sum(0)))
    if rates:
      by_r = gradient(lambda x: value(w, z, x, weights), r)
      checks.append((learned.rates["w"], r, by_r))
    else:
      self.assertEqual(jax.tree.leaves(learned.rates), [])
    for actual, initial, slope in checks:
      expected = initial - OUTER_LR * slope
      np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(metrics["loss"], ends, rtol=1e-11)

  @parameterized.parameters(False, True)
  def test_all_off_is_maml(self, sharp):
    links = [jsharp.sam(0.2)] if sharp else []
    options = {"num_inner_steps": 2}
    tasks, both = quad.on_device(self.tasks), []
    for algorithm in (
      build(inner=optax.chain(*links, optax.sgd(1.0)), learn_rates=False, **options),
      jsharp.maml(
        loss_fn,
        optax.chain(*links, optax.sgd(INNER_LR)),
        optax.sgd(OUTER_LR),
        **options,
      ),
    ):
      state, metrics = jax.jit(algorithm.step)(algorithm.init(start()), tasks)
      adapt = functools.partial(algorithm.adapt, num_steps=12)
      evaluated = jax.jit(evaluator(adapt, on_query(loss_fn)))(state.params, tasks)
      params = getattr(state.params, "params", state.params)
      both.append((params, metrics, evaluated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *both)

  def test_adapt_takes_the_row_of_its_number_of_steps(self):
    algorithm = build(per_step=z_alone)
    point = algorithm.init(start()).params
    copies = np.random.default_rng(0).normal(size=(4, 4))
    rates = np.array([0.1, -0.2, 0.3])
    point = point._replace(
      per_step={"w": None, "z": copies}, rates={"w": rates, "z": None}
    )
    support = quad.on_device(jax.tree.map(lambda x: x[0], self.tasks.support))
    adapted = jax.jit(functools.partial(algorithm.adapt, num_steps=2))(point, support)
    w = start()["w"]
    for rate, z in zip(rates[:2], copies[:2], strict=True):
      w = w - rate * z * quad.gradient(self.tasks.support, 0, w * z)
    np.testing.assert_allclose(adapted["w"], w, rtol=1e-12)
    np.testing.assert_array_equal(adapted["z"], copies[2])

  def test_the_order_changes_after_first_order_steps(self):
    options = {"num_inner_steps": 2}
    algorithm = build(learn_rates=False, first_order_steps=1, **options)
    step, tasks = jax.jit(algorithm.step), quad.on_device(self.tasks)
    state = algorithm.init(start())
    for constructor in (jsharp.fomaml, jsharp.maml):
      plain = constructor(loss_fn, optax.sgd(INNER_LR), optax.sgd(OUTER_LR), **options)
      expected, _ = jax.jit(plain.step)(plain.init(state.params.params), tasks)
      state, _ = step(state, tasks)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13),
        state.params.params,
        expected.params,
      )


class CostTest(absltest.TestCase):
  def test_what_is_switched_off_is_not_computed(self):
    counts = {"value": 0, "second": 0}

    def count(name):
      def add():
        counts[name] += 1

      jax.debug.callback(add)

    @jax.custom_jvp
    def slope(x):
      return 2 * x

    @slope.defjvp
    def slope_jvp(primals, tangents):
      count("second")
      return slope(*primals), 2 * tangents[0]

    @jax.custom_jvp
    def square(x):
      return x * x

    @square.defjvp
    def square_jvp(primals, tangents):
      return square(*primals), slope(primals[0]) * tangents[0]

    def counted_loss(w, batch):
      jax.lax.cond(batch.targets, lambda: count("value"), lambda: None)
      return square(w * batch.inputs), {}

    algorithm = maml_plus_plus(
      counted_loss,
      optax.sgd(1.0),
      optax.sgd(0.1),
      num_inner_steps=3,
      step_weights=lambda step: jnp.where(
        step % 2 == 0, jnp.array([0.5, 0.3, 0.2]), jnp.array([0.0, 0.0, 1.0])
      ),
      first_order_steps=2,
    )
    one = jnp.ones(1)
    tasks = jsharp.Task(
      jsharp.Batch(one, jnp.array([False])), jsharp.Batch(one, jnp.array([True]))
    )
    state, step, seen = algorithm.init(jnp.float32(1)), jax.jit(algorithm.step), []
    for _ in range(4):
      counts.update(value=0, second=0)
      state, _ = step(state, tasks)
      jax.effects_barrier()
      seen.append((counts["value"], counts["second"] > 0))
    self.assertEqual(seen, [(3, False), (1, False), (3, True), (1, True)])


class WeightsTest(parameterized.TestCase):
  @parameterized.parameters(1, 5)
  def test_annealed_weights_are_those_of_the_released_code(self, per_epoch):
    steps, epochs = 5, 50  # The floor is reached.
    weights = annealed_step_weights(
      steps, anneal_steps=epochs * per_epoch, steps_per_epoch=per_epoch
    )
    at = jax.jit(jax.vmap(weights))(jnp.arange((epochs + 2) * per_epoch))
    for i, actual in enumerate(np.asarray(at)):
      epoch = i // per_epoch
      expected = np.full(steps, max(1 / steps - epoch / (steps * epochs), 0.03 / steps))
      expected[-1] = min(
        1 / steps + epoch * (steps - 1) / (steps * epochs),
        1 - (steps - 1) * 0.03 / steps,
      )
      if epoch >= epochs:
        expected = np.eye(steps)[-1]
      np.testing.assert_allclose(actual, expected, atol=1e-6)

  @parameterized.parameters(
    ({"step_weights": lambda step: jnp.ones(2)}, r"step_weights must.*\(2,\)"),
    ({"statistics_decay": 1.0}, r"statistics_decay must be in \[0, 1\), got 1.0"),
    ({"num_inner_steps": 0}, "num_inner_steps must be an integer of at least 1"),
    ({"first_order_steps": -1}, "first_order_steps must be an integer"),
    ({"inner_lr": float("nan")}, "inner_lr must be a finite number, got nan"),
    ({"inner_lr": "0.1"}, "inner_lr must be a finite number, got '0.1'"),
    (
      {"statistics_decay": 0.9, "query_loss_fn": loss_fn},
      "query_loss_fn cannot be combined",
    ),
  )
  def test_bad_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      build(**options)

  @parameterized.parameters(
    ({}, "num_steps must be at most num_inner_steps=3, got 4"),
    ({"learn_rates": False, "per_step": z_alone}, "learn_rates=False and without per_"),
  )
  def test_more_steps_than_there_are_rows_are_refused(self, options, message):
    algorithm = build(**options)
    point = algorithm.init(start()).params
    with self.assertRaisesRegex(ValueError, message):
      algorithm.adapt(point, None, num_steps=4)

  def test_init_names_what_it_takes(self):
    with self.assertRaisesRegex(ValueError, "got dict with statistics_decay=0.9"):
      build(statistics_decay=0.9).init(start())
    nothing = lambda params: {"w": False, "z": False}
    with self.assertRaisesRegex(ValueError, "per_step selects no leaf"):
      build(per_step=nothing).init(start())


if __name__ == "__main__":
  absltest.main()
