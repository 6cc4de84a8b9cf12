"""CIFAR-100 of few images in the layouts that CIFAR-FS and FC100 come in."""

import contextlib
import io
import pickle

import numpy as np
from absl.testing import parameterized

from jsharp.data import splits
from tests.data import fixtures

NUM_TRAIN, NUM_TEST = 2, 1
FINE = splits.CIFAR_100_CLASSES
_PLACES = list(range(len(FINE)))


def images_of(name):
  """Three images of a class, the first two of which CIFAR-100 trains on."""
  return fixtures.images(FINE.index(name), NUM_TRAIN + NUM_TEST, size=32)


def official(names=FINE):
  """File name -> content of the official version."""
  contents = {"meta": {b"fine_label_names": [name.encode() for name in names]}}
  for file, part in (("train", slice(0, NUM_TRAIN)), ("test", slice(NUM_TRAIN, None))):
    images = np.stack([images_of(name)[part] for name in FINE], axis=1)
    count = len(images)
    contents[file] = {
      b"data": images.transpose(0, 1, 4, 2, 3).reshape(-1, 3072),
      b"fine_labels": _PLACES * count,
      b"coarse_labels": [0] * count * len(FINE),
    }
  return {name: pickle.dumps(content, 2) for name, content in contents.items()}


def pickled(expected, name, *, number=FINE.index):
  """File name -> content of one pickle for each split."""
  return {
    name.format(split): {
      "data": np.concatenate([images_of(name) for name in names]),
      "labels": [number(name) for name in names for _ in range(NUM_TRAIN + NUM_TEST)],
    }
    for split, names in expected.classes.items()
  }


def image_files(expected, path):
  return {
    path.format(split=split, name=name, number=number): fixtures.png(image)
    for split, names in expected.classes.items()
    for name in names
    for number, image in enumerate(images_of(name))
  }


class SplitsOfCifarTest(parameterized.TestCase):
  """What holds for both; `module`, `expected`, `pickles` and `title` say for which."""

  module: object
  published: splits.Composition
  pickles: str
  title: str

  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.cache = fixtures.temporary_dir(self)
    self.expected = self.published._replace(images_per_class=NUM_TRAIN + NUM_TEST)

  def load(self, **options):
    with contextlib.redirect_stderr(io.StringIO()):
      return self.module.load(
        options.pop("root", self.root),
        prepared_dir=self.cache,
        expected=self.expected,
        **options,
      )

  def write(self, layout):
    """Writes one of the layouts."""
    root, expected = self.root, self.expected
    named = pickled(expected, self.pickles)
    folders = image_files(expected, "{split}/{name}/{number}.png")
    flat = image_files(expected, "cifar100/data/{name}/{number}.png")
    match layout:
      case "official archive":
        files = {f"cifar-100-python/{name}": data for name, data in official().items()}
        fixtures.write_archive(root / "cifar-100-python.tar.gz", files)
      case "official files":
        fixtures.write_files(root / "cifar-100-python", official())
      case "pickles":
        files = {name: pickle.dumps(content) for name, content in named.items()}
        fixtures.write_files(root, files)
      case "pickles of Python 2":
        files = {n: fixtures.python2_pickle(content) for n, content in named.items()}
        fixtures.write_files(root / "some", files)
      case "split folders":
        fixtures.write_files(root, folders)
      case "split folders in a zip":
        fixtures.write_archive(root / "data.zip", folders)
      case "class folders":
        fixtures.write_files(root, flat)
      case "class folders in a tar":
        fixtures.write_archive(root / "cifar100.tar", flat)

  def check(self, datasets, wanted=splits.NAMES):
    self.assertEqual(tuple(datasets), tuple(wanted))
    for split, dataset in datasets.items():
      names = sorted(self.expected.classes[split])
      self.assertEqual(dataset.split, split)
      self.assertEqual(list(dataset.class_names), names)
      np.testing.assert_array_equal(dataset.counts, 3)
      images = np.concatenate([images_of(name) for name in names])
      np.testing.assert_array_equal(dataset.images, images)

  def refuses(self, message, error=ValueError, **options):
    with self.assertRaisesRegex(error, message):
      self.load(**options)
    self.assertEmpty([path for path in self.cache.rglob("*") if path.is_file()])


LAYOUTS = (
  "official archive",
  "official files",
  "pickles",
  "pickles of Python 2",
  "split folders",
  "split folders in a zip",
  "class folders",
  "class folders in a tar",
)
