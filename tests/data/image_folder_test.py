"""Tests of jsharp.data.image_folder."""

import contextlib
import io
import os

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import image_folder
from tests.data import fixtures


class ImageFolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)

  def _write(self, classes, format="PNG"):
    """Writes `{"split/class": images}`."""
    for folder, images in classes.items():
      for index, image in enumerate(images):
        name = f"{folder}/{index}.{format.lower()}"
        fixtures.write_files(self.root, {name: fixtures.png(image, format)})

  @parameterized.product(channels=(1, 3), val=("val", "valid", "validation"))
  def test_reads_split_class_image(self, channels, val):
    classes = {
      "train/b": fixtures.images(0, 2, channels),
      "train/a": fixtures.images(1, 3, channels),
      f"{val}/c": fixtures.images(2, 1, channels),
      "test/d": fixtures.images(3, 1, channels),
    }
    self._write(classes)
    fixtures.write_files(self.root, {"README": b"x", "train/a/Thumbs.db": b"x"})
    datasets = image_folder.load(self.root, size=fixtures.SIZE)
    self.assertEqual(list(datasets), ["train", "val", "test"])
    train = datasets["train"]
    self.assertEqual(train.class_names, ("a", "b"))
    self.assertEqual(train.counts.tolist(), [3, 2])
    expected = np.concatenate([classes["train/a"], classes["train/b"]])
    np.testing.assert_array_equal(train.images, expected)
    np.testing.assert_array_equal(datasets["val"].images, classes[f"{val}/c"])

  def _three(self, channels=3, size=fixtures.SIZE):
    return {
      f"{split}/{split}": fixtures.images(seed, 2, channels, size)
      for seed, split in enumerate(("train", "val", "test"))
    }

  def test_grayscale_and_rgb_together_become_rgb(self):
    classes = self._three() | {"train/gray": fixtures.images(7, 1, 1)}
    self._write(classes)
    train = image_folder.load(self.root, size=fixtures.SIZE)["train"]
    np.testing.assert_array_equal(
      train.images[0], np.broadcast_to(classes["train/gray"][0], (8, 8, 3))
    )

  @parameterized.parameters((1, 3), (3, 1))
  def test_channels_may_be_asked_for(self, asked, written):
    self._write(self._three(written))
    test = image_folder.load(self.root, size=fixtures.SIZE, channels=asked)["test"]
    self.assertEqual(test.images.shape, (2, 8, 8, asked))

  def test_images_are_resized(self):
    self._write({name: np.full((1, 20, 30, 3), 9, np.uint8) for name in self._three()})
    test = image_folder.load(self.root, size=6)["test"]
    np.testing.assert_array_equal(test.images, np.full((1, 6, 6, 3), 9))

  @parameterized.parameters("JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
  def test_other_formats_are_read(self, format):
    self._write({name: np.full((1, 8, 8, 3), 90, np.uint8) for name in self._three()})
    self._write({"train/j": np.full((1, 8, 8, 3), 70, np.uint8)}, format)
    train = image_folder.load(self.root, size=8)["train"]
    self.assertEqual(train.class_names, ("j", "train"))
    np.testing.assert_allclose(train.images[0], 70, atol=2)

  def test_everything_below_a_class_belongs_to_it(self):
    classes = self._three() | {"train/c/images": fixtures.images(4, 2)}
    classes |= {"train/c/_more/still": fixtures.images(5, 1)}
    classes |= {"train/__background__": fixtures.images(6, 1)}
    self._write(classes)
    elsewhere = fixtures.temporary_dir(self)
    (self.root / "train" / "c").rename(elsewhere / "c")
    (self.root / "train" / "c").symlink_to(elsewhere / "c")
    (elsewhere / "c" / "around").symlink_to(elsewhere)
    train = image_folder.load(self.root, size=8)["train"]
    self.assertEqual(train.class_names, ("__background__", "c", "train"))
    self.assertEqual(train.counts.tolist(), [1, 3, 2])
    np.testing.assert_array_equal(train.images[1], fixtures.images(5, 1)[0])

  def test_what_is_left_out_is_counted_and_named(self):
    self._write(self._three())
    hidden = ("train/.DS_Store", "train/train/._0.png", "__MACOSX/train/a/0.png")
    fixtures.write_files(self.root, dict.fromkeys(hidden, b"x"))
    with self.assertNoLogs():
      image_folder.load(self.root, size=8)
    others = ("train/list.csv", "test/test/1.heic", "val/val/sub/a.pdf")
    fixtures.write_files(self.root, dict.fromkeys(others, b"x"))
    with self.assertLogs() as logs:
      datasets = image_folder.load(self.root, size=8)
    self.assertLen(logs.output, 1)
    self.assertRegex(
      logs.output[0], "ignored 3 files .*: test/test/1.heic, train/list.csv, val/"
    )
    self.assertEqual(datasets["test"].counts.tolist(), [2])

  def test_accents_are_compared_composed(self):
    """macOS writes them apart from their letters."""
    self._write(self._three() | {"train/cafe\u0301": fixtures.images(4, 1)})
    train = image_folder.load(self.root, size=8)["train"]
    self.assertEqual(train.class_names, ("caf\u00e9", "train"))
    self._write({"test/caf\u00e9": fixtures.images(4, 1)})
    with self.assertRaisesRegex(
      ValueError, "the class caf\u00e9 is in train and in test"
    ):
      image_folder.load(self.root, size=8)
    (self.root / "test" / "caf\u00e9").rename(self.root / "train" / "caf\u00e9")
    with self.assertRaisesRegex(ValueError, "train/caf\u00e9/0.png occurs twice"):
      image_folder.load(self.root, size=8)

  @parameterized.parameters("train", "val", "test")
  def test_a_missing_or_empty_split_is_named(self, split):
    classes = {k: v for k, v in self._three().items() if not k.startswith(split)}
    self._write(classes)
    with self.assertRaisesRegex(FileNotFoundError, f"has no images of {split}/"):
      image_folder.load(self.root, size=8)
    (self.root / split).mkdir()
    with self.assertRaisesRegex(FileNotFoundError, f"has no images of {split}/"):
      image_folder.load(self.root, size=8)

  def test_what_is_no_data_is_named(self):
    fixtures.write_files(self.root, {"a.txt": b"x"})
    with self.assertRaisesRegex(FileNotFoundError, "a.txt is neither a directory nor"):
      image_folder.load(self.root / "a.txt", size=8)

  def test_a_name_that_is_not_utf_8(self):
    self._write(self._three())
    os.rename(self.root / "train", os.fsencode(self.root) + b"/\xff")
    with self.assertRaisesRegex(ValueError, r"the name '.udcff', which is not UTF-8"):
      image_folder.load(self.root, size=8)

  def test_an_image_that_is_no_file(self):
    self._write(self._three())
    path = next((self.root / "train").rglob("*.png"))
    path.unlink()
    os.mkfifo(path)
    with self.assertRaisesRegex(ValueError, f"{path.name} is not a regular file"):
      image_folder.load(self.root, size=8)

  def test_a_missing_directory_says_what_to_do(self):
    with self.assertRaisesRegex(FileNotFoundError, "--dataset=characters") as caught:
      image_folder.load(self.root / "none", size=8)
    self.assertRegex(str(caught.exception), "none/train/CLASS/")

  @parameterized.named_parameters(
    (
      "empty_class",
      {"train/e/notes.txt": b"x"},
      "train/e has no PNG, JPEG, .* WebP files: remove",
    ),
    (
      "no_class",
      {"train/1.png": b"x"},
      "train/1.png below .* is not in a class folder",
    ),
    ("no_image", {"train/e/1.png": b"x"}, "train/e/1.png cannot be decoded"),
    (
      "two_splits",
      {"test/train/1.png": fixtures.png(fixtures.images(0)[0])},
      "the class train is in train and in test",
    ),
    ("two_names", {"valid/e/1.png": b"x"}, "has both val/ and valid/"),
  )
  def test_wrong_contents_are_named(self, files, message):
    self._write(self._three())
    fixtures.write_files(self.root, files)
    with self.assertRaisesRegex(ValueError, message):
      image_folder.load(self.root, size=8)

  @parameterized.parameters(
    ({"size": 0}, "size=0"),
    ({"size": 8, "channels": 2}, "channels=2"),
    ({"size": 8, "only": "valid"}, "only='valid' must be one of train, val, test"),
  )
  def test_wrong_arguments(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      image_folder.load(self.root, **kwargs)


class WithoutSplitsTest(parameterized.TestCase):
  """Class folders side by side."""

  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.prepared = fixtures.temporary_dir(self)
    self.classes = {f"c{i}": fixtures.images(i, 1 + i % 2, 1) for i in range(10)}
    self.files = {
      f"{name}/{index}.png": fixtures.png(image)
      for name, images in self.classes.items()
      for index, image in enumerate(images)
    }

  def load(self, data_dir=None, **options):
    self.err = io.StringIO()
    with contextlib.redirect_stderr(self.err):
      return image_folder.load(
        data_dir or self.root, size=8, prepared_dir=self.prepared, **options
      )

  def check(self, datasets, seed):
    """Against the definition: a permutation of the sorted names, cut in three."""
    order = np.random.RandomState(seed).permutation(10)
    parts = {"train": order[4:], "val": order[:2], "test": order[2:4]}
    self.assertEqual(list(datasets), ["train", "val", "test"])
    for split, numbers in parts.items():
      names = tuple(f"c{number}" for number in sorted(numbers))
      self.assertEqual(datasets[split].class_names, names)
      expected = np.concatenate([self.classes[name] for name in names])
      np.testing.assert_array_equal(datasets[split].images, expected)
      self.assertEqual(
        datasets[split].origin, f"10 classes, divided 6 / 2 / 2 by split_seed={seed}"
      )

  def test_classes_are_divided_by_a_seed_which_is_said(self):
    fixtures.write_files(self.root, self.files)
    self.check(self.load(), 0)
    line = f"data_dir={self.root} has 10 classes, divided 6 / 2 / 2 by split_seed=0.\n"
    self.assertEqual(self.err.getvalue(), line)
    self.check(self.load(split_seed=0), 0)
    self.check(self.load(split_seed=7), 7)

  def test_folders_around_the_data(self):
    files = {f"a/b/{name}": data for name, data in self.files.items()}
    fixtures.write_files(self.root, files | {"a/README.txt": b"x"})
    with self.assertLogs(level="WARNING") as logs:
      self.check(self.load(), 0)
    self.assertIn("a/README.txt", logs.output[0])
    (self.root / "a" / "b" / "empty").mkdir()
    with self.assertRaisesRegex(ValueError, "a/b/empty has no PNG"):
      self.load()

  @parameterized.product(
    name=("images.zip", "images.tar.xz"), around=("", "birds/"), itself=(True, False)
  )
  def test_archives_are_read_once(self, name, around, itself):
    files = {f"{around}{path}": data for path, data in self.files.items()}
    fixtures.write_archive(self.root / name, files)
    given = self.root / name if itself else self.root
    self.check(self.load(given), 0)
    self.assertIn("Preparing", self.err.getvalue())
    for seed in (0, 5):  # The seed divides what is prepared.
      self.check(self.load(given, split_seed=seed), seed)
      self.assertNotIn("Preparing", self.err.getvalue())
    self.assertEqual(self.load(given, only="test")["test"].num_classes, 10)
    self.assertNotIn("Preparing", self.err.getvalue())

  def test_a_test_alone_takes_all_classes(self):
    fixtures.write_files(self.root, self.files)
    (test,) = self.load(only="test").values()
    self.assertEqual(test.split, "test")
    self.assertEqual(test.class_names, tuple(self.classes))
    self.assertEqual(test.origin, "all 10 classes")
    self.assertEqual(self.err.getvalue(), "")

  def test_a_test_alone_of_divided_classes_takes_those_of_the_test(self):
    fixtures.write_files(self.root, self.files)
    for source in (
      image_folder.ImageFolder(image_size=8, split_seed=3),
      image_folder.ImageFolder(image_size=8).for_training(),
    ):
      with contextlib.redirect_stderr(io.StringIO()):
        whole = source.load(self.root)
        alone = source.load(self.root, only="test")
      self.assertEqual(list(alone), ["test"])
      self.assertEqual(alone["test"].fingerprint(), whole["test"].fingerprint())
      self.assertEqual(whole["test"].num_classes, 2)

  def test_too_few_classes_to_divide(self):
    two = {name: data for name, data in self.files.items() if name[:2] in ("c0", "c1")}
    fixtures.write_files(self.root, two)
    with self.assertRaisesRegex(
      ValueError, r"no folders train/.* 2 classes \(c0, c1\) .* 2 each. Add .*evaluate"
    ):
      self.load()
    self.assertEqual(self.load(only="test")["test"].num_classes, 2)


class OneSplitTest(parameterized.TestCase):
  """A split that is loaded without the others."""

  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.prepared = fixtures.temporary_dir(self)
    self.images = fixtures.images(0, 3)
    self.files = {
      f"test/a/{i}.png": fixtures.png(image) for i, image in enumerate(self.images)
    }

  def load(self, data_dir=None, **options):
    with contextlib.redirect_stderr(io.StringIO()):
      return image_folder.load(
        data_dir or self.root, size=8, prepared_dir=self.prepared, **options
      )

  @parameterized.parameters("", "x.zip", "x.tar.gz")
  def test_the_others_may_be_missing_or_broken(self, archive):
    for others in ({}, {"train/b/1.png": b"broken", "val/c/1.png": b"broken"}):
      files = self.files | others
      if archive:
        fixtures.write_archive(self.root / archive, files)
      else:
        fixtures.write_files(self.root, files)
      (test,) = self.load(only="test").values()
      self.assertEqual((test.split, test.class_names), ("test", ("a",)))
      np.testing.assert_array_equal(test.images, self.images)
      self.assertEqual(test.origin, "")
      with self.assertRaises((FileNotFoundError, ValueError)):
        self.load()

  def test_one_that_is_missing_is_named(self):
    fixtures.write_files(self.root, self.files)
    with self.assertRaisesRegex(FileNotFoundError, "has no images of val/"):
      self.load(only="val")


if __name__ == "__main__":
  absltest.main()
