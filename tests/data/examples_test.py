"""Tests of batches for ordinary training: epochs, augmentation, normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jsharp.data import examples
from jsharp.data.dataset import Dataset
from jsharp.types import Batch
from tests.data import fixtures


def dataset(*names, channels=3, count=4, split="train", size=fixtures.SIZE):
  arrays = {
    name: fixtures.images(index, count, channels, size)
    for index, name in enumerate(names)
  }
  return Dataset.from_class_arrays(arrays, split=split)


def numbered(count):
  images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
  return examples.Examples(images, np.arange(count), np.zeros(1), np.ones(1))


class FromDatasetTest(absltest.TestCase):
  def test_labels_and_normalisation(self):
    source = dataset("a", "b", count=50)
    data = examples.from_dataset(source)
    np.testing.assert_array_equal(data.labels, np.repeat([0, 1], 50))
    inputs = np.asarray(examples.inputs_of(data, jnp.asarray(data.images)), np.float64)
    np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std((0, 1, 2)), 1, atol=1e-5)

  def test_test_images_are_normalised_like_training_images(self):
    train = examples.from_dataset(dataset("a", "b"))
    test = examples.from_dataset(dataset("c", "d"), like=train)
    np.testing.assert_array_equal(test.mean, train.mean)
    np.testing.assert_array_equal(test.scale, train.scale)

  def test_a_constant_channel_is_not_divided_by_zero(self):
    black = Dataset.from_class_arrays({"a": np.zeros((2, 3, 3, 1), np.uint8)}, split="")
    data = examples.from_dataset(black)
    self.assertTrue(np.all(np.isfinite(data.scale)))

  def test_rotations_are_refused(self):
    source = Dataset.from_class_arrays(
      {"a": fixtures.images(0)}, split="train", num_rotations=4
    )
    with self.assertRaisesRegex(ValueError, "num_rotations is 4"):
      examples.from_dataset(source)


class SampleBatchTest(absltest.TestCase):
  def draw(self, step, data, seed=0, **options):
    options = {"batch_size": 3, **options}
    return examples.sample_batch(seed, step, data, **options)

  def test_epochs_are_without_replacement_and_differ(self):
    data = numbered(10)
    epochs = [
      np.concatenate([self.draw(3 * epoch + i, data).targets for i in range(3)])
      for epoch in range(3)
    ]
    for epoch in epochs:
      self.assertLen(set(epoch.tolist()), 9)
    self.assertFalse(np.array_equal(epochs[0], epochs[1]))
    other = np.concatenate([self.draw(i, data, seed=1).targets for i in range(3)])
    self.assertFalse(np.array_equal(epochs[0], other))

  def test_images_belong_to_the_labels_and_jit_changes_nothing(self):
    data = numbered(10)
    draw = jax.jit(lambda step, data: self.draw(step, data))
    for step in range(4):
      batch = self.draw(step, data)
      np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], batch.targets)
      np.testing.assert_array_equal(draw(step, data).targets, batch.targets)

  def test_augmentation_is_by_step_and_example(self):
    def augment(key, image):
      return image * 0 + jax.random.uniform(key)

    data = numbered(6)
    once, again = (self.draw(4, data, augment=augment) for _ in range(2))
    np.testing.assert_array_equal(once.inputs, again.inputs)
    seen = [self.draw(step, data, augment=augment).inputs.ravel() for step in range(4)]
    self.assertLen(set(np.concatenate(seen).tolist()), 12)
    whole = self.draw(0, data, augment=augment, batch_size=6)
    np.testing.assert_array_equal(
      whole.inputs[:3], self.draw(0, data, augment=augment)[0]
    )

  def test_pixels_are_distorted_before_and_examples_mixed_after_the_rest(self):
    data = numbered(6)._replace(mean=np.full(1, 100.0), scale=np.full(1, 0.5))
    data = jax.device_put(data)
    sample = functools.partial(
      examples.sample_batch,
      3,
      data=data,
      batch_size=4,
      distort=lambda key, image: image + jax.random.randint(key, (), 0, 2, jnp.uint8),
      augment=lambda key, image: 2 * image,
      mix=lambda key, batch: Batch(batch.inputs - 1, batch.targets + 10),
    )
    jitted, added = jax.jit(sample), []
    for step in range(12):
      batch = jitted(step=step)
      again = sample(step=step)
      np.testing.assert_array_equal(batch.inputs, again.inputs)
      label = np.asarray(batch.targets) - 10
      added.append((np.asarray(batch.inputs).ravel() + 1) / 2 / 0.5 + 100 - label)
    self.assertEqual({round(float(x)) for x in np.ravel(added)}, {0, 1})

  def test_refuses_batches_larger_than_the_data(self):
    with self.assertRaisesRegex(ValueError, "batch_size is 7, .* 6 training examples"):
      self.draw(0, numbered(6), batch_size=7)


class DividingTest(absltest.TestCase):
  def test_hold_out_divides(self):
    rest, held = examples.hold_out(numbered(10), 3, seed=0)
    self.assertEqual((len(rest.labels), len(held.labels)), (7, 3))
    both = np.concatenate([rest.labels, held.labels])
    np.testing.assert_array_equal(np.sort(both), np.arange(10))
    np.testing.assert_array_equal(held.images.ravel(), held.labels)
    other = examples.hold_out(numbered(10), 3, seed=1)[1]
    self.assertFalse(np.array_equal(held.labels, other.labels))
    for num_held in (0, 10):
      with self.assertRaisesRegex(ValueError, f"num_held is {num_held} of 10"):
        examples.hold_out(numbered(10), num_held, seed=0)

  def test_batches_are_of_different_examples_of_one_order(self):
    data = numbered(10)
    batches = examples.in_batches(data, 9, 4, seed=3)
    self.assertEqual(batches.inputs.shape, (2, 4, 1, 1, 1))
    self.assertLen(set(batches.targets.ravel().tolist()), 8)
    np.testing.assert_array_equal(batches.inputs.ravel(), batches.targets.ravel())
    fewer = examples.in_batches(data, 4, 4, seed=3)
    np.testing.assert_array_equal(fewer.targets[0], batches.targets[0])
    everything = examples.in_batches(data, 99, 32, seed=3)
    self.assertEqual(everything.targets.shape, (1, 10))
    other = examples.in_batches(data, 9, 4, seed=4)
    self.assertFalse(np.array_equal(other.targets, batches.targets))


if __name__ == "__main__":
  absltest.main()
