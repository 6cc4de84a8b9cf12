import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import data
from jsharp.data import Dataset

_COUNTS = (4, 7, 5, 4, 9)


def _dataset(num_rotations=1):
  """Classes of unequal size whose images all differ, also when turned.

  The first pixel tells the image; the second is lit, so that a turn shows.
  """
  arrays, number = {}, 1
  for index, count in enumerate(_COUNTS):
    images = np.zeros([count, 3, 3, 1], np.uint8)
    images[:, 0, 0, 0] = np.arange(number, number + count)
    images[:, 0, 1, 0] = 255
    arrays[f"class{index}"] = images
    number += count
  return Dataset.from_class_arrays(arrays, split="train", num_rotations=num_rotations)


def _read(dataset, inputs):
  """Row of `dataset.images` and rotation of every image in `inputs`."""
  known = {}
  for row, image in enumerate(np.asarray(dataset.images)):
    for rotation in range(4):
      known[np.rot90(image, rotation).tobytes()] = (row, rotation)
  pixels = np.rint(np.asarray(inputs) * 255).astype(np.uint8)
  found = [known[image.tobytes()] for image in pixels.reshape(-1, 3, 3, 1)]
  return np.array(found).reshape(*inputs.shape[:-3], 2)


def _class_of(dataset, row):
  return np.searchsorted(np.asarray(dataset.offsets), row, side="right") - 1


class DrawDistinctTest(parameterized.TestCase):
  @parameterized.parameters((4, 2), (3, 3), (5, 1), (5, 3))
  def test_every_order_is_equally_likely(self, population, num):
    num_draws = 20_000
    draw = jax.jit(
      jax.vmap(functools.partial(data.draw_distinct, num=num), in_axes=(0, None))
    )
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), num_draws), population))
    orders = list(itertools.permutations(range(population), num))
    counts = np.array([(drawn == order).all(1).sum() for order in orders])
    self.assertEqual(counts.sum(), num_draws)  # nothing but distinct numbers
    expected = num_draws / len(orders)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(orders) - 1
    # Mean plus five standard deviations of the chi-square distribution.
    self.assertLess(chi_square, freedom + 5 * np.sqrt(2 * freedom))

  def test_populations_are_drawn_from_independently(self):
    draw = jax.jit(functools.partial(data.draw_distinct, num=2))
    drawn = draw(jax.random.key(0), jnp.full([3, 100], 50))
    self.assertEqual(drawn.shape, (3, 100, 2))
    self.assertGreater(len(np.unique(np.asarray(drawn).reshape(-1, 2), axis=0)), 200)

  def test_large_population_with_traced_size(self):
    draw = jax.jit(functools.partial(data.draw_distinct, num=50))
    drawn = np.asarray(draw(jax.random.key(1), jnp.int32(2**31 - 1)))
    self.assertLen(set(drawn.tolist()), 50)
    self.assertGreater(drawn.max(), 2**30)
    self.assertGreaterEqual(drawn.min(), 0)


class TaskKeyTest(parameterized.TestCase):
  def test_no_two_steps_or_streams_share_a_key(self):
    streams = ("train", "val", "test", "member")
    steps = jnp.concatenate([jnp.arange(1000), 2**30 - 1 - jnp.arange(1000)])
    keys = [
      jax.random.key_data(
        jax.vmap(functools.partial(data.task_key, 3, stream=stream))(steps)
      )
      for stream in streams
    ]
    self.assertLen(np.unique(np.concatenate(keys), axis=0), len(streams) * len(steps))

  def test_traced_step_gives_the_same_key(self):
    traced = jax.jit(lambda step: data.task_key(5, step, stream="val"))(jnp.int32(17))
    self.assertEqual(traced, data.task_key(5, 17, stream="val"))

  def test_seeds_differ(self):
    self.assertNotEqual(data.task_key(0, 1), data.task_key(1, 1))

  def test_unknown_stream_is_refused(self):
    with self.assertRaisesRegex(ValueError, "stream is 'valid'"):
      data.task_key(0, 0, stream="valid")


