"""Pretraining data: the training classes of a few-shot dataset, and no others."""

import numpy as np
from absl.testing import absltest, parameterized

from jsharp import _catalogue
from jsharp.data import Dataset, characters, load_splits
from jsharp.data.same_classes import split_share


class BaseClassesTest(parameterized.TestCase):
  def test_every_training_class_and_each_image_once(self):
    source = _catalogue.find("labelled dataset", "base:characters")(image_size=8)
    splits = load_splits(source)
    few_shot = characters.load(size=8)["train"]
    self.assertEqual(splits.class_names, few_shot.class_names)
    self.assertEqual((len(splits.train.labels), len(splits.test.labels)), (5760, 640))
    np.testing.assert_array_equal(np.bincount(splits.test.labels), [2] * 320)
    first = np.concatenate([splits.train.images[:18], splits.test.images[:2]])
    np.testing.assert_array_equal(first, few_shot.images[:20])
    # As few-shot learners take them: scaled to [0, 1] and no more.
    self.assertEqual(splits.train.mean.tolist(), [0.0])
    np.testing.assert_allclose(splits.train.scale, [1 / 255], rtol=1e-7)
    self.assertTrue(source.light_ink)
    self.assertFalse(source.mirrored)

  def test_a_class_of_one_image_is_refused(self):
    images = np.zeros([1, 8, 8, 1], np.uint8)
    dataset = Dataset.from_class_arrays({"a": images}, split="train")
    with self.assertRaisesRegex(ValueError, "class 'a' has only one image"):
      split_share(dataset, 0.5)

  @parameterized.parameters((0.0, [1, 1]), (0.5, [5, 1]), (0.99, [9, 1]))
  def test_each_part_of_a_class_has_an_image(self, share, expected):
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    dataset = Dataset.from_class_arrays(
      {"a": images[:10], "b": images[10:]}, split="train"
    )
    parts = split_share(dataset, share)
    self.assertEqual(parts["test"].counts.tolist(), expected)
    both = np.concatenate([part.images for part in parts.values()]).ravel()
    self.assertEqual(sorted(both.tolist()), list(range(12)))

  def test_refuses_what_is_no_few_shot_dataset(self):
    with self.assertRaisesRegex(ValueError, "there is no dataset 'cifar10'"):
      load_splits(_catalogue.find("labelled dataset", "base:cifar10")(), "/nowhere")
    source = _catalogue.find("labelled dataset", "base:miniimagenet")
    with self.assertRaisesRegex(ValueError, "image_size=8.*a fixed size"):
      load_splits(source(image_size=8), "/nowhere")
    with self.assertRaisesRegex(ValueError, "needs files"):
      load_splits(source())


if __name__ == "__main__":
  absltest.main()
