"""Tests of jsharp.data.cifar_fs: every layout gives the same data, or an error."""

import pickle

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import cifar_fs, splits
from tests.data import cifar_splits, fixtures


class CifarFsTest(cifar_splits.SplitsOfCifarTest):
  module = cifar_fs
  published = splits.CIFAR_FS
  pickles = "CIFAR_FS_{}.pickle"
  title = "CIFAR-FS"

  @parameterized.parameters(*cifar_splits.LAYOUTS)
  def test_every_layout_gives_the_same(self, layout):
    self.write(layout)
    self.check(self.load())
    self.check(self.load(only="val"), ["val"])

  def test_an_archive_may_be_given_itself(self):
    self.write("official archive")
    self.check(self.load(root=self.root / "cifar-100-python.tar.gz"))

  def test_the_source_says_what_it_needs_and_reads_one_split(self):
    with self.assertRaisesRegex(ValueError, "cifar-100-python.tar.gz"):
      cifar_fs.CIFARFS().load(None)
    self.assertEqual(cifar_fs.CIFARFS.name, "cifar_fs")

  def test_pickles_with_other_labels_are_counted(self):
    contents = cifar_splits.pickled(self.expected, self.pickles, number=lambda name: 0)
    for content in contents.values():
      content["labels"] = [n // 3 for n in range(len(content["data"]))]
    files = {name: pickle.dumps(content) for name, content in contents.items()}
    fixtures.write_files(self.root, files)
    datasets = self.load()
    sizes = [len(dataset.class_names) for dataset in datasets.values()]
    self.assertEqual(sizes, [64, 16, 20])
    self.assertIn("label7", datasets["val"].class_names)
    np.testing.assert_array_equal(
      datasets["test"].images[:3], contents["CIFAR_FS_test.pickle"]["data"][:3]
    )

  def test_an_empty_directory_says_what_to_do(self):
    self.refuses("does not contain CIFAR-FS. Put .*cifar-100-python", FileNotFoundError)
    self.refuses("only='x' must be one of train, val, test", only="x")

  def test_a_missing_pickle_is_named(self):
    self.write("pickles")
    (self.root / "CIFAR_FS_val.pickle").unlink()
    self.refuses("CIFAR_FS_val.pickle is missing", FileNotFoundError)
    self.check(self.load(only="test"), ["test"])

  @parameterized.parameters("train", "val")
  def test_pickles_of_another_split_are_refused(self, split):
    self.write("pickles")
    content = (self.root / "CIFAR_FS_test.pickle").read_bytes()
    (self.root / f"CIFAR_FS_{split}.pickle").write_bytes(content)
    self.refuses(f"{split} has 20 classes, CIFAR-FS has")

  def test_a_truncated_pickle_is_named(self):
    self.write("pickles")
    path = self.root / "CIFAR_FS_train.pickle"
    path.write_bytes(path.read_bytes()[:-100])
    self.refuses("CIFAR_FS_train.pickle is truncated or not a pickle")

  def test_a_pickle_that_runs_something_is_refused(self):
    self.write("pickles")
    (self.root / "CIFAR_FS_val.pickle").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    self.refuses("CIFAR_FS_val.pickle is refused: .*os.system.*Nothing of it was")

  def test_images_of_another_size_are_refused_in_pickles(self):
    content = {"data": fixtures.images(0, 64, size=84), "labels": list(range(64))}
    fixtures.write_files(self.root, {"CIFAR_FS_train.pickle": pickle.dumps(content)})
    self.refuses(r"shape \[64, 84, 84, 3\], not uint8", only="train")

  def test_an_official_file_with_another_class_is_refused(self):
    names = ["zebra" if name == "apple" else name for name in cifar_splits.FINE]
    fixtures.write_files(self.root, cifar_splits.official(names))
    self.refuses("missing: apple; not of this split: zebra")

  def test_cifar_10_in_its_place_is_refused(self):
    batch = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
    files = {f"cifar/{name}": pickle.dumps(batch) for name in ("train", "test", "meta")}
    fixtures.write_archive(self.root / "cifar-100-python.tar.gz", files)
    self.refuses("has no list fine_label_names")

  def test_a_class_in_the_wrong_split_is_named(self):
    path = "{split}/{name}/{number}.png"
    files = cifar_splits.image_files(self.expected, path)
    files = {k.replace("val/beaver", "train/beaver"): v for k, v in files.items()}
    fixtures.write_files(self.root, files)
    self.refuses("train has 65 classes, CIFAR-FS has 64 .not of this split: beaver")

  def test_a_class_of_the_wrong_size_is_named(self):
    self.write("class folders")
    (self.root / "cifar100/data/whale/1.png").unlink()
    self.refuses("class whale of test has 2 images, not 3")

  def test_the_published_lists_are_compared(self):
    self.write("class folders")
    folder = "cifar100/splits/bertinetto"
    lists = {
      f"{folder}/{split}.txt": "\n".join(names).encode()
      for split, names in self.expected.classes.items()
    }
    fixtures.write_files(self.root, lists)
    self.check(self.load())
    wrong = lists[f"{folder}/val.txt"].replace(b"beaver", b"apple")
    fixtures.write_files(self.root, {f"{folder}/val.txt": wrong})
    with self.assertRaisesRegex(ValueError, "val.txt .*missing: beaver; .*: apple"):
      self.load()

  def test_pickles_in_an_archive_are_to_be_extracted(self):
    fixtures.write_archive(self.root / "a.zip", {"CIFAR_FS_val.pickle": b"x"})
    self.refuses("holds the pickle CIFAR_FS_val.pickle: extract it")

  def test_another_version_of_cifar_100_is_named(self):
    files = {"cifar-100-binary/train.bin": b"x"}
    fixtures.write_archive(self.root / "cifar-100-binary.tar.gz", files)
    message = "no image of CIFAR-FS in cifar-100-binary.tar.gz. Fetch the version"
    self.refuses(message, FileNotFoundError)

  def test_a_page_saved_as_archive_is_named(self):
    fixtures.write_files(self.root, {"cifar-100-python.tar.gz": fixtures.HTML})
    self.refuses("cifar-100-python.tar.gz is an HTML page")


if __name__ == "__main__":
  absltest.main()
