"""The black-box learner: it learns to learn, and every policy gives what it names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jsharp
from jsharp import losses, normalization
from jsharp.algorithms.black_box import InContext, black_box, predict_in_context
from jsharp.evaluation import tasks as evaluation
from jsharp.models import MLP, AttentionLearner, as_learner_functions


def functions(num_outputs, normalize=False):
  return as_learner_functions(
    AttentionLearner(
      MLP((8, 8), normalize=normalize),
      num_outputs=num_outputs,
      width=16,
      num_layers=1,
      num_heads=2,
    )
  )


@functools.cache
def normalised():
  """A task, an adapted learner and its functions, with batch statistics."""
  init_fn, apply_fn = functions(2, normalize=True)
  keys = jax.random.split(jax.random.key(0), 2)
  task = jsharp.Task(
    jsharp.Batch(jax.random.normal(keys[0], (6, 3)), jnp.arange(6) % 2),
    jsharp.Batch(2 + jax.random.normal(keys[1], (4, 3)), jnp.arange(4) % 2),
  )
  params = jax.jit(init_fn)(jax.random.key(1), *task.support, task.query.inputs)
  compiled = jax.jit(apply_fn, static_argnames="num_statistics")
  return task, InContext(params, task.support), compiled


def two_clusters(key):
  """Two Gaussians in random places; which one is class 0 is drawn per task."""
  keys = jax.random.split(key, 5)
  centres = jax.random.normal(keys[0], (2, 2)) * 2
  swap = jax.random.bernoulli(keys[1]).astype(jnp.int32)

  def batch(key, size):
    cluster = jnp.arange(size) % 2
    noise = 0.3 * jax.random.normal(key, (size, 2))
    return jsharp.Batch(centres[cluster] + noise, cluster ^ swap)

  return jsharp.Task(batch(keys[2], 4), batch(keys[3], 6))


class BlackBoxTest(absltest.TestCase):
  def test_it_learns_to_classify_from_the_support_set(self):
    init_fn, apply_fn = functions(2)
    execution = jsharp.Execution(task_chunk=16)
    algorithm = black_box(apply_fn, optax.adam(1e-2), execution=execution)
    measure = evaluation.evaluator(
      algorithm.adapt,
      normalization.query_loss(
        normalization.transductive(predict_in_context(apply_fn)), losses.cross_entropy
      ),
      execution=execution,
    )

    @jax.jit
    def run(key):
      start, test = jax.random.split(key)
      some_tasks = jax.vmap(two_clusters)(jax.random.split(test, 100))
      one = jax.tree.map(lambda x: x[0], some_tasks)
      state = algorithm.init(init_fn(start, *one.support, one.query.inputs))

      def step(state, key):
        tasks = jax.vmap(two_clusters)(jax.random.split(key, 16))
        return algorithm.step(state, tasks)

      state, _ = jax.lax.scan(step, state, jax.random.split(jax.random.key(7), 150))
      wrong = some_tasks.support._replace(targets=1 - some_tasks.support.targets)
      both = some_tasks, some_tasks._replace(support=wrong)
      tasks = jax.tree.map(lambda *parts: jnp.concatenate(parts), *both)
      return measure(state.params, tasks)["accuracy"].reshape(2, 100).mean(axis=1)

    with jax.numpy_dtype_promotion("standard"):  # For optax.adam.
      accuracy, with_wrong_labels = run(jax.random.key(0))
    self.assertGreater(accuracy, 0.85)
    self.assertLess(with_wrong_labels, 0.15)  # So it is the support set that it reads.

  def test_nothing_is_fitted(self):
    task, adapted, apply_fn = normalised()
    algorithm = black_box(apply_fn, optax.sgd(0.1))
    again = algorithm.adapt(adapted.params, task.support)
    self.assertIsInstance(again, InContext)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(adapted), strict=True):
      self.assertIs(a, b)

  def test_policies_by_hand(self):
    task, adapted, apply_fn = normalised()
    predict = predict_in_context(apply_fn)
    support, query = task.support.inputs, task.query.inputs
    alone = functools.partial(apply_fn, adapted.params, *task.support)
    together = jnp.concatenate([support, query])
    by_support = alone(together, num_statistics=len(support))
    expected = {
      normalization.transductive: alone(query),
      normalization.support_statistics: by_support[len(support) :],
      normalization.per_query: jnp.stack(
        [alone(jnp.concatenate([support, x[None]]))[-1] for x in query]
      ),
    }
    for policy, outputs in expected.items():
      np.testing.assert_allclose(
        policy(predict)(adapted, task), outputs, rtol=1e-4, atol=1e-5
      )

  def test_per_query_uses_the_support_set_as_context_normalised_by_itself(self):
    # With the query example equal to one far outside, only its own batch may move.
    task, adapted, apply_fn = normalised()
    predict = normalization.per_query(predict_in_context(apply_fn))

    @jax.jit
    def outputs(query):
      return predict(adapted, task._replace(query=task.query._replace(inputs=query)))

    query = task.query.inputs
    before, after = outputs(query), outputs(query.at[1].add(5.0))
    others = np.array([0, 2, 3])
    np.testing.assert_allclose(after[others], before[others], rtol=1e-5, atol=1e-6)
    self.assertGreater(np.abs(after[1] - before[1]).max(), 1e-3)

    # A network that shows what it is given: support features, then query features.
    def shown(params, inputs, targets, queries, num_statistics=None):
      centred = queries - queries[:num_statistics].mean(axis=0, keepdims=True)
      own = inputs - inputs.mean(axis=0, keepdims=True)
      return jnp.concatenate([centred, 0 * centred + own[:1]], axis=1)

    actual = normalization.per_query(predict_in_context(shown))(adapted, task)
    support = np.asarray(task.support.inputs)
    for row, example in zip(actual, np.asarray(query), strict=True):
      batch = np.concatenate([support, example[None]])
      np.testing.assert_allclose(row[:3], (batch - batch.mean(0))[-1], atol=1e-5)
      np.testing.assert_allclose(row[3:], (support - support.mean(0))[0], atol=1e-5)

  def test_evaluation_reports_both_accuracies(self):
    task, adapted, apply_fn = normalised()
    measure = evaluation.transductive_and_inductive(
      predict_in_context(apply_fn), losses.cross_entropy
    )
    algorithm = black_box(apply_fn, optax.sgd(0.1))
    tasks = jax.tree.map(lambda x: x[None], task)
    measure_tasks = evaluation.evaluator(algorithm.adapt, measure)
    metrics = jax.eval_shape(measure_tasks, adapted.params, tasks)
    self.assertEqual(set(metrics), {"loss", "accuracy", "accuracy_inductive"})

  def test_regression_by_another_criterion(self):
    def apply_fn(w, inputs, targets, queries):
      return w * targets.mean() + (queries - inputs.mean())

    task = jsharp.Task(
      jsharp.Batch(jnp.array([[1.0], [3.0]]), jnp.array([[2.0], [4.0]])),
      jsharp.Batch(jnp.array([[2.0], [5.0]]), jnp.array([[1.0], [1.0]])),
    )
    algorithm = black_box(apply_fn, optax.sgd(0.5), criterion=losses.squared_error)
    state, metrics = algorithm.step(
      algorithm.init(1.0), jax.tree.map(lambda x: x[None], task)
    )
    self.assertEqual(set(metrics), {"loss"})
    self.assertEqual(float(metrics["loss"][0]), (2**2 + 5**2) / 2)
    self.assertEqual(float(state.params), 1 - 0.5 * (2 * 2 * 3 + 2 * 5 * 3) / 2)


if __name__ == "__main__":
  absltest.main()
