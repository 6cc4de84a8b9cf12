"""Tests of what ordinary training makes of a labelled dataset."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import Preparation, Splits, load_splits
from jsharp.data.characters import LabelledCharacters
from jsharp.data.labelled_images import LabelledImages
from jsharp.data.tfds_source import LabelledTFDS
from tests.data import fixtures

SOURCE = LabelledCharacters(num_characters=3, image_size=8)


def prepared(**wanted):
  return load_splits(SOURCE, preparation=Preparation(**wanted))


class LoadSplitsTest(parameterized.TestCase):
  def test_without_preparation_all_are_trained_on(self):
    splits = load_splits(SOURCE)
    self.assertEqual((len(splits.train.labels), splits.num_available), (45, 45))
    self.assertIsNone(splits.val)
    self.assertEqual(splits.num_wrong, 0)
    self.assertLen(splits.class_names, 3)
    self.assertEqual(splits.fingerprints.keys(), {"train", "test"})
    np.testing.assert_array_equal(splits.test.mean, splits.train.mean)

  def test_a_part_of_the_training_images_is_chosen_after_validation_before_noise(self):
    held = {"val_fraction": 0.2, "data_seed": 5}
    whole = prepared(**held)
    part = prepared(**held, train_examples=20)
    np.testing.assert_array_equal(part.val.images, whole.val.images)
    np.testing.assert_array_equal(part.train.mean, whole.train.mean)
    counts = np.bincount(part.train.labels)
    self.assertEqual((counts.sum(), np.ptp(counts)), (20, 1))
    known = {image.tobytes() for image in whole.train.images}
    chosen = {image.tobytes() for image in part.train.images}
    self.assertLen(chosen, 20)
    self.assertContainsSubset(chosen, known)
    noisy = prepared(**held, train_examples=20, label_noise=0.5)
    np.testing.assert_array_equal(noisy.train.images, part.train.images)
    self.assertEqual((noisy.train.labels != part.train.labels).sum(), noisy.num_wrong)
    moved = prepared(val_fraction=0.2, data_seed=6, train_examples=20)
    self.assertFalse(np.array_equal(moved.train.images, part.train.images))

  def test_noise_from_other_classes_is_all_wrong(self):
    self.assertEqual(
      prepared(label_noise=0.4, label_noise_other_classes=True).num_wrong, 18
    )
    splits = prepared(label_noise=0.4)
    self.assertBetween(splits.num_wrong, 1, 17)
    protocol = Preparation(label_noise=0.4).protocol(splits)
    self.assertEqual(
      protocol["label noise"],
      {
        "share drawn anew": 0.4,
        "from": "all classes",
        "wrong labels": splits.num_wrong,
      },
    )

  def test_a_val_split_of_the_data_validates(self):
    root = fixtures.temporary_dir(self)
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
      for name in "ab":
        images = fixtures.images(ord(name), count)
        names = {
          f"{split}/{name}/{i}.png": fixtures.png(x) for i, x in enumerate(images)
        }
        fixtures.write_files(root, names)
    splits = load_splits(LabelledImages(image_size=8), root)
    self.assertLen(splits.val.labels, 4)
    np.testing.assert_array_equal(splits.val.mean, splits.train.mean)
    with self.assertRaisesRegex(ValueError, "--val_fraction=0.5, but the data have a"):
      load_splits(LabelledImages(), root, Preparation(val_fraction=0.5))

  @parameterized.parameters(
    ({"train_examples": 46}, "--train_examples: .* 46, .* 45 examples, 15"),
    ({"train_examples": 2}, "--train_examples: .* is 2, .* are 3 classes"),
    ({"val_fraction": 0.001}, "num_held is 0 of 45"),
    ({"val_fraction": 1.0}, "val_fraction=1.0: must be at least 0 and below 1"),
    ({"label_noise": 1.5}, "label_noise=1.5: must lie between 0 and 1"),
    ({"data_seed": -1}, "data_seed=-1: must lie between 0"),
    ({"augment": "mixup"}, "augment='mixup': choose one of none, basic, cutout"),
  )
  def test_refusals(self, wanted, message):
    with self.assertRaisesRegex(ValueError, message):
      prepared(**wanted)

  def test_missing_files_are_named(self):
    with self.assertRaisesRegex(ValueError, "--dataset=image_folder needs files"):
      load_splits(LabelledImages())


class AugmentationTest(absltest.TestCase):
  def test_characters_are_never_mirrored(self):
    self.assertIsNone(Preparation().augmentation(SOURCE))
    image = jnp.arange(64.0).reshape(8, 8, 1)
    keys = jax.random.split(jax.random.key(0), 50)
    basic = Preparation(augment="basic")
    for source, mirrored in ((SOURCE, False), (LabelledTFDS(), True)):
      images = jax.vmap(basic.augmentation(source), (0, None))(keys, image)
      falling = np.diff(np.asarray(images)[:, 4, 3:6, 0], axis=1).min(axis=1) == -1
      self.assertEqual(falling.any(), mirrored)

  def test_policies_and_mixup_are_there_where_asked_for(self):
    plain, wanted = (
      Preparation(),
      Preparation(augment="auto_augment_imagenet", mixup=0.4),
    )
    self.assertIsNone(plain.distortion())
    self.assertIsNone(plain.mixing(3))
    self.assertEqual(wanted.distortion().keywords, {"policy": "imagenet"})
    auto = Preparation(augment="auto_augment")
    self.assertEqual(auto.distortion().keywords, {"policy": "cifar"})
    self.assertEqual(wanted.mixing(3).keywords, {"alpha": 0.4, "num_classes": 3})
    self.assertEqual(wanted.protocol(Splits(*[None] * 7))["mixup"], 0.4)
    self.assertEqual(auto.augmentation(SOURCE).keywords["cutout_size"], 16)

  def test_cutout_blanks_what_basic_leaves(self):
    key, image = jax.random.key(3), jnp.ones((40, 40, 1))
    basic, cutout = (
      Preparation(augment=augment).augmentation(SOURCE)(key, image)
      for augment in ("basic", "cutout")
    )
    self.assertGreaterEqual(int((basic != cutout).sum()), 64)
    self.assertLessEqual(int((basic != cutout).sum()), 256)


if __name__ == "__main__":
  absltest.main()
