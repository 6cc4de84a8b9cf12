"""Ensembles: mean of softmax against NumPy, one member is the member itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jsharp
from jsharp import losses
from jsharp.evaluation.ensemble import evaluate_ensemble, log_probabilities
from jsharp.evaluation.tasks import evaluate, evaluator
from jsharp.normalization import query_loss, transductive

NUM_TASKS = 7


def apply_fn(w, x):
  return x @ w


def sample_task(index, data):
  del data
  keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index), 2)

  def batch(key):
    inputs = jax.random.normal(key, (6, 4))
    return jsharp.Batch(inputs, jnp.argmax(inputs[:, :3] + 0.5, axis=-1))

  return jsharp.Task(*map(batch, keys))


def algorithm():
  return jsharp.maml(
    losses.batch_loss(apply_fn, losses.cross_entropy),
    optax.sgd(0.3),
    optax.sgd(0.1),
    num_inner_steps=2,
  )


class EnsembleTest(absltest.TestCase):
  def members(self, number):
    return list(jax.random.normal(jax.random.key(1), (number, 4, 3)))

  def measure(self, members):
    measure = evaluator(algorithm().adapt, log_probabilities(transductive(apply_fn)))
    return evaluate_ensemble(
      measure, members, sample_task, None, num_tasks=NUM_TASKS, chunk=3
    )

  def test_one_member_is_the_member_itself(self):
    (member,) = self.members(1)
    together = self.measure([member])
    query_loss_fn = query_loss(transductive(apply_fn), losses.cross_entropy)
    measure = evaluator(algorithm().adapt, query_loss_fn)
    alone = evaluate(measure, member, sample_task, None, num_tasks=NUM_TASKS)
    np.testing.assert_array_equal(together["accuracy"].astype("f"), alone["accuracy"])
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=1e-5)

  def test_the_mean_of_the_softmax(self):
    members = self.members(3)
    together = self.measure(members)
    adapt = jax.jit(algorithm().adapt)
    for index in range(NUM_TASKS):
      task = sample_task(index, None)
      shares = []
      for member in members:
        logits = np.asarray(apply_fn(adapt(member, task.support), task.query.inputs))
        powers = np.exp(logits.astype(np.float64))
        shares.append(powers / powers.sum(axis=1, keepdims=True))
      mean, labels = np.mean(shares, axis=0), np.asarray(task.query.targets)
      self.assertEqual(
        together["accuracy"][index], np.mean(mean.argmax(axis=1) == labels)
      )
      loss = -np.log(mean[np.arange(6), labels]).mean()
      np.testing.assert_allclose(together["loss"][index], loss, rtol=1e-5)

  def test_a_confident_mistake_has_a_finite_loss(self):
    loss = self.measure([1e4 * self.members(1)[0]])["loss"]
    self.assertGreater(loss.max(), 200)  # beyond what exp holds in float32
    self.assertTrue(np.isfinite(loss).all())

  def test_nobody_is_refused(self):
    with self.assertRaisesRegex(ValueError, "at least one member"):
      self.measure([])


if __name__ == "__main__":
  absltest.main()
