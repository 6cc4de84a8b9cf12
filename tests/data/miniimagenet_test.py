"""Tests of jsharp.data.miniimagenet: every layout gives the same data, or an error."""

import contextlib
import io
import pickle

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import miniimagenet, splits
from tests import real_data
from tests.data import fixtures

_SPLIT_FOLDERS = fixtures.image_files()
_FLAT = fixtures.image_files("images/{file}")
_CLASS_FOLDERS = fixtures.image_files("images/{name}/{file}")
_CSVS = fixtures.csv_files()


def _directory(*parts):
  def write(root):
    for part in parts:
      fixtures.write_files(root, part)

  return write


def _archive(name, *parts, loose=None):
  def write(root):
    files = {path: data for part in parts for path, data in part.items()}
    fixtures.write_archive(root / name, files)
    fixtures.write_files(root, loose or {})

  return write


def _shards(suffix, wrapper=""):
  """One archive per split, the train split in two."""

  def write(root):
    for split, names in fixtures.COMPOSITION.classes.items():
      for index, name in enumerate(names):
        part = {
          f"{wrapper}{path}": data
          for path, data in _SPLIT_FOLDERS.items()
          if path.startswith(f"{split}/{name}/")
        }
        fixtures.write_archive(root / f"{split}_{index}{suffix}", part)

  return write


def _pickled(contents, dump):
  def write(root):
    files = {name: dump(content) for name, content in contents.items()}
    fixtures.write_files(root, files)

  return write


def _linked(root):
  """Split folders elsewhere, one of them behind a link, and a link to what holds it."""
  fixtures.write_files(root / ".elsewhere", _SPLIT_FOLDERS)
  for split in ("train", "val"):
    (root / split).symlink_to(root / ".elsewhere" / split)
  (root / "test").mkdir()
  for folder in (root / ".elsewhere" / "test").iterdir():
    (root / "test" / folder.name).symlink_to(folder)
  (root / "test" / "again").symlink_to(root)


_LAYOUTS = {
  "csv_and_flat_images": _directory(_CSVS, _FLAT),
  "csv_and_split_folders": _directory(_CSVS, _SPLIT_FOLDERS),
  "csv_and_class_folders": _directory(_CSVS, _CLASS_FOLDERS),
  "split_folders": _directory(_SPLIT_FOLDERS),
  "validation_folder": _directory(
    {path.replace("val/", "validation/"): data for path, data in _SPLIT_FOLDERS.items()}
  ),
  "split_folders_of_another_case": _directory(
    {path.capitalize(): data for path, data in _SPLIT_FOLDERS.items()}
  ),
  "linked_folders": _linked,
  "class_folders": _directory(_CLASS_FOLDERS),
  "nested": _directory({f"mini/data/{k}": v for k, v in (_CSVS | _FLAT).items()}),
  "csv_and_flat_images_in_zip": _archive("images.zip", _FLAT, loose=_CSVS),
  "csv_and_flat_images_in_tar": _archive("images.tar", _FLAT, loose=_CSVS),
  "csv_in_the_archive_after_the_images": _archive("mini.tar.gz", _FLAT, _CSVS),
  "shards_tar": _shards(".tar"),
  "shards_tar_gz": _shards(".tar.gz"),
  "shards_tar_xz": _shards(".tar.xz"),
  "shards_zip_wrapped": _shards(".zip", "mini-imagenet/"),
  "archive_beside_its_extracted_folders": _archive(
    "mini.tar", dict.fromkeys(_SPLIT_FOLDERS, b"is not read"), loose=_SPLIT_FOLDERS
  ),
  "archive_in_another_order": _archive(
    "mini.tar", dict(reversed(_SPLIT_FOLDERS.items()))
  ),
  "cache_pickles": _pickled(fixtures.cache_contents(), pickle.dumps),
  "cache_pickles_of_python_2": _pickled(
    fixtures.cache_contents(), fixtures.python2_pickle
  ),
  "cache_pickles_of_learn2learn": _pickled(
    {
      name.replace("-val.", "-validation."): content
      for name, content in fixtures.cache_contents().items()
    },
    pickle.dumps,
  ),
  "category_pickles": _pickled(fixtures.category_contents(), pickle.dumps),
  "category_pickles_of_python_2": _pickled(
    fixtures.category_contents(), fixtures.python2_pickle
  ),
}


class MiniImagenetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.cache = fixtures.temporary_dir(self)
    self.stderr = io.StringIO()

  def _load(self, **options):
    with contextlib.redirect_stderr(self.stderr):
      return miniimagenet.load(
        self.root, prepared_dir=self.cache, expected=fixtures.COMPOSITION, **options
      )

  def _check_one(self, split):
    (alone,) = self._load(only=split).values()
    self.assertEqual(alone.split, split)
    expected = fixtures.class_arrays()[split]
    self.assertEqual(alone.class_names, tuple(sorted(expected)))
    images = np.concatenate([expected[name] for name in sorted(expected)])
    np.testing.assert_array_equal(alone.images, images)

  @parameterized.named_parameters(*_LAYOUTS.items())
  def test_every_layout_gives_one_split_alone(self, write):
    write(self.root)
    self._check_one("train")

  @parameterized.product(
    suffix=(".csv", ".pkl", ".pickle", "/", ".tar", ".zip"), broken=(False, True)
  )
  def test_of_one_split_alone_the_others_may_be_missing(self, suffix, broken):
    {
      ".csv": _directory(_CSVS, _FLAT),
      ".pkl": _pickled(fixtures.cache_contents(), pickle.dumps),
      ".pickle": _pickled(fixtures.category_contents(), pickle.dumps),
      "/": _directory(_SPLIT_FOLDERS),
      ".tar": _shards(".tar"),
      ".zip": _shards(".zip"),
    }[suffix](self.root)
    for path in sorted(self.root.rglob("*")):
      if path.is_file() and any(
        split in path.relative_to(self.root).as_posix() for split in ("train", "val")
      ):
        path.write_bytes(b"broken") if broken and suffix != ".csv" else path.unlink()
    self._check_one("test")
    with self.assertRaises((FileNotFoundError, ValueError)):
      self._load()
    with self.assertRaises((FileNotFoundError, ValueError)):
      self._load(only="val")

  def test_one_split_alone_is_taken_from_the_copy_of_all(self):
    _LAYOUTS["split_folders"](self.root)
    self._load()
    self._check_one("val")
    self.assertLen(list(self.cache.iterdir()), 1)
    with self.assertRaisesRegex(ValueError, "only='x' must be one of train, val, test"):
      self._load(only="x")

  @parameterized.named_parameters(*_LAYOUTS.items())
  def test_every_layout_gives_the_same(self, write):
    write(self.root)
    datasets = self._load()
    self.assertCountEqual(datasets, ["train", "val", "test"])
    for split, classes in fixtures.class_arrays().items():
      dataset = datasets[split]
      self.assertEqual(dataset.split, split)
      self.assertEqual(dataset.class_names, tuple(classes))
      self.assertEqual(dataset.offsets.tolist(), [0, 3][: len(classes)])
      self.assertEqual(dataset.counts.tolist(), [3, 3][: len(classes)])
      np.testing.assert_array_equal(dataset.images, np.concatenate([*classes.values()]))
    self.assertNotIn("resized", self.stderr.getvalue())

  def test_the_second_start_reads_no_source(self):
    _LAYOUTS["split_folders"](self.root)
    first = self._load()
    second = self._load()
    for split in first:
      self.assertEqual(first[split].fingerprint(), second[split].fingerprint())
    self.assertEqual(self.stderr.getvalue().count("Preparing"), 1)

  def test_images_that_no_csv_names_are_left_out(self):
    extra = {"images/n00000009_1.png": b"not even an image"}
    fixtures.write_files(self.root, _CSVS | _FLAT | extra)
    self.assertLen(self._load()["train"].images, 6)

  @parameterized.parameters(
    "images/{file}", "images/{name}/{file}", "{split}/{name}/{file}"
  )
  def test_other_sizes_are_resized_and_reported(self, path):
    files = {
      name: fixtures.png(np.full((20, 30, 3), 77, np.uint8))
      for name in fixtures.image_files(path)
    }
    csvs = {} if "{split}" in path else _CSVS
    fixtures.write_files(self.root, csvs | files)
    images = self._load()["test"].images
    np.testing.assert_array_equal(images, np.full((3, 8, 8, 3), 77))
    self.assertRegex(self.stderr.getvalue(), "12 images were not 8x8 and have been")

  def test_grayscale_images_become_rgb(self):
    name = "test/n00000004/n0000000400000000.png"
    gray = fixtures.images(5, 1, 1)[0]
    fixtures.write_files(self.root, _SPLIT_FOLDERS | {name: fixtures.png(gray)})
    image = self._load()["test"].images[0]
    np.testing.assert_array_equal(image, np.broadcast_to(gray, (8, 8, 3)))

  def test_caches_without_class_names_are_counted(self):
    contents = fixtures.category_contents()
    for content in contents.values():
      del content["catname2label"]
    _pickled(contents, pickle.dumps)(self.root)
    self.assertEqual(self._load()["val"].class_names, ("label2",))

  def test_missing_and_empty_directories_say_what_to_do(self):
    for place, message in (
      (self.root / "none", "none does not exist"),
      (self.root, "does not contain mini-ImageNet"),
    ):
      with self.assertRaisesRegex(FileNotFoundError, message) as caught:
        miniimagenet.load(place)
      self.assertRegex(str(caught.exception), "image-net.org")
      self.assertRegex(str(caught.exception), "--dataset=characters needs no data")

  def test_csvs_alone_are_no_dataset(self):
    fixtures.write_files(self.root, _CSVS)
    with self.assertRaisesRegex(FileNotFoundError, "does not contain mini-ImageNet"):
      self._load()

  def _refuses(self, files, message, error=ValueError):
    fixtures.write_files(self.root, files)
    with self.assertRaisesRegex(error, message):
      self._load()
    prepared = [path for path in self.cache.rglob("*") if path.is_file()]
    self.assertEmpty(prepared)

  def test_an_image_that_a_csv_names_is_missing(self):
    files = dict(_CSVS | _FLAT)
    del files["images/n0000000300000001.png"]
    message = (
      r"val.csv names n0000000300000001.png of class n00000003, which is nowhere"
    )
    self._refuses(files, message, FileNotFoundError)

  def test_a_missing_class_is_named(self):
    files = {path: data for path, data in _SPLIT_FOLDERS.items() if "02/" not in path}
    self._refuses(files, "train has 1 classes, .* 2 .missing: n00000002")

  def test_a_missing_split_is_named(self):
    files = {path: data for path, data in _SPLIT_FOLDERS.items() if "test/" not in path}
    self._refuses(files, "test has 0 classes, .* 1 .missing: n00000004")

  def test_an_extra_class_is_named(self):
    extra = {"val/n00000009/1.png": fixtures.png(fixtures.images(9)[0])}
    self._refuses(_SPLIT_FOLDERS | extra, "val has 2 .*not of this split: n00000009")

  def test_a_class_in_the_wrong_split_is_named(self):
    files = {path.replace("val/", "test/"): v for path, v in _SPLIT_FOLDERS.items()}
    self._refuses(files, "val has 0 classes")
    files = {
      path.replace("train/n00000001", "val/n00000001"): v
      for path, v in _SPLIT_FOLDERS.items()
    }
    self.root = fixtures.temporary_dir(self)
    self._refuses(files, "train has 1 .*missing: n00000001")

  @parameterized.parameters(2, 4)
  def test_a_class_of_the_wrong_size_is_named(self, count):
    files = dict(_SPLIT_FOLDERS)
    if count == 2:
      del files["val/n00000003/n0000000300000001.png"]
    else:
      files["val/n00000003/more.png"] = files["val/n00000003/n0000000300000001.png"]
    self._refuses(files, f"class n00000003 of val has {count} images, not 3")

  def test_a_truncated_image_is_named(self):
    name = "val/n00000003/n0000000300000001.png"
    data = _SPLIT_FOLDERS[name][:60]
    self._refuses(_SPLIT_FOLDERS | {name: data}, f"{name} cannot be decoded")

  def test_an_unreadable_image_in_an_archive_is_named_with_it(self):
    name = "val/n00000003/n0000000300000001.png"
    fixtures.write_archive(self.root / "mini.tar", _SPLIT_FOLDERS | {name: b"hello"})
    self._refuses({}, f"mini.tar: {name} cannot be decoded")

  def test_a_truncated_archive_is_named(self):
    _shards(".tar.xz")(self.root)
    path = self.root / "val_0.tar.xz"
    self._refuses({path.name: path.read_bytes()[:-30]}, "val_0.tar.xz is truncated")

  @parameterized.parameters("val.tar", "images.zip", "mini-imagenet.tar.gz")
  def test_a_page_saved_as_archive_is_named(self, name):
    self._refuses({name: fixtures.HTML}, f"{name} is an HTML page")

  def test_a_page_saved_as_pickle_is_named(self):
    _LAYOUTS["cache_pickles"](self.root)
    name = "mini-imagenet-cache-val.pkl"
    self._refuses({name: fixtures.HTML}, f"{name} is an HTML page")

  def test_an_incomplete_family_of_pickles_names_the_missing_one(self):
    _LAYOUTS["cache_pickles"](self.root)
    (self.root / "mini-imagenet-cache-val.pkl").unlink()
    message = "mini-imagenet-cache-val.pkl is missing"
    self._refuses({}, message, FileNotFoundError)

  def test_pickles_in_an_archive_are_to_be_extracted(self):
    fixtures.write_archive(self.root / "a.tar", {"mini-imagenet-cache-val.pkl": b"x"})
    self._refuses({}, "holds the pickle mini-imagenet-cache-val.pkl: extract it")

  def test_an_image_outside_of_class_folders_needs_a_csv(self):
    self._refuses(_FLAT, "n0000000100000000.png .* is not in a class folder.* no CSV")

  def test_a_csv_of_another_form_is_named(self):
    self._refuses(
      _FLAT | {"train.csv": b"file;class\n"},
      r"train.csv has the columns \['file;class'",
    )

  @parameterized.parameters(
    ("filename,label\nü.png,a\n".encode("latin-1"), "train.csv is not UTF-8 text"),
    ("filename,label\n".encode("utf-16"), "train.csv is not UTF-8 text"),
    (b"filename,label\na.png\n", "line 2 of .*train.csv has 1 values for 2 columns"),
    (b"filename,label\n" + b"a" * 200_000, "line 2 of .*train.csv is not valid CSV"),
  )
  def test_a_csv_that_is_none_is_named(self, content, message):
    self._refuses(_FLAT | {"train.csv": content}, message)

  def test_a_csv_that_contradicts_another_is_named(self):
    files = _FLAT | _CSVS | {"val.csv": _CSVS["test.csv"]}
    self._refuses(files, "names n0000000400000000.png for")


class RealMiniImagenetTest(absltest.TestCase):
  def test_the_validation_archive(self):
    """One of the six archives, which is all that a test has time for."""
    data = real_data.path("miniimagenet")
    root, cache = fixtures.temporary_dir(self), fixtures.temporary_dir(self)
    for name in ("val.csv", "val.tar.xz"):
      (root / name).symlink_to(data / name)
    val = {"val": splits.MINI_IMAGENET.classes["val"]}
    with contextlib.redirect_stderr(io.StringIO()):
      datasets = miniimagenet.load(
        root, prepared_dir=cache, expected=splits.MINI_IMAGENET._replace(classes=val)
      )
    dataset = datasets["val"]
    self.assertEqual(dataset.images.shape, (9600, 84, 84, 3))
    self.assertEqual(dataset.class_names, val["val"])
    # Photographs: neither dark nor empty, and no class is a copy of another.
    means = dataset.images.reshape(16, -1).mean(1)
    self.assertBetween(means.min(), 60, 200)
    self.assertLen(set(means.tolist()), 16)


if __name__ == "__main__":
  absltest.main()
