import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jsharp.training.dispatch import Dispatcher, NonFiniteLossError, make_dispatch
from jsharp.types import MetaAlgorithm, MetaState
from tests import toy_runs

_DISPATCH = jax.jit(
  make_dispatch(toy_runs.algorithm(), toy_runs.sample_tasks, capacity=64)
)


def _start():
  return toy_runs.algorithm().init(toy_runs.params())


def _run(lengths):
  state, rows = _start(), []
  for length in lengths:
    result = _DISPATCH(state, jnp.int32(length), toy_runs.data())
    assert result.finite and result.num_done == length
    rows.append(jax.tree.map(lambda x, n=length: x[:n], result.metrics))
    state = result.state
  return state, jax.tree.map(lambda *x: jnp.concatenate(x), *rows)


class DispatchTest(parameterized.TestCase):
  @parameterized.parameters(
    ([1] * 60,), ([7] * 8 + [4],), ([30, 30],), ([1, 58, 1],), ([59, 1],)
  )
  def test_the_partition_does_not_change_a_bit(self, lengths):
    state, metrics = _run([60])
    self.assertEqual(state.step, 60)
    other = _run(lengths)
    self.assertTrue(toy_runs.same_bits(other, (state, metrics)))

  def test_agrees_with_steps_one_by_one(self):
    algorithm, state, losses = toy_runs.algorithm(), _start(), []
    for _ in range(5):
      tasks = toy_runs.sample_tasks(state.step, jnp.asarray(toy_runs.data()))
      state, metrics = algorithm.step(state, tasks)
      losses.append(metrics["loss"])
    dispatched_state, metrics = _run([5])
    np.testing.assert_allclose(metrics["loss"], jnp.stack(losses), rtol=1e-5)
    for a, b in zip(
      jax.tree.leaves(state.params),
      jax.tree.leaves(dispatched_state.params),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

  def test_without_jit(self):
    def step(state, tasks):
      return MetaState(state.step + 1, state.params + tasks, ()), {"loss": tasks}

    algorithm = MetaAlgorithm(init=None, step=step, adapt=None)
    dispatcher = Dispatcher(algorithm, lambda step, data: data, num_tasks=2)
    state, data = MetaState(jnp.int32(0), jnp.zeros(2), ()), jnp.array([1.0, 2.0])
    with jax.disable_jit():
      dispatcher.compile(state, data)
      self.assertIsNone(dispatcher.needed_bytes)
      for _ in range(2):
        state, done = dispatcher.run(state, data, 1)
    self.assertEqual(state.params.tolist(), [2.0, 4.0])
    self.assertEqual(done.metrics["loss"].tolist(), [[1.0, 2.0]])

  @parameterized.parameters((0, 0), (13, 2), (19, 3))
  def test_stops_before_a_step_that_is_not_finite(self, step, task):
    sample = toy_runs.sample_tasks_with_nan(step, task)
    dispatch = jax.jit(make_dispatch(toy_runs.algorithm(), sample, capacity=64))
    result = dispatch(_start(), jnp.int32(20), toy_runs.data())
    self.assertEqual((result.num_done, result.finite), (step, False))
    bad = np.isfinite(result.metrics["loss"][step])
    np.testing.assert_array_equal(bad, np.arange(toy_runs.NUM_TASKS) != task)
    before = _run([step])[0] if step else _start()
    self.assertTrue(toy_runs.same_bits(result.state, before))

  def test_a_state_that_is_not_finite_is_not_taken(self):
    def step(state, tasks):
      grown = state.params * jnp.float32(1e19)
      opt_state = (jnp.where(state.step == 1, jnp.nan, 1.0), state.opt_state[1])
      return MetaState(state.step + 1, grown, opt_state), {"loss": tasks}

    def run(params):
      algorithm = MetaAlgorithm(init=None, step=step, adapt=None)
      dispatcher = Dispatcher(algorithm, lambda step, data: jnp.ones(2), num_tasks=2)
      # An infinity that was there before, as in "best loss so far", is let be.
      state = MetaState(jnp.int32(0), params, (jnp.float32(0.0), jnp.float32(jnp.inf)))
      dispatcher.compile(state, None)
      for _ in range(4):
        state, done = dispatcher.run(state, None, 8)
        if done.error:
          break
      return state, done.error

    state, error = run(jnp.float32(1.0))
    self.assertEqual((error.step, error.tasks, state.step), (2, (), 1))
    self.assertRegex(str(error), "state after the outer update is not.*eps_root=1e-8")
    state, error = run(jnp.float32(1e20))
    self.assertEqual((error.step, state.params), (1, jnp.float32(1e20)))
    self.assertIsInstance(error, NonFiniteLossError)
    self.assertIsInstance(error, FloatingPointError)

  def test_an_optimizer_that_skips_errors_gets_to_skip(self):
    tx = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=2)

    def run(first_bad, num_bad):
      def step(state, tasks):
        bad = (state.step >= first_bad) & (state.step < first_bad + num_bad)
        loss = jnp.where(bad, jnp.nan, state.params)
        updates, opt_state = tx.update(loss / 2, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return MetaState(state.step + 1, params, opt_state), {"loss": loss[None]}

      algorithm = MetaAlgorithm(init=None, step=step, adapt=None)
      dispatcher = Dispatcher(algorithm, lambda step, data: None, num_tasks=1)
      state = MetaState(jnp.int32(0), jnp.float32(1.0), tx.init(jnp.float32(1.0)))
      dispatcher.compile(state, None)
      dispatcher.length = 4
      return dispatcher.run(state, None, 4)

    state, done = run(1, 2)
    self.assertIsNone(done.error)
    self.assertEqual((int(state.step), float(state.params)), (4, 0.25))
    state, done = run(1, 3)  # More in a row than it skips.
    self.assertEqual((done.error.step, done.error.tasks), (4, (0,)))
    self.assertEqual((int(state.step), float(state.params)), (3, 0.5))

  def test_a_metric_that_is_not_per_task_is_refused(self):
    def step(state, tasks):
      return state, {"loss": jnp.ones(3), "accuracy": jnp.float32(1.0)}

    algorithm = MetaAlgorithm(init=None, step=step, adapt=None)
    dispatch = make_dispatch(algorithm, lambda step, data: None, capacity=4)
    with self.assertRaisesRegex(ValueError, r"'accuracy' has shape \(\).*num_tasks"):
      jax.eval_shape(dispatch, _start(), jnp.int32(1), None)

  def test_compiles_once_and_grows_to_what_fits(self):
    dispatcher = Dispatcher(
      toy_runs.algorithm(), toy_runs.sample_tasks, num_tasks=toy_runs.NUM_TASKS
    )
    state, data = _start(), jnp.asarray(toy_runs.data())
    dispatcher.compile(state, data)
    taken = []
    for _ in range(5):
      state, done = dispatcher.run(state, data, 100)
      taken.append(done.num_steps)
      self.assertEqual(done.metrics["loss"].shape, (done.num_steps, 4))
    self.assertEqual(taken, [1, 2, 4, 8, 16])
    state, done = dispatcher.run(state, data, 5)
    self.assertEqual((done.num_steps, state.step), (5, 36))

  def test_consumes_its_state(self):
    dispatcher = Dispatcher(
      toy_runs.algorithm(), toy_runs.sample_tasks, num_tasks=toy_runs.NUM_TASKS
    )
    state, data = _start(), jnp.asarray(toy_runs.data())
    state = jax.tree.map(jnp.copy, state)
    dispatcher.compile(state, data)
    dispatcher.run(state, data, 1)
    self.assertTrue(state.params["w"].is_deleted())


if __name__ == "__main__":
  absltest.main()
