"""Tests of jsharp.data.labelled_images."""

import contextlib
import io
import unicodedata

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import labelled_images
from tests import real_data
from tests.data import fixtures

CLASSES = {
  "train/b": fixtures.images(0, 2),
  "train/a": fixtures.images(1, 3),
  "test/a": fixtures.images(2, 1),
  "test/b": fixtures.images(3, 2),
}


def files(classes, prefix="", format="PNG"):
  return {
    f"{prefix}{folder}/{index}.{format.lower()}": fixtures.png(image, format)
    for folder, images in classes.items()
    for index, image in enumerate(images)
  }


class LabelledImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.prepared = fixtures.temporary_dir(self)

  def load(self, data_dir=None, **options):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      datasets = labelled_images.load(
        data_dir or self.root, prepared_dir=self.prepared, **options
      )
    return datasets, err.getvalue()

  def check(self, datasets):
    self.assertEqual(list(datasets), ["train", "test"])
    for split, dataset in datasets.items():
      self.assertEqual(dataset.class_names, ("a", "b"))
      expected = [CLASSES[f"{split}/{name}"] for name in ("a", "b")]
      self.assertEqual(dataset.counts.tolist(), [len(images) for images in expected])
      np.testing.assert_array_equal(dataset.images, np.concatenate(expected))

  @parameterized.parameters("", "some/where/")
  def test_reads_folders_at_any_depth_once(self, prefix):
    fixtures.write_files(self.root, {**files(CLASSES, prefix), "README": b"x"})
    datasets, err = self.load()
    self.assertIn("Preparing", err)
    self.check(datasets)
    again, err = self.load()
    self.assertEqual(err, "")
    self.check(again)

  @parameterized.parameters("images.tar.xz", "images.tar", "images.zip")
  def test_reads_an_archive_in_a_directory_or_by_itself(self, name):
    fixtures.write_archive(self.root / name, files(CLASSES, "cifar/"))
    self.check(self.load()[0])
    self.check(self.load(self.root / name)[0])

  def test_folders_below_a_class_belong_to_it(self):
    fixtures.write_files(
      self.root,
      {
        "/".join((*name.split("/")[:2], "images", name.split("/")[2])): data
        for name, data in files(CLASSES).items()
      },
    )
    self.check(self.load()[0])

  def test_underscores_hide_nothing(self):
    renamed = {
      name.replace("/a/0", "/a/_0").replace("/b/", "/__b__/"): data
      for name, data in files(CLASSES).items()
    }
    fixtures.write_files(self.root, renamed)
    fixtures.write_archive(self.prepared / "images.zip", renamed)
    for data_dir in (self.root, self.prepared / "images.zip"):
      train = self.load(data_dir)[0]["train"]
      self.assertEqual(train.class_names, ("__b__", "a"))
      self.assertEqual(train.counts.tolist(), [2, 3])
      np.testing.assert_array_equal(train.images[-1], CLASSES["train/a"][0])

  @parameterized.parameters(None, "a.zip", "a.tar.gz")
  def test_what_is_left_out_is_counted_and_named(self, archive):
    written = files(CLASSES) | dict.fromkeys(
      ("train/a/.x.png", "Thumbs.db", "train/a/1.heic", "README"), b"x"
    )
    if archive:
      fixtures.write_archive(self.root / archive, written)
    else:
      fixtures.write_files(self.root, written)
    with self.assertLogs(level="WARNING") as logs:
      self.check(self.load()[0])
    self.assertLen(logs.output, 1)
    self.assertIn(f"{self.root}: ignored 2 files that are not PNG", logs.output[0])
    self.assertIn("WebP: README, train/a/1.heic", logs.output[0])

  def test_accents_are_compared_composed(self):
    """macOS writes them apart from their letters."""
    written = files(
      {name.replace("b", "e\u0301"): images for name, images in CLASSES.items()}
    )
    written = {
      unicodedata.normalize("NFC", name) if name.startswith("test") else name: data
      for name, data in written.items()
    }
    fixtures.write_files(self.root, written)
    datasets, _ = self.load()
    for split in ("train", "test"):
      self.assertEqual(datasets[split].class_names, ("a", "\u00e9"))

  def test_a_validation_split_is_kept_and_sizes_are_changed(self):
    classes = CLASSES | {"valid/a": CLASSES["test/a"], "valid/b": CLASSES["test/b"]}
    fixtures.write_files(self.root, files(classes))
    datasets, _ = self.load(size=5)
    self.assertEqual(list(datasets), ["train", "val", "test"])
    self.assertEqual(datasets["val"].image_shape, (5, 5, 3))

  def test_grayscale_stays_and_mixed_becomes_rgb(self):
    gray = {name: images[..., :1] for name, images in CLASSES.items()}
    fixtures.write_files(self.root, files(gray))
    self.assertEqual(self.load()[0]["train"].image_shape, (8, 8, 1))
    fixtures.write_files(self.root, files({"test/b": CLASSES["test/b"]}))
    self.assertEqual(self.load()[0]["train"].image_shape, (8, 8, 3))

  @parameterized.named_parameters(
    ("nothing", {}, FileNotFoundError, "has no PNG, .*WebP files. Put.*characters"),
    (
      "no_test",
      {"train/a": CLASSES["train/a"]},
      FileNotFoundError,
      "no images of test/",
    ),
    (
      "other_classes",
      {"train/a": CLASSES["train/a"], "test/b": CLASSES["test/b"]},
      ValueError,
      "classes of test are not those of train: 'a'",
    ),
    (
      "other_size",
      {**CLASSES, "train/c": fixtures.images(0, 1, size=9)},
      ValueError,
      "9x9 pixels, images before it are 8x8: give a size",
    ),
    (
      "no_split",
      {**CLASSES, "a": CLASSES["test/a"]},
      ValueError,
      "is not in a class folder",
    ),
  )
  def test_refusals(self, classes, error, message):
    fixtures.write_files(self.root, files(classes))
    with self.assertRaisesRegex(error, message):
      self.load()

  def test_refuses_the_same_image_twice_and_what_is_no_image(self):
    fixtures.write_files(self.root, files(CLASSES, "one/") | files(CLASSES, "two/"))
    with self.assertRaisesRegex(ValueError, "test/a/0.png occurs twice"):
      self.load()
    fixtures.write_files(self.root, {"one/test/a/0.png": b"no image"})
    with self.assertRaisesRegex(ValueError, "one/test/a/0.png cannot be decoded"):
      self.load()

  def test_real_cifar10(self):
    folder = real_data.path("cifar10")
    datasets, _ = self.load(folder / "cifar10_jpeg.tar.xz")
    for split, count in (("train", 5000), ("test", 1000)):
      self.assertEqual(datasets[split].counts.tolist(), [count] * 10)
      self.assertEqual(datasets[split].image_shape, (32, 32, 3))


if __name__ == "__main__":
  absltest.main()