class SampleTest(parameterized.TestCase):
  @parameterized.product(num_rotations=(1, 4))
  def test_laws(self, num_rotations):
    dataset = _dataset(num_rotations)
    way, shot, query_shot, num_tasks = 4, 1, 3, 400
    tasks = jax.jit(
      functools.partial(
        data.sample_tasks,
        num_tasks=num_tasks,
        way=way,
        shot=shot,
        query_shot=query_shot,
      )
    )(data.task_key(0, 0), dataset.on_device())

    self.assertEqual(tasks.support.inputs.shape, (num_tasks, way * shot, 3, 3, 1))
    self.assertEqual(tasks.support.inputs.dtype, jnp.float32)
    self.assertEqual(tasks.support.targets.dtype, jnp.int32)
    for part, size in ((tasks.support, shot), (tasks.query, query_shot)):
      labels = np.broadcast_to(np.repeat(np.arange(way), size), part.targets.shape)
      np.testing.assert_array_equal(part.targets, labels)

    parts = []
    for part in (tasks.support, tasks.query):
      parts.append(_read(dataset, part.inputs).reshape(num_tasks, way, -1, 2))
    read = np.concatenate(parts, axis=2)
    rows, rotations = read[..., 0], read[..., 1]
    base = _class_of(dataset, rows)
    classes = rotations * len(_COUNTS) + base
    # All images of a label are of one class (and rotation), the labels' classes
    # are distinct, and so are the images of a class, over both sets.
    self.assertTrue((classes == classes[:, :, :1]).all())
    for task_classes, task_rows in zip(classes[:, :, 0], rows, strict=True):
      self.assertLen(set(task_classes.tolist()), way)
      for class_rows in task_rows:
        self.assertLen(set(class_rows.tolist()), shot + query_shot)
    # Everything can be drawn, in every place.
    support, query = (
      set(zip(part[..., 0].flat, part[..., 1].flat, strict=True)) for part in parts
    )
    everything = set(itertools.product(range(sum(_COUNTS)), range(num_rotations)))
    self.assertEqual(support, everything)
    self.assertEqual(query, everything)
    for label in range(way):
      self.assertLen(set(classes[:, label, 0].tolist()), dataset.num_classes)

  def test_images_of_a_class_are_equally_likely(self):
    dataset = _dataset()
    num_tasks = 5000
    indices = jax.jit(
      functools.partial(
        data.sample_many,
        lambda key: data.sample_indices(key, dataset, way=5, shot=1, query_shot=1),
        num_tasks=num_tasks,
      )
    )(jax.random.key(2))
    rows = np.bincount(np.asarray(indices.support).ravel(), minlength=sum(_COUNTS))
    expected = np.repeat(num_tasks / np.array(_COUNTS), _COUNTS)
    freedom = sum(_COUNTS) - len(_COUNTS)
    chi_square = ((rows - expected) ** 2 / expected).sum()
    self.assertLess(chi_square, freedom + 5 * np.sqrt(2 * freedom))

  def test_jit_is_eager_and_vmap_is_a_loop(self):
    dataset = _dataset(num_rotations=4).on_device()
    key = data.task_key(1, 2)
    shape = {"way": 3, "shot": 2, "query_shot": 2}
    tasks = jax.jit(functools.partial(data.sample_tasks, num_tasks=2, **shape))(
      key, dataset
    )
    for i in range(2):
      one = data.sample_task(jax.random.fold_in(key, i), dataset, **shape)
      jax.tree.map(
        np.testing.assert_array_equal, one, jax.tree.map(lambda a, i=i: a[i], tasks)
      )

  def test_tasks_depend_on_key_and_number_alone(self):
    dataset = _dataset().on_device()
    sample = jax.jit(
      functools.partial(data.sample_tasks, num_tasks=4, way=3, shot=1, query_shot=1)
    )
    whole, again, later = (
      sample(data.task_key(0, step), dataset) for step in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    self.assertFalse(np.array_equal(whole.support.inputs, later.support.inputs))
    shifted = sample(data.task_key(0, 0), dataset, first_task=2)
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(a[2:], b[:2]), whole, shifted
    )

  def test_values_cover_zero_to_one(self):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    dataset = Dataset.from_class_arrays({"a": np.repeat(images, 2, 0)}, split="val")
    sample = functools.partial(data.sample_task, way=1, shot=1, query_shot=1)
    task = jax.jit(sample)(jax.random.key(0), dataset)
    values = np.asarray(task.query.inputs).ravel()
    np.testing.assert_allclose(values, np.arange(256) / 255, rtol=1e-6)
    self.assertEqual(values[-1], 1.0)

  @parameterized.named_parameters(
    ("way", {"way": 6}, "way is 6, but split 'train' has only 5 classes"),
    ("images", {"query_shot": 4}, r"1 \+ 4 = 5, but class 'class0' .* only 4 images"),
    ("zero_way", {"way": 0}, "way is 0"),
    ("zero_shot", {"shot": 0}, "shot is 0"),
    ("no_query", {"query_shot": 0}, "query_shot is 0"),
  )
  def test_refuses(self, changes, message):
    shape = {"way": 5, "shot": 1, "query_shot": 3} | changes
    dataset = _dataset().on_device()
    sample = jax.jit(functools.partial(data.sample_task, **shape))
    with self.assertRaisesRegex(ValueError, message):
      data.check_task_shape(dataset, **shape)
    with self.assertRaisesRegex(ValueError, message):
      sample(jax.random.key(0), dataset)

  def test_refuses_no_tasks(self):
    with self.assertRaisesRegex(ValueError, "num_tasks is 0"):
      data.sample_tasks(
        jax.random.key(0), _dataset(), num_tasks=0, way=2, shot=1, query_shot=1
      )

  def test_rotated_classes_allow_a_larger_way(self):
    shape = {"way": 20, "shot": 1, "query_shot": 3}
    data.check_task_shape(_dataset(4), **shape)
    with self.assertRaisesRegex(ValueError, "way is 20"):
      data.check_task_shape(_dataset(), **shape)


if __name__ == "__main__":
  absltest.main()
