import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import characters, sample_tasks, task_key


class CharactersTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("default", {"num_drawings": 2}, "468937ea12daee18"),
    ("larger", {"num_drawings": 3, "size": 35}, "22361ba5727caa18"),
  )
  def test_the_bits_are_the_same_everywhere(self, arguments, fingerprint):
    train = characters.load(**arguments, only="train")["train"]
    self.assertEqual(train.fingerprint(), fingerprint)

  def test_splits_share_neither_classes_nor_images(self):
    splits = characters.load(num_drawings=2)
    counts = {name: split.num_classes for name, split in splits.items()}
    self.assertEqual(counts, {"train": 320, "val": 60, "test": 100})
    names = [name for split in splits.values() for name in split.class_names]
    self.assertLen(set(names), 480)
    images = np.concatenate([split.images for split in splits.values()])
    self.assertEqual(images.shape, (960, 28, 28, 1))
    self.assertLen(np.unique(images.reshape(960, -1), axis=0), 960)
    for name, split in splits.items():
      self.assertEqual(split.split, name)

  @parameterized.parameters("train", "val", "test")
  def test_one_split_alone(self, only):
    whole = characters.load(num_drawings=2, seed=5)[only]
    characters._draw.cache_clear()
    (alone,) = characters.load(num_drawings=2, seed=5, only=only).values()
    self.assertEqual(alone.class_names, whole.class_names)
    np.testing.assert_array_equal(alone.images, whole.images)

  def test_more_drawings_only_add_to_the_first(self):
    few, more = (
      characters.load(num_drawings=n, only="val")["val"].images for n in (2, 3)
    )
    few, more = few.reshape(60, 2, 28, 28), more.reshape(60, 3, 28, 28)
    np.testing.assert_array_equal(few, more[:, :2])

  def test_seeds_have_their_own_characters(self):
    first, second = (
      characters.load(seed=seed, num_drawings=1, only="val")["val"] for seed in (0, 1)
    )
    self.assertNotEqual(first.fingerprint(), second.fingerprint())

  def test_every_drawing_is_thin_ink_on_an_empty_ground(self):
    images = characters.load(num_drawings=2)["train"].images / 255
    ink = images.mean(axis=(1, 2, 3))
    self.assertGreater(ink.min(), 0.02)
    self.assertLess(ink.max(), 0.5)
    self.assertTrue((images.max(axis=(1, 2, 3)) == 1).all())
    # A stroke that leaves the image is cut off: it happens, but not often.
    border = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    self.assertLess(border.mean(), 0.02)

  def test_nearest_neighbour_neither_solves_nor_fails_the_tasks(self):
    test = characters.load(only="test")["test"].on_device()
    num_tasks, way, query_shot = 400, 5, 5

    @functools.partial(jax.jit, static_argnames="num_tasks")
    def accuracy(key, dataset, *, num_tasks):
      tasks = sample_tasks(
        key, dataset, num_tasks=num_tasks, way=way, shot=1, query_shot=query_shot
      )
      support = tasks.support.inputs.reshape(num_tasks, 1, way, -1)
      query = tasks.query.inputs.reshape(num_tasks, way * query_shot, 1, -1)
      nearest = jnp.square(query - support).sum(-1).argmin(-1)
      return (nearest == tasks.query.targets).mean(dtype=jnp.float32)

    key = task_key(0, 0, stream="test")
    found = float(accuracy(key, test, num_tasks=num_tasks))
    self.assertBetween(found, 0.50, 0.75)

  @parameterized.named_parameters(
    ("seed", {"seed": -1}, "seed is -1"),
    ("num_drawings", {"num_drawings": 0}, "num_drawings is 0"),
    ("size", {"size": 4}, "size is 4"),
    ("only", {"only": "all"}, "only is 'all'; it must be one of train, val, test"),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      characters.load(**arguments)


if __name__ == "__main__":
  absltest.main()
