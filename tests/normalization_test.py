"""Whose statistics normalise: each policy sees exactly what its name says."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jsharp import Batch, Task, losses, models, normalization


def task():
  keys = jax.random.split(jax.random.key(0), 2)
  support = jax.random.normal(keys[0], (4, 6))
  query = 3 + 2 * jax.random.normal(keys[1], (5, 6))
  return Task(
    Batch(support, jnp.arange(4, dtype=jnp.int32)),
    Batch(query, jnp.arange(5, dtype=jnp.int32) % 4),
  )


class PoliciesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    model = models.MLP(features=(8, 4), normalize=True)
    init_fn, self.apply_fn = models.as_functions(model)
    self.params = init_fn(jax.random.key(1), jnp.zeros((2, 6)))

  def predict(self, policy, some_task):
    return np.asarray(policy(self.apply_fn)(self.params, some_task))

  def changed_query(self, row):
    original = task()
    query = original.query._replace(inputs=original.query.inputs.at[row].add(5.0))
    return original._replace(query=query)

  def test_transductive_is_the_query_batch(self):
    expected = self.apply_fn(self.params, task().query.inputs)
    actual = self.predict(normalization.transductive, task())
    np.testing.assert_array_equal(actual, expected)
    changed = self.predict(normalization.transductive, self.changed_query(0))
    self.assertGreater(np.abs(changed[1:] - actual[1:]).max(), 1e-3)

  def test_inductive_policies_predict_each_query_example_on_its_own(self):
    for policy in (normalization.support_statistics, normalization.per_query):
      before = self.predict(policy, task())
      after = self.predict(policy, self.changed_query(0))
      np.testing.assert_allclose(after[1:], before[1:], rtol=1e-5, atol=1e-6)
      self.assertGreater(np.abs(after[0] - before[0]).max(), 1e-4)

  def test_per_query_appends_one_example_to_the_support_set(self):
    actual = self.predict(normalization.per_query, task())
    for row, example in enumerate(task().query.inputs):
      inputs = jnp.concatenate([task().support.inputs, example[None]])
      expected = self.apply_fn(self.params, inputs)[-1]
      np.testing.assert_allclose(actual[row], expected, rtol=1e-5, atol=1e-6)

  def test_support_statistics_normalise_the_support_set_as_alone(self):
    same = task()._replace(query=task().support)
    np.testing.assert_allclose(
      self.predict(normalization.support_statistics, same),
      self.apply_fn(self.params, task().support.inputs),
      rtol=1e-4,
      atol=1e-5,
    )

  def test_query_loss_is_the_criterion_of_the_prediction(self):
    predict = normalization.per_query(self.apply_fn)
    loss_fn = normalization.query_loss(predict, losses.cross_entropy)
    loss, metrics = loss_fn(self.params, task())
    outputs = predict(self.params, task())
    expected = losses.cross_entropy(outputs, task().query.targets)
    np.testing.assert_allclose(loss, expected[0])
    self.assertEqual(float(metrics["accuracy"]), float(expected[1]["accuracy"]))


if __name__ == "__main__":
  absltest.main()
