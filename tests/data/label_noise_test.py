"""Tests of the label noise: exact rates, uniform replacements, one key one noise."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data.label_noise import corrupt

LABELS = jnp.arange(10_000, dtype=jnp.int32) % 10
KEY = jax.random.key(0)


class CorruptTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.2, 0.8, 1.0, 0.33333)
  def test_wrong_share_is_exact_with_other_classes_only(self, rate):
    noisy = corrupt(KEY, LABELS, rate, 10, other_classes_only=True)
    self.assertEqual(int((noisy != LABELS).sum()), round(rate * 10_000))

  def test_replaced_labels_are_uniform_over_all_classes(self):
    noisy = corrupt(KEY, LABELS, 1.0, 10)
    table = np.zeros((10, 10))
    np.add.at(table, (np.asarray(LABELS), np.asarray(noisy)), 1)
    # 1000 labels of each class: a standard deviation of an entry is 9.5.
    np.testing.assert_allclose(table, 100, atol=50)
    self.assertAlmostEqual(float((noisy == LABELS).mean()), 0.1, delta=0.015)

  def test_or_over_the_others(self):
    noisy = corrupt(KEY, LABELS, 1.0, 10, other_classes_only=True)
    table = np.zeros((10, 10))
    np.add.at(table, (np.asarray(LABELS), np.asarray(noisy)), 1)
    np.testing.assert_array_equal(np.diag(table), 0)
    np.testing.assert_allclose(table[~np.eye(10, dtype=bool)], 1000 / 9, atol=50)

  def test_every_label_is_as_likely_to_be_replaced(self):
    keys = jax.random.split(KEY, 2000)
    few = jnp.zeros(5, jnp.int32)
    noisy = jax.vmap(lambda key: corrupt(key, few, 0.4, 3, other_classes_only=True))(
      keys
    )
    np.testing.assert_array_equal((noisy != 0).sum(1), 2)
    np.testing.assert_allclose((noisy != 0).mean(0), 0.4, atol=0.05)

  def test_is_a_function_of_the_key(self):
    one, same = (corrupt(KEY, LABELS, 0.5, 10) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    other = corrupt(jax.random.key(1), LABELS, 0.5, 10)
    self.assertFalse(np.array_equal(one, other))
    self.assertEqual(one.dtype, LABELS.dtype)

  def test_the_rate_may_be_traced(self):
    traced = jax.jit(lambda rate: corrupt(KEY, LABELS, rate, 10))(0.3)
    np.testing.assert_array_equal(traced, corrupt(KEY, LABELS, 0.3, 10))

  @parameterized.parameters(
    (LABELS.reshape(-1, 10), 0.5, 10, "labels must be a vector .*vmap"),
    (jnp.zeros(3), 0.5, 10, "labels must be a vector of integers, got float32"),
    (LABELS, 1.5, 10, "rate must lie between 0 and 1, got 1.5"),
    (LABELS, 0.5, 1, "num_classes must be at least 2, got 1"),
  )
  def test_refusals(self, labels, rate, num_classes, message):
    with self.assertRaisesRegex(ValueError, message):
      corrupt(KEY, labels, rate, num_classes)


if __name__ == "__main__":
  absltest.main()
