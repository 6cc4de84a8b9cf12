"""Tests of jsharp.evaluation.tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses, normalization
from jsharp.core.objectives import on_query
from jsharp.data import sinusoid
from jsharp.evaluation.tasks import (
  evaluate,
  evaluator,
  mean_and_ci95,
  task_list,
  transductive_and_inductive,
)
from jsharp.models import MLP, as_functions
from jsharp.training.stop_signal import StopRequested, StopSignal
from jsharp.types import Batch, Task


def draw(key, data):
  inputs = data + jax.random.normal(key, (3, 2))
  batch = Batch(inputs, jnp.zeros(3, jnp.int32))
  return Task(support=batch, query=batch)


sample_task = task_list(draw, seed=0, stream="test")


def evaluate_tasks(params, tasks):
  return {"loss": params * tasks.query.inputs.sum(axis=(1, 2))}


@functools.cache
def trained():
  """The loss, the model, and MAML on sine waves with what it learned."""
  init_fn, apply_fn = as_functions(MLP((20, 20, 1)))
  loss_fn = losses.batch_loss(apply_fn, losses.squared_error)
  algorithm = jsharp.maml(loss_fn, optax.sgd(0.01), optax.sgd(0.01), num_inner_steps=1)

  def step(i, state):
    key = jax.random.key(i)
    tasks = sinusoid.sample_tasks(key, num_tasks=4, shot=5, query_shot=5)
    return algorithm.step(state, tasks)[0]

  state = algorithm.init(init_fn(jax.random.key(0), jnp.zeros((1, 1))))
  state = jax.jit(lambda state: jax.lax.fori_loop(0, 20, step, state))(state)
  return loss_fn, apply_fn, algorithm, state.params


@functools.cache
def sines(num_tasks=3):
  key = jax.random.key(99)
  return sinusoid.sample_tasks(key, num_tasks=num_tasks, shot=5, query_shot=7)


class EvaluatorTest(parameterized.TestCase):
  def test_ten_steps_with_what_one_step_has_trained(self):
    loss_fn, apply_fn, algorithm, params = trained()
    query_loss_fn = normalization.query_loss(
      normalization.transductive(apply_fn), losses.squared_error
    )
    by_steps = [
      jax.jit(
        evaluator(functools.partial(algorithm.adapt, num_steps=n), query_loss_fn)
      )(params, sines())["loss"]
      for n in (0, 1, 10)
    ]
    gradient = jax.jit(jax.grad(lambda w, batch: loss_fn(w, batch)[0]))
    loss = jax.jit(lambda w, batch: loss_fn(w, batch)[0])
    for n, actual in zip((0, 1, 10), by_steps, strict=True):
      for i, task in enumerate(zip(*jax.tree.leaves(sines()), strict=True)):
        adapted, batch = params, Batch(*task[:2])
        for _ in range(n):
          grads = gradient(adapted, batch)
          adapted = jax.tree.map(lambda w, g: w - 0.01 * g, adapted, grads)
        expected = loss(adapted, Batch(*task[2:]))
        np.testing.assert_allclose(actual[i], expected, rtol=1e-4)
    self.assertGreater(np.abs(by_steps[2] - by_steps[1]).min(), 1e-2)

  @parameterized.parameters(None, 2, "in_order")
  def test_metrics_are_per_task_whatever_the_chunk(self, chunk):
    loss_fn, _, algorithm, params = trained()
    execution = jsharp.Execution(task_chunk=chunk)
    measure = evaluator(algorithm.adapt, on_query(loss_fn), execution=execution)
    metrics = jax.jit(measure)(params, sines(5))
    task_loss_fn = jax.jit(jsharp.after_adaptation(algorithm.adapt, on_query(loss_fn)))
    expected = [
      task_loss_fn(params, jax.tree.map(lambda x: x[i], sines(5)))[0]  # noqa: B023
      for i in range(5)
    ]
    self.assertEqual(set(metrics), {"loss"})
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


class EvaluateTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 4, 7, 100)
  def test_chunks_change_nothing(self, chunk):
    data = jnp.float32(5)
    metrics = evaluate(evaluate_tasks, 2.0, sample_task, data, num_tasks=7, chunk=chunk)
    one_by_one = [2 * sample_task(i, data).query.inputs.sum() for i in range(7)]
    np.testing.assert_allclose(metrics["loss"], one_by_one, rtol=1e-6)

  def test_metrics_in_half_precision_have_the_right_mean(self):
    measure = lambda params, tasks: {"loss": jnp.ones(len(tasks), jnp.bfloat16)}
    sample = lambda index, data: index
    metrics = evaluate(measure, 0.0, sample, None, num_tasks=512, chunk=256)
    self.assertEqual(metrics["loss"].mean(), 1.0)

  def test_a_longer_list_begins_with_the_shorter_one(self):
    short, long = (
      evaluate(evaluate_tasks, 1.0, sample_task, jnp.float32(0), num_tasks=n, chunk=4)
      for n in (5, 9)
    )
    np.testing.assert_array_equal(short["loss"], long["loss"][:5])

  def test_traced_once_for_many_parameters(self):
    traces = []

    def traced(params, tasks):
      traces.append(params)
      return evaluate_tasks(params, tasks)

    for params in (1.0, 2.0, 3.0):
      evaluate(traced, jnp.float32(params), sample_task, 0.0, num_tasks=6, chunk=2)
    self.assertLen(traces, 1)

  def test_stops_between_chunks(self):
    stop = StopSignal()
    calls = []

    def asking_to_stop(params, tasks):
      jax.debug.callback(lambda: (calls.append(1), stop.request()))
      return evaluate_tasks(params, tasks)

    with self.assertRaises(StopRequested):
      evaluate(asking_to_stop, 1.0, sample_task, 0.0, num_tasks=50, chunk=2, stop=stop)
    self.assertLess(len(calls), 25)

  @parameterized.parameters(
    ({"num_tasks": 0}, "num_tasks"), ({"num_tasks": 5, "chunk": 0}, "chunk")
  )
  def test_refuses(self, arguments, name):
    with self.assertRaisesRegex(ValueError, name):
      evaluate(evaluate_tasks, 1.0, sample_task, 0.0, **arguments)


class TaskListTest(parameterized.TestCase):
  def test_lists_differ_by_seed_stream_and_index(self):
    key = task_list(lambda key, data: key, seed=0, stream="val")
    others = [
      task_list(lambda key, data: key, seed=0, stream="test")(0, None),
      task_list(lambda key, data: key, seed=1, stream="val")(0, None),
      key(1, None),
    ]
    for other in others:
      self.assertFalse(bool(other == key(0, None)))


class MeanAndCi95Test(parameterized.TestCase):
  def test_formula_of_the_papers(self):
    values = [0.2, 0.4, 0.9, 0.5]
    mean, half_width = mean_and_ci95(np.array(values, np.float32))
    self.assertAlmostEqual(mean, 0.5, places=6)
    # squares of the deviations: 0.09 + 0.01 + 0.16 + 0; divided by n - 1 = 3
    self.assertAlmostEqual(half_width, 1.96 * (0.26 / 3) ** 0.5 / 2, places=6)

  @parameterized.parameters([[]], [[0.5]], [[[0.5, 0.5], [0.5, 0.5]]])
  def test_refuses(self, values):
    with self.assertRaisesRegex(ValueError, "at least two"):
      mean_and_ci95(values)


class TransductiveAndInductiveTest(absltest.TestCase):
  def test_inductive_is_blind_to_the_other_queries(self):
    def centred(params, x):
      return params * (x - x.mean(axis=0, keepdims=True))

    query_loss_fn = transductive_and_inductive(centred, losses.cross_entropy)
    support = Batch(jnp.zeros((2, 2)), jnp.arange(2))
    # Centred together, the second query's first entry is the smaller one; beside the
    # support set alone it is the larger.
    query = Batch(jnp.array([[9.0, 1.0], [3.0, 1.0]]), jnp.array([0, 1]))
    loss, metrics = query_loss_fn(jnp.float32(1), Task(support, query))
    self.assertEqual(float(metrics["accuracy"]), 1.0)
    self.assertEqual(float(metrics["accuracy_inductive"]), 0.5)
    self.assertEqual(
      float(loss),
      float(losses.cross_entropy(centred(1.0, query.inputs), query.targets)[0]),
    )


if __name__ == "__main__":
  absltest.main()
