"""Criteria against NumPy, and their refusals."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jsharp import losses


class LossesTest(absltest.TestCase):
  def test_cross_entropy(self):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(6, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0, 1])
    exponentials = np.exp(logits.astype(float))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    loss, metrics = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    expected = -np.log(probabilities[np.arange(6), labels]).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    right = (logits.argmax(1) == labels).mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)

  def test_cross_entropy_of_extreme_logits_is_finite(self):
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    loss, _ = losses.cross_entropy(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(loss, 1e4)

  def test_a_label_that_no_output_stands_for_is_not_free(self):
    for label in (-1, 3):
      loss, _ = losses.cross_entropy(jnp.zeros((2, 3)), jnp.array([0, label]))
      self.assertTrue(np.isnan(loss))

  def test_squared_error_is_a_mean_without_a_half(self):
    loss, metrics = losses.squared_error(jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1)))
    self.assertEqual(float(loss), 5.0)
    self.assertEmpty(metrics)

  def test_shapes_that_would_broadcast_are_refused(self):
    with self.assertRaisesRegex(ValueError, r"\(3, 1\).*\(3,\)"):
      losses.squared_error(jnp.zeros((3, 1)), jnp.zeros(3))
    for labels in (jnp.zeros((3, 1), int), jnp.zeros(2, int)):
      with self.assertRaisesRegex(ValueError, "logits"):
        losses.cross_entropy(jnp.zeros((3, 5)), labels)


if __name__ == "__main__":
  absltest.main()
