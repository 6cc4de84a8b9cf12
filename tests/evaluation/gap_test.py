"""The generalisation gap."""

import jax
import jax.numpy as jnp
from absl.testing import absltest

from jsharp.core import on_query
from jsharp.evaluation import evaluator, first_tasks, generalisation_gap, task_list
from jsharp.losses import batch_loss, cross_entropy
from jsharp.types import Batch, Task


class GapTest(absltest.TestCase):
  def test_means_over_both_splits(self):
    loss_fn = on_query(batch_loss(lambda w, x: x @ w, cross_entropy))
    evaluate_tasks = evaluator(lambda w, support: w, loss_fn)

    def sample_one(key, data):
      x = data + jax.random.normal(key, (6, 2))
      return Task(Batch(x, None), Batch(x, jnp.arange(6) % 2))

    data = {"train": jnp.float32(0), "test": jnp.float32(3)}
    splits = {
      name: (task_list(sample_one, seed=3, stream=name), data[name]) for name in data
    }
    found = generalisation_gap(evaluate_tasks, jnp.eye(2), splits, num_tasks=5)
    for name, (sample_task, at) in splits.items():
      metrics = evaluate_tasks(jnp.eye(2), first_tasks(sample_task, at, num_tasks=5))
      for metric, values in metrics.items():
        self.assertAlmostEqual(found[f"{name}_{metric}"], values.mean(), places=5)
    for metric in ("loss", "accuracy"):
      gap = found[f"train_{metric}"] - found[f"test_{metric}"]
      self.assertEqual(found[f"{metric}_gap"], gap)
    self.assertLen(found, 6)


if __name__ == "__main__":
  absltest.main()
