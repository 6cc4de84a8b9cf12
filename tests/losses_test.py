"""Criteria against NumPy, and their refusals."""

import jax
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

  def test_a_label_that_no_output_stands_for_is_refused_where_it_is_known(self):
    for labels, words in (
      (jnp.array([0, -1]), r"labels must be in \[0, 3\), .* got -1 to 0"),
      (np.array([0, 3]), "got 0 to 3"),
      (jnp.array([0.0, 1.5]), "labels must be integers, .* got float32"),
    ):
      with self.assertRaisesRegex(ValueError, words):
        losses.cross_entropy(jnp.zeros((2, 3)), labels)
      # Known arrays are known inside of jit too.
      with self.assertRaisesRegex(ValueError, words):
        jax.eval_shape(lambda x, y=labels: losses.cross_entropy(x, y), jnp.ones((2, 3)))

  def test_a_label_that_no_output_stands_for_is_not_free(self):
    slope = jax.jit(jax.value_and_grad(lambda *at: losses.cross_entropy(*at)[0]))
    for label in (-1, 3):
      loss, grads = slope(jnp.zeros((2, 3)), jnp.array([0, label]))
      self.assertTrue(np.isnan(loss))
      # Who steps by it without a look at the loss has parameters that are none.
      self.assertTrue(np.isnan(grads[1]).all())
      self.assertTrue(np.isfinite(grads[0]).all())

  @jax.numpy_dtype_promotion("standard")
  def test_narrow_labels_of_many_classes(self):
    for labels in (np.array([0, 127, 1], np.int8), jnp.array([0, 126, 1], jnp.uint8)):
      for fn in (losses.cross_entropy, jax.jit(losses.cross_entropy)):
        loss, _ = fn(jnp.zeros((3, 300)), labels)
        np.testing.assert_allclose(loss, np.log(300), rtol=1e-5)

  def test_the_accuracy_of_many_rows_in_half_precision(self):
    logits = jnp.zeros((70_000, 2), jnp.float16)
    _, metrics = losses.cross_entropy(logits, jnp.arange(70_000) % 2)
    self.assertEqual(float(metrics["accuracy"]), 0.5)
    self.assertEqual(metrics["accuracy"].dtype, jnp.float16)

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
