"""Tests of datasets whose splits share their classes."""

import numpy as np
from absl.testing import absltest

from jsharp.data import same_classes
from tests.data.examples_test import dataset


class SameClassesTest(absltest.TestCase):
  def test_split_and_first_classes(self):
    source = dataset("a", "b", "c", count=5)
    parts = same_classes.split_classes(same_classes.first_classes(source, 2), 2)
    np.testing.assert_array_equal(parts["train"].images[3:], source.images[5:8])
    np.testing.assert_array_equal(parts["test"].images[2:], source.images[8:10])
    same_classes.check_same_classes(parts)
    with self.assertRaisesRegex(ValueError, "num_test is 5, but class 'a' has 5"):
      same_classes.split_classes(source, 5)

  def test_other_classes_and_shapes_are_refused(self):
    train = dataset("a", "b")
    for test, message in (
      (dataset("a", split="test"), "classes of test are not those of train: 'b'"),
      (dataset("b", "a"), "classes of test are not in the order"),
      (dataset("a", "b", size=5), r"images of test have shape \(5, 5, 3\)"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        same_classes.check_same_classes({"train": train, "test": test})


if __name__ == "__main__":
  absltest.main()
