"""Several seeds in one program are the seeds by themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses
from jsharp.core.objectives import on_query
from jsharp.evaluation import evaluator
from jsharp.training.over_seeds import evaluator_over_seeds, over_seeds
from tests.algorithms import conformance_test as table

NUM_SEEDS = 3
QUERY_LOSS_FN = on_query(losses.batch_loss(table.apply_fn, losses.cross_entropy))


@functools.cache
def starts():
  return jax.tree.map(lambda x: jnp.stack([x, 1.5 * x, -x]), table.start())


@functools.cache
def tasks():
  orders = jnp.array([[0, 1], [2, 3], [4, 0]])  # other tasks for each seed
  return jax.tree.map(lambda x: x[orders], table.tasks())


def build(constructor, seed):
  options = {"key": jax.random.key(seed)} if constructor is jsharp.meta_sgd else {}
  return constructor(
    losses.batch_loss(table.apply_fn, losses.cross_entropy),
    optax.sgd(0.3),
    optax.sgd(0.1, momentum=0.9),
    num_inner_steps=1,
    **options,
  )


def assert_close(actual, expected):
  pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for a, b in pairs:
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def after_two_steps(algorithm, measure):
  """Compiled: the state and the metrics, an evaluation, and an adaptation."""

  @jax.jit
  def run(state, tasks):
    step = lambda state, _: algorithm.step(state, tasks)
    state, metrics = jax.lax.scan(step, state, length=2)
    support = jax.tree.map(lambda x: x[0], table.tasks().support)
    adapted = algorithm.adapt(state.params, support)
    metrics = jax.tree.map(lambda x: x[-1], metrics)
    return state, metrics, measure(state.params, table.tasks()), adapted

  return run


class OverSeedsTest(parameterized.TestCase):
  @parameterized.parameters(("maml_plus_plus", True), ("meta_sgd", False))
  def test_each_seed_ends_as_by_itself(self, name, together):
    with jax.enable_x64(True):
      constructor = jsharp.meta_sgd if name == "meta_sgd" else table.ALGORITHMS[name]
      members = [build(constructor, seed) for seed in range(NUM_SEEDS)]
      measure = evaluator(members[0].adapt, QUERY_LOSS_FN)
      measure_all = evaluator_over_seeds(
        measure, num_seeds=NUM_SEEDS, together=together
      )
      joined = over_seeds(members, together=together)
      together_run = after_two_steps(joined, measure_all)
      state, metrics, evaluated, adapted = together_run(joined.init(starts()), tasks())
      self.assertEqual(int(state.step), 2)
      by_itself = after_two_steps(members[0], measure)
      for seed, member in enumerate(members):
        row = lambda tree: jax.tree.map(lambda x: x[seed], tree)  # noqa: B023
        first = member.init(row(starts()))
        alone, expected, measured, one = by_itself(first, row(tasks()))
        assert_close((row(state.params), row(state.opt_state)), alone[1:])
        both = jax.tree.map(lambda x: x.reshape(NUM_SEEDS, -1), metrics)
        assert_close(row(both), expected)
        assert_close(jax.tree.map(lambda x: x[:, seed], evaluated), measured)  # noqa: B023
        assert_close(row(adapted), one)

  def test_keywords_of_adapt_reach_every_seed(self):
    with jax.enable_x64(True):
      members = [build(jsharp.maml, seed) for seed in range(NUM_SEEDS)]
      support = jax.tree.map(lambda x: x[0], table.tasks().support)
      adapted = over_seeds(members).adapt(starts(), support, num_steps=3)
      for seed, member in enumerate(members):
        row = lambda tree: jax.tree.map(lambda x: x[seed], tree)  # noqa: B023
        assert_close(row(adapted), member.adapt(row(starts()), support, num_steps=3))

  def test_another_number_of_rows_is_named(self):
    with jax.enable_x64(True):  # The table keeps its arrays.
      joined = over_seeds([build(jsharp.maml, seed) for seed in range(2)])
      message = "2 seeds, but an array of {} is .3.*leading axis must be 2"
      with self.assertRaisesRegex(ValueError, message.format("params")):
        joined.init(starts())
      two = jax.tree.map(lambda x: x[:2], starts())
      state = joined.init(two)
      with self.assertRaisesRegex(ValueError, message.format("tasks")):
        jax.eval_shape(joined.step, state, tasks())
      many = state._replace(params=starts())
      with self.assertRaisesRegex(ValueError, message.format("state")):
        jax.eval_shape(joined.step, many, jax.tree.map(lambda x: x[:2], tasks()))
      support = jax.tree.map(lambda x: x[0], table.tasks().support)
      measure = evaluator_over_seeds(
        evaluator(joined.adapt, QUERY_LOSS_FN), num_seeds=2
      )
      for fn, data in ((joined.adapt, support), (measure, table.tasks())):
        with self.assertRaisesRegex(ValueError, message.format("params")):
          jax.eval_shape(fn, starts(), data)

  def test_nobody_is_refused(self):
    with self.assertRaisesRegex(ValueError, "got none"):
      over_seeds([])
    with self.assertRaisesRegex(ValueError, "num_seeds must be .* got 0"):
      evaluator_over_seeds(lambda params, tasks: {}, num_seeds=0)


if __name__ == "__main__":
  absltest.main()
