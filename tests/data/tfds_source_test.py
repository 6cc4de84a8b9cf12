"""Tests of jsharp.data.tfds_source, with datasets prepared by the tests."""

import contextlib
import io
import json
import sys
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized

from jsharp.data import splits, tfds_source
from tests.data import fixtures


class ToyClasses(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Images and labels; `contents` is split -> class -> images."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    shape = (None, None, self.channels)
    features = {
      "image": tfds.features.Image(shape=shape),
      "label": tfds.features.ClassLabel(names=self.names),
      "number": tfds.features.Scalar(np.int32),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {s: self._generate_examples(c) for s, c in self.contents.items()}

  def _generate_examples(self, classes):
    for name, images in classes.items():
      for index, image in enumerate(images):
        data = image if isinstance(image, bytes) else fixtures.png(image)
        record = {"image": io.BytesIO(data), "label": name, "number": index}
        yield f"{name}{index}", record


def _classes(*names, count=2, channels=3):
  return {name: fixtures.images(ord(name), count, channels) for name in names}


class TfdsSourceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)

  def _prepare(self, contents, channels=3, file_format="array_record"):
    names = sorted({name for classes in contents.values() for name in classes})
    attributes = {"contents": contents, "names": names, "channels": channels}
    for name, value in attributes.items():
      setattr(ToyClasses, name, value)
    builder = ToyClasses(data_dir=self.root, file_format=file_format)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_dir=self.root / "downloads")

  def _check(self, datasets, contents):
    """Every class holds exactly its images of all splits, in any order."""
    self.assertEqual(list(datasets), ["train", "val", "test"])
    for split, dataset in datasets.items():
      self.assertEqual(dataset.split, split)
      ends = (dataset.offsets + dataset.counts).tolist()
      for name, start, end in zip(
        dataset.class_names, dataset.offsets.tolist(), ends, strict=True
      ):
        expected = [c[name] for c in contents.values() if name in c]
        self.assertCountEqual(
          [image.tobytes() for image in dataset.images[start:end]],
          [image.tobytes() for image in np.concatenate(expected)],
        )

  def _names(self, datasets):
    return {split: dataset.class_names for split, dataset in datasets.items()}

  def test_accents_are_compared_composed(self):
    images = fixtures.images(0, 2, 3)
    train, test = {"\u00e9": images, "b": images}, {"e\u0301": images, "c": images}
    self._prepare({"train": train, "test": test})
    datasets = tfds_source.load("toy_classes", self.root)
    found = {
      name: count
      for each in datasets.values()
      for name, count in zip(each.class_names, each.counts.tolist(), strict=True)
    }
    self.assertEqual(found, {"\u00e9": 4, "b": 2, "c": 2})

  @parameterized.product(file_format=("array_record", "parquet"), channels=(1, 3))
  def test_own_splits_of_different_classes_stay(self, file_format, channels):
    contents = {
      "train": _classes("a", "b", channels=channels),
      "validation": _classes("c", channels=channels),
      "test": _classes("d", channels=channels),
      "other": _classes("e", channels=channels),
    }
    self._prepare(contents, channels, file_format)
    datasets = tfds_source.load("toy_classes", self.root)
    self._check(datasets, contents)
    self.assertEqual(
      {split: set(names) for split, names in self._names(datasets).items()},
      {"train": {"a", "b"}, "val": {"c"}, "test": {"d"}},
    )
    self.assertEqual(datasets["train"].images.shape, (4, 8, 8, channels))
    self.assertNotIn("tensorflow", sys.modules)

  def test_a_missing_val_is_a_fifth_of_the_train_classes(self):
    contents = {"train": _classes(*"abcdefghij"), "test": _classes(*"xyz")}
    self._prepare(contents)
    datasets = tfds_source.load("toy_classes", self.root)
    self._check(datasets, contents)
    names = self._names(datasets)
    self.assertEqual(names["test"], ("x", "y", "z"))
    self.assertLen(names["val"], 2)
    self.assertCountEqual(names["train"] + names["val"], "abcdefghij")

  @parameterized.parameters(
    ({"full": _classes(*"abcdefghij")},),
    ({"train": _classes(*"abcdefghij"), "test": _classes(*"abcdefghij", count=1)},),
    ({"train": _classes(*"abcdefghij")},),
  )
  def test_otherwise_classes_are_divided_by_the_seed(self, contents):
    self._prepare(contents)
    datasets = tfds_source.load("toy_classes", self.root, split_seed=1)
    self._check(datasets, contents)
    names = self._names(datasets)
    self.assertEqual([len(names[s]) for s in names], [6, 2, 2])
    order = splits.permutation(tuple("abcdefghij"), 1)
    self.assertCountEqual(names["val"], order[:2])
    self.assertCountEqual(names["test"], order[2:4])
    again = tfds_source.load("toy_classes", self.root, split_seed=1)
    self.assertEqual(self._names(again), names)
    other = tfds_source.load("toy_classes", self.root, split_seed=2)
    self.assertNotEqual(self._names(other), names)

  def test_images_of_several_sizes_need_a_size(self):
    contents = {"train": _classes(*"abc") | {"d": fixtures.images(0, 1, size=5)}}
    self._prepare(contents)
    with self.assertRaisesRegex(ValueError, r"record \d+ of train .*: pass size="):
      tfds_source.load("toy_classes", self.root)
    datasets = tfds_source.load("toy_classes", self.root, size=4)
    self.assertEqual(datasets["train"].images.shape[1:], (4, 4, 3))

  def test_records_are_read_in_the_formats_of_tensorflow_datasets(self):
    contents = {"train": _classes(*"abc")}
    encoded = {
      name: [fixtures.png(image, format) for image in contents["train"][name]]
      for name, format in (("a", "BMP"), ("b", "PNG"), ("c", "PNG"))
    }
    self._prepare({"train": encoded})
    self._check(tfds_source.load("toy_classes", self.root), contents)

  def test_a_record_starts_no_program(self):
    started = fixtures.ghostscript(self, fixtures.temporary_dir(self))
    eps = fixtures.png(fixtures.images(0, 1)[0], "EPS")
    self._prepare({"train": _classes(*"ab") | {"c": [eps]}})
    with self.assertRaisesRegex(ValueError, r"record \d of train .* EPS, not PNG"):
      tfds_source.load("toy_classes", self.root)
    self.assertFalse(started.exists())

  @parameterized.parameters("class", "legacy", "text")
  def test_no_module_is_imported_for_a_feature(self, form):
    self._prepare({"train": _classes(*"abc")})
    marker = self.root / "imported"
    self.enterContext(mock.patch.object(sys, "path", [*sys.path, str(self.root)]))
    (self.root / f"foreign_{form}.py").write_text(f"open({str(marker)!r}, 'w')")
    (file,) = self.root.rglob("features.json")
    content = json.loads(file.read_text())
    number = content["featuresDict"]["features"]["number"]
    foreign = f"foreign_{form}.Feature"
    legacy = {"a": {"type": foreign, "content": {}}}
    if form == "class":
      number["pythonClassName"] = foreign
    elif form == "text":
      number["pythonClassName"] = content["pythonClassName"]
      number["jsonFeature"] = {"json": json.dumps(legacy)}
      del number["tensor"]
    else:
      content = {"type": content["pythonClassName"], "content": legacy}
    file.write_text(json.dumps(content))
    for name in ("toy_classes", "ToyClasses:1.0.0"):
      with self.assertRaisesRegex(ValueError, f"names the class {foreign}, .*import"):
        tfds_source.load(name, self.root)
    self.assertFalse(marker.exists())

  def test_a_damaged_list_of_features_is_named(self):
    self._prepare({"train": _classes(*"abc")})
    (file,) = self.root.rglob("features.json")
    for text in ("", "{", "[" * 100_000):
      file.write_text(text)
      with self.assertRaisesRegex(ValueError, "features.json is damaged"):
        tfds_source.load("toy_classes", self.root)

  def test_nothing_prepared_names_what_is_there(self):
    self._prepare({"train": _classes(*"abc")})
    with self.assertRaisesRegex(
      FileNotFoundError, "prepared dataset omniglot"
    ) as caught:
      tfds_source.load("omniglot", self.root)
    self.assertRegex(str(caught.exception), "found: .*toy_classes")

  def test_other_features_are_named(self):
    self._prepare({"train": _classes(*"abc")})
    with self.assertRaisesRegex(ValueError, "no Image feature 'picture'.*number"):
      tfds_source.load("toy_classes", self.root, image="picture")
    with self.assertRaisesRegex(ValueError, "no ClassLabel feature 'number'"):
      tfds_source.load("toy_classes", self.root, label="number")

  def test_too_few_classes(self):
    self._prepare({"train": _classes(*"ab")})
    with self.assertRaisesRegex(
      ValueError, "cannot be divided .*: 2 classes .* too few"
    ):
      tfds_source.load("toy_classes", self.root)

  def test_tfrecords_need_another_format(self):
    self._prepare({"train": _classes(*"abc")})
    (info,) = self.root.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with self.assertRaisesRegex(ValueError, "tfrecord, which only TensorFlow reads"):
      tfds_source.load("toy_classes", self.root)

  def test_labelled_keeps_the_splits_of_images(self):
    contents = {"train": _classes("b", "a"), "test": _classes("a", "b", count=1)}
    self._prepare(contents)
    datasets = tfds_source.load_labelled("toy_classes", self.root)
    self.assertEqual(self._names(datasets), {"train": ("a", "b"), "test": ("a", "b")})
    for split, classes in contents.items():
      start = 0
      for name in ("a", "b"):
        images = datasets[split].images[start : start + len(classes[name])]
        self.assertCountEqual(
          [image.tobytes() for image in images],
          [image.tobytes() for image in classes[name]],
        )
        start += len(classes[name])

  def test_labelled_refuses_other_classes_and_missing_splits(self):
    self._prepare({"train": _classes("a", "b"), "test": _classes("a")})
    with self.assertRaisesRegex(ValueError, "classes of test .* 'b' is in only one"):
      tfds_source.load_labelled("toy_classes", self.root)
    self.root = fixtures.temporary_dir(self)
    self._prepare({"train": _classes("a", "b")})
    with self.assertRaisesRegex(ValueError, "has the splits train; .* needs train"):
      tfds_source.load_labelled("toy_classes", self.root)


if __name__ == "__main__":
  absltest.main()
