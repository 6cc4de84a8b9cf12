"""Label noise and distortion of tasks: exact rates, exact geometry, same images."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import jsharp
from jsharp.data import corruption, sample_task, tasks
from jsharp.data.dataset import Dataset


def dataset():
  images = np.random.default_rng(0).integers(0, 255, (4, 6, 8, 9, 1), np.uint8)
  return Dataset.from_class_arrays(
    {f"class {i}": images[i] for i in range(4)}, split="train"
  )


def draw(key, data):
  return sample_task(key, data, way=3, shot=2, query_shot=3)


RATES = ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.3, 0.3), (0.5, 0.3))


@functools.cache
def drawn():
  """Forty tasks: clean, and by the rates of wrong support and query labels."""
  data, keys = dataset(), jax.random.split(jax.random.key(1), 40)

  def noisy(support, query):
    rates = {"support_rate": support, "query_rate": query}
    return corruption.with_label_noise(draw, way=3, **rates)

  def every(key):
    return draw(key, data), {rates: noisy(*rates)(key, data) for rates in RATES}

  return jax.jit(jax.vmap(every))(keys)


class LabelNoiseTest(parameterized.TestCase):
  @parameterized.parameters(*zip(RATES, (0, 3, 6, 2, 3), strict=True))
  def test_exactly_the_rate_is_wrong_and_the_images_are_the_same(self, rates, wrong):
    clean, noisy = drawn()
    changed, query_rate = noisy[rates], rates[1]
    for before, after in zip(clean, changed, strict=True):
      np.testing.assert_array_equal(before.inputs, after.inputs)
    count = (clean.support.targets != changed.support.targets).sum(axis=1)
    np.testing.assert_array_equal(count, np.full(40, wrong))
    count = (clean.query.targets != changed.query.targets).sum(axis=1)
    np.testing.assert_array_equal(count, np.full(40, round(query_rate * 9)))
    for batch, any_wrong in ((changed.support, wrong), (changed.query, query_rate)):
      self.assertGreaterEqual(batch.targets.min(), 0)
      self.assertLess(batch.targets.max(), 3)
      if any_wrong:
        self.assertGreater(len(np.unique(batch.targets, axis=0)), 5)

  def test_support_and_query_noise_are_independent(self):
    _, noisy = drawn()
    np.testing.assert_array_equal(
      noisy[0.5, 0.3].support.targets, noisy[0.5, 0.0].support.targets
    )

  def test_sets_of_one_size_get_different_noise(self):
    def even(key):
      labels = jnp.repeat(jnp.arange(3), 4)
      return jsharp.Task(*[jsharp.Batch(None, labels)] * 2)

    noisy = corruption.with_label_noise(even, way=3, support_rate=0.5, query_rate=0.5)
    task = jax.jit(jax.vmap(noisy))(jax.random.split(jax.random.key(2), 40))
    same = (task.support.targets == task.query.targets).all(axis=1)
    self.assertLess(int(same.sum()), 3)
    for batch in task:
      self.assertGreater(len(np.unique(batch.targets, axis=0)), 35)

  def test_wrong_labels_of_varied_tasks_are_classes_of_the_task(self):
    labels = jnp.repeat(jnp.arange(3), 4)

    def of_three_classes(key, data, **shape):
      return jsharp.Task(*[jsharp.Batch(None, labels)] * 2)

    with mock.patch.object(tasks, "sample_varied_task", of_three_classes):
      kind = tasks.Tasks(way=20, min_way=2, support_label_noise=1.0).test()
      task = kind.sampler()(jax.random.key(0), None)
    self.assertFalse(bool((task.support.targets == labels).any()))
    self.assertLess(int(task.support.targets.max()), 3)

  @parameterized.parameters("support_rate", "query_rate")
  def test_a_rate_of_no_wrong_label_is_refused(self, name):
    def single(key):
      return jsharp.Task(*[jsharp.Batch(None, jnp.arange(5))] * 2)

    def labels(rate):
      noisy = corruption.with_label_noise(single, way=5, **{name: rate})
      return getattr(noisy(jax.random.key(0)), name.removesuffix("_rate")).targets

    noisy = corruption.with_label_noise(single, way=5, **{name: 0.1})
    message = f"{name}=0.1 of 5 examples rounds to no wrong label; use 0.2 or more"
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(noisy, jax.random.key(0))
    found = jax.jit(lambda: [labels(rate) for rate in (0.0, 0.11, 0.2)])()
    for targets, wrong in zip(found, (0, 1, 1), strict=True):
      self.assertEqual(int((targets != jnp.arange(5)).sum()), wrong)

  @parameterized.parameters(
    ({"way": 3, "support_rate": 1.5}, "support_rate.*1.5"),
    ({"way": 3, "query_rate": -0.1}, "query_rate.*-0.1"),
    ({"way": 3, "query_rate": float("nan")}, "query_rate.*nan"),
    ({"way": 1}, "way must be at least 2"),
  )
  def test_bad_arguments_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      corruption.with_label_noise(draw, **options)


def picture(size=9, channels=2):
  return jax.random.uniform(jax.random.key(0), (size, size, channels))


class AffineTest(parameterized.TestCase):
  def test_nothing_asked_nothing_changed(self):
    np.testing.assert_allclose(corruption.affine(picture()), picture(), atol=1e-6)

  @parameterized.parameters(1, 2, 3)
  def test_quarter_turns_are_those_of_the_dataset(self, quarters):
    turned = corruption.affine(picture(), rotation=90.0 * quarters)
    np.testing.assert_allclose(turned, jnp.rot90(picture(), quarters), atol=1e-5)

  def test_shear_moves_the_upper_rows_to_the_right(self):
    image = jnp.zeros((5, 5, 1)).at[:, 2].set(1.0)
    sheared = corruption.affine(image, shear=1.0)[..., 0]
    np.testing.assert_allclose(sheared, np.fliplr(np.eye(5)), atol=1e-6)

  def test_scale_enlarges_about_the_centre(self):
    image = jnp.zeros((9, 9, 1)).at[3:6, 3:6].set(1.0)
    larger = corruption.affine(image, scale=2.0)
    smaller = corruption.affine(larger, scale=0.5)
    self.assertGreater(float(larger.sum()), 3 * float(image.sum()))
    np.testing.assert_allclose(smaller[4, 4], 1.0, atol=1e-6)
    self.assertAlmostEqual(float(larger[2, 2, 0]), 1.0, places=5)

  def test_the_parts_come_in_the_stated_order(self):
    one_by_one = picture(channels=1)
    for part in ({"rotation": 90.0}, {"shear": 1.0}):
      one_by_one = corruption.affine(one_by_one, **part)
    together = corruption.affine(picture(channels=1), rotation=90.0, shear=1.0)
    inner = slice(3, 6)  # what no border has touched
    np.testing.assert_allclose(
      together[inner, inner], one_by_one[inner, inner], atol=1e-5
    )

  @parameterized.parameters(
    ((9, 9, 1), jnp.uint8), ((9, 9), jnp.float32), ((2, 9, 9, 1), jnp.float32)
  )
  def test_other_images_are_refused(self, shape, dtype):
    image = jnp.zeros(shape, dtype)
    message = rf"float \[height, width, channels\], got {image.dtype} .*divide uint8"
    with self.assertRaisesRegex(ValueError, message):
      corruption.affine(image, rotation=10.0)


class DistortionTest(parameterized.TestCase):
  def test_all_images_of_a_task_are_bent_alike_and_tasks_differ(self):
    bent = corruption.with_distortion(draw, rotation=(-40.0, 40.0), scale=(0.5, 1.5))
    data = dataset()
    one, clean = jax.jit(lambda key: (bent(key, data), draw(key, data)))(
      jax.random.key(0)
    )
    np.testing.assert_array_equal(one.query.targets, clean.query.targets)
    # Twice the same image gives twice the same bent image, in either set.
    same = jnp.broadcast_to(
      clean.support.inputs[:1], (2, *clean.support.inputs.shape[1:])
    )

    def repeated(key):
      return clean._replace(
        support=clean.support._replace(inputs=same),
        query=clean.query._replace(inputs=same),
      )

    bent = jax.jit(corruption.with_distortion(repeated, rotation=(-40.0, 40.0)))
    results = [bent(jax.random.key(i)) for i in range(2)]
    for task in results:
      np.testing.assert_array_equal(task.support.inputs[0], task.query.inputs[1])
    difference = results[0].support.inputs - results[1].support.inputs
    self.assertGreater(np.abs(difference).max(), 0.05)

  @parameterized.parameters(
    ({"rotation": (3.0, 1.0)}, "rotation must be a finite"),
    ({"shear": (0.0, float("inf"))}, "shear must be a finite"),
    ({"scale": (0.0, 1.0)}, "scale must be positive"),
  )
  def test_bad_ranges_are_named(self, ranges, message):
    with self.assertRaisesRegex(ValueError, message):
      corruption.with_distortion(draw, **ranges)


if __name__ == "__main__":
  absltest.main()
