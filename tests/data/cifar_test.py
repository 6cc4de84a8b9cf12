"""CIFAR's Python archives: what is read from them, and what is refused."""

import io
import pathlib
import pickle
import tarfile
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import cifar

NAMES = [f"class {number}" for number in range(10)]


def batch(seed, *, classes=10, labels="labels", count=20):
  rng = np.random.default_rng(seed)
  return {
    "data": rng.integers(0, 256, (count, 3072), np.uint8),
    labels: [int(number) % classes for number in range(count)],
    "filenames": [f"{number}.png" for number in range(count)],
  }


def files(classes=10):
  if classes == 100:
    fine = {"labels": "fine_labels", "classes": 100, "count": 200}
    names = [f"fine {number}" for number in range(100)]
    return {
      "train": {**batch(0, **fine), "coarse_labels": [0] * 200},
      "test": {**batch(1, **fine), "coarse_labels": [0] * 200},
      "meta": {"fine_label_names": names, "coarse_label_names": ["all"]},
    }
  numbered = {f"data_batch_{number}": batch(number) for number in range(1, 6)}
  meta = {"label_names": NAMES, "num_vis": 3072}
  return {**numbered, "test_batch": batch(6), "batches.meta": meta}


def as_bytes(content):
  """As Python 2 wrote them: text as bytes."""
  encode = lambda x: x.encode() if isinstance(x, str) else x
  listed = lambda x: [encode(y) for y in x] if isinstance(x, list) else encode(x)
  return {encode(key): listed(value) for key, value in content.items()}


class CifarTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def write(self, contents, *, packed=False, protocol=2):
    data = {name: pickle.dumps(value, protocol) for name, value in contents.items()}
    if not packed:
      for name, content in data.items():
        path = self.root / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
      return self.root
    path = self.root / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
      for name, content in data.items():
        info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path

  @parameterized.parameters((False, 2), (True, 2), (False, 5))
  def test_images_and_names_by_class(self, packed, protocol):
    contents = files()
    written = {name: as_bytes(value) for name, value in contents.items()}
    given = self.write(written, packed=packed, protocol=protocol)
    splits = cifar.load(given)
    self.assertEqual(list(splits), ["train", "test"])
    self.assertEqual(list(splits["train"].class_names), NAMES)
    for split, names in (
      ("train", [f"data_batch_{number}" for number in range(1, 6)]),
      ("test", ["test_batch"]),
    ):
      images = np.concatenate([contents[name]["data"] for name in names])
      labels = np.concatenate([contents[name]["labels"] for name in names])
      # Planes of red, green and blue, row by row.
      expected = np.stack([images[:, i * 1024 :][:, :1024] for i in range(3)], axis=-1)
      expected = expected.reshape(-1, 32, 32, 3)[np.argsort(labels, kind="stable")]
      np.testing.assert_array_equal(splits[split].images, expected)
    # The whole archive is taken from its directory too.
    np.testing.assert_array_equal(
      cifar.load(self.root)["test"].images, splits["test"].images
    )

  def test_a_hundred_classes_by_their_fine_labels(self):
    self.write(files(100))
    train = cifar.CIFAR100().load(self.root)["train"]
    self.assertLen(train.class_names, 100)
    self.assertEqual(train.class_names[7], "fine 7")
    np.testing.assert_array_equal(train.counts, 2)

  @parameterized.named_parameters(
    ("missing", {"data_batch_3": None}, FileNotFoundError, "lacks data_batch_3: put"),
    (
      "label",
      {"test_batch": {**batch(0), "labels": [0, 10] * 10}},
      ValueError,
      "test_batch has labels from 0 to 10, outside of the 10 classes",
    ),
    (
      "count",
      {"test_batch": {**batch(0), "labels": [1] * 19}},
      ValueError,
      "has 19 labels for 20 images",
    ),
    (
      "floats",
      {"test_batch": {**batch(0), "data": np.zeros((20, 3072))}},
      ValueError,
      "data is float64 of shape \\[20, 3072\\], not uint8",
    ),
    (
      "hundred",
      {"test_batch": batch(0, labels="fine_labels")},
      ValueError,
      "has no labels; choose the dataset that the file belongs to",
    ),
    (
      "names",
      {"batches.meta": {"label_names": [*NAMES[:9], "class 0"]}},
      ValueError,
      "has 10 names, 9 of them different, not 10",
    ),
    ("list", {"test_batch": [1, 2]}, ValueError, "holds a list, not a dict"),
    (
      "program",
      {"test_batch": {"data": pathlib.PurePosixPath("x")}},
      ValueError,
      "test_batch is refused: .*Nothing of it was executed",
    ),
  )
  def test_refuses(self, changes, error, message):
    contents = {**files(), **changes}
    self.write({name: value for name, value in contents.items() if value is not None})
    with self.assertRaisesRegex(error, message):
      cifar.load(self.root)

  def test_refuses_a_truncated_archive_and_a_truncated_file(self):
    path = self.write(files(), packed=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with self.assertRaisesRegex(ValueError, "truncated or damaged"):
      cifar.load(path)
    path.unlink()
    self.write(files())
    loose = self.root / "cifar-10-batches-py" / "data_batch_1"
    loose.write_bytes(loose.read_bytes()[:-100])
    with self.assertRaisesRegex(
      ValueError, "data_batch_1 is truncated or not a pickle"
    ):
      cifar.load(self.root)


if __name__ == "__main__":
  absltest.main()
