"""Tests of jsharp.data.fc100: its own classes from the layouts of CIFAR-FS."""

import pickle

from absl.testing import absltest, parameterized

from jsharp.data import fc100, splits
from tests.data import cifar_splits, fixtures


class Fc100Test(cifar_splits.SplitsOfCifarTest):
  module = fc100
  published = splits.FC100
  pickles = "FC100_{}.pickle"
  title = "FC100"

  @parameterized.parameters(
    "official archive", "official files", "pickles", "split folders", "class folders"
  )
  def test_every_layout_gives_the_same(self, layout):
    self.write(layout)
    self.check(self.load())
    self.check(self.load(only="test"), ["test"])

  def test_no_superclass_is_in_two_splits(self):
    for name, classes in splits.CIFAR_100_SUPERCLASSES.items():
      where = {
        split
        for split, names in splits.FC100.classes.items()
        if set(names) & set(classes)
      }
      self.assertLen(where, 1, name)

  def test_folders_of_cifar_fs_are_refused(self):
    files = cifar_splits.image_files(splits.CIFAR_FS, "{split}/{name}/{number}.png")
    fixtures.write_files(self.root, files)
    self.refuses("train has 64 classes, FC100 has 60 .missing: .*not of this split: ")

  def test_pickles_of_cifar_fs_are_refused(self):
    contents = cifar_splits.pickled(
      splits.CIFAR_FS, self.pickles, number=cifar_splits.FINE.index
    )
    files = {name: fixtures.python2_pickle(c) for name, c in contents.items()}
    fixtures.write_files(self.root, files)
    self.refuses("train has 64 classes, FC100 has 60")

  def test_pickles_of_other_splits_are_refused(self):
    self.write("pickles")
    val, test = (self.root / self.pickles.format(split) for split in ("val", "test"))
    test.write_bytes(val.read_bytes())
    for only in (None, "test"):
      self.refuses("(val|test) has 20 classes, .*; not of this split: ", only=only)
    # One class of val in place of one of test.
    classes = self.expected.classes
    mixed = (*classes["test"][1:], classes["val"][0])
    mixed = self.expected._replace(classes={**classes, "test": mixed})
    name = self.pickles.format("test")
    contents = cifar_splits.pickled(mixed, self.pickles)
    fixtures.write_files(self.root, {name: pickle.dumps(contents[name])})
    val.write_bytes(pickle.dumps(contents[self.pickles.format("val")]))
    self.refuses(f"missing: {classes['test'][0]}; .* split: {classes['val'][0]}")

  def test_an_empty_directory_says_what_to_do(self):
    self.refuses("does not contain FC100. Put .*FC100_train.pickle", FileNotFoundError)
    self.assertEqual(fc100.FC100.name, "fc100")


if __name__ == "__main__":
  absltest.main()
