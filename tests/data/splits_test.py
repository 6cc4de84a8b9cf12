"""Tests of jsharp.data.splits."""

import csv
import hashlib
import json

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import splits
from tests import real_data


def _digest(split):
  return hashlib.sha256(repr(sorted(split.items())).encode()).hexdigest()[:12]


class SplitsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("CIFAR_FS", [64, 16, 20], "7aefddec33e6"),
    ("FC100", [60, 20, 20], "8aae71ee11a3"),
    ("TIERED_IMAGENET", [351, 97, 160], "9e091ce7d79c"),
    ("CUB", [100, 50, 50], "4b183eb77539"),
  )
  def test_published_classes(self, name, sizes, digest):
    classes = getattr(splits, name).classes
    self.assertEqual([len(names) for names in classes.values()], sizes)
    every = sum(classes.values(), ())
    self.assertLen(set(every), len(every))
    self.assertEqual(_digest(classes), digest)

  def test_both_splits_of_cifar_100_use_every_class(self):
    self.assertLen(splits.CIFAR_100_CLASSES, 100)
    for split in (splits.CIFAR_FS, splits.FC100):
      self.assertCountEqual(sum(split.classes.values(), ()), splits.CIFAR_100_CLASSES)

  def test_cub_has_11788_images(self):
    counts = splits.CUB.images_per_class
    self.assertEqual(sum(counts.values()), 11_788)
    self.assertEqual((min(counts.values()), max(counts.values())), (41, 60))
    self.assertEqual(counts["001.Black_footed_Albatross"], 60)
    numbers = [int(name[:3]) for name in sum(splits.CUB.classes.values(), ())]
    self.assertCountEqual(numbers, range(1, 201))

  def test_omniglot_has_50_alphabets_and_1623_characters(self):
    self.assertLen(splits.OMNIGLOT_BACKGROUND, 30)
    self.assertLen(splits.OMNIGLOT_EVALUATION, 20)
    self.assertEqual(sum(splits.OMNIGLOT_BACKGROUND.values()), 964)
    self.assertEqual(sum(splits.OMNIGLOT_EVALUATION.values()), 659)

  @parameterized.parameters(splits.vinyals, splits.mixed)
  def test_a_split_uses_every_character_once(self, split):
    names = [name for names in split().values() for name in names]
    expected = splits.omniglot_characters(
      splits.OMNIGLOT_BACKGROUND | splits.OMNIGLOT_EVALUATION
    )
    self.assertCountEqual(names, expected)

  def test_mixed_depends_on_the_seed_only(self):
    self.assertEqual(splits.mixed(3), splits.mixed(3))
    self.assertNotEqual(splits.mixed(3), splits.mixed(4))

  @parameterized.parameters(
    (splits.vinyals, "c25949370450"), (splits.mixed, "69764fd9c585")
  )
  def test_a_split_is_the_same_on_every_machine(self, split, digest):
    # A change here changes which published numbers can be reproduced.
    self.assertEqual(_digest(split()), digest)

  def test_mini_imagenet_has_100_classes(self):
    classes = splits.MINI_IMAGENET.classes
    self.assertEqual([len(classes[s]) for s in ("train", "val", "test")], [64, 16, 20])
    self.assertLen({name for names in classes.values() for name in names}, 100)

  @parameterized.parameters(
    (6, 2, 2), (9, 2, 2), (22, 4, 4), (91, 15, 18), (100, 16, 20)
  )
  def test_classes_are_divided_by_shares(self, number, num_val, num_test):
    names = tuple(f"c{index:02d}" for index in range(number))
    divided = splits.divided(names, 5)
    self.assertEqual(list(divided), ["train", "val", "test"])
    sizes = [len(part) for part in divided.values()]
    self.assertEqual(sizes, [number - num_val - num_test, num_val, num_test])
    self.assertCountEqual([n for part in divided.values() for n in part], names)
    self.assertEqual(splits.divided(names[::-1], 5), divided)
    if number > 9:
      self.assertNotEqual(splits.divided(names, 6), divided)
    order = np.random.RandomState(5).permutation(number)
    self.assertCountEqual(divided["val"], [names[index] for index in order[:num_val]])

  def test_too_few_classes_are_named(self):
    with self.assertRaisesRegex(ValueError, r"^2 classes \(cat, dog\) .* 2 each"):
      splits.divided(("dog", "cat"), 0)

  @parameterized.parameters("train", "val", "test")
  def test_vinyals_is_the_published_list(self, name):
    path = real_data.path("omniglot") / "vinyals_split" / f"{name}.json"
    published = json.loads(path.read_text())
    expected = [
      f"{alphabet}/{character}"
      for alphabets in published.values()
      for alphabet, characters in alphabets.items()
      for character in characters
    ]
    self.assertCountEqual(splits.vinyals()[name], expected)

  @parameterized.parameters("train", "val", "test")
  def test_mini_imagenet_is_the_published_list(self, name):
    with open(real_data.path("miniimagenet") / f"{name}.csv") as file:
      labels = {row["label"] for row in csv.DictReader(file)}
    self.assertCountEqual(splits.MINI_IMAGENET.classes[name], labels)


if __name__ == "__main__":
  absltest.main()
