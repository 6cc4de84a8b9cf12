"""ImageNet's layouts list the same images, and what is none of them is refused."""

import contextlib
import io
import sys
import tarfile
from unittest import mock

import numpy as np
import scipy.io
from absl.testing import absltest, parameterized

from jsharp.data import _tar_index, imagenet, streams
from tests.data import fixtures, photographs


def _devkit(root):
  """The development kit in place of the file of labels; its numbers are in no order."""
  path = root / imagenet.VAL_LABELS
  words = path.read_text().split()
  path.unlink()
  names = [photographs.CLASSES[i] for i in (2, 0, 1)]
  rows = [(i + 1, name, 0) for i, name in enumerate(names)] + [(4, "n00000009", 3)]
  kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, {"synsets": np.array(rows, kinds).reshape(-1, 1)})
  truth = "".join(f"{names.index(word) + 1}\n" for word in words).encode()
  folder = "ILSVRC2012_devkit_t12/data/"
  content = {
    f"{folder}meta.mat": buffer.getvalue(),
    f"{folder}ILSVRC2012_validation_ground_truth.txt": truth,
  }
  with tarfile.open(root / imagenet.DEVKIT, "w:gz") as archive:
    for name, data in content.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))


def _tars_and_devkit(root, images):
  photographs.write_tars(root, images)
  _devkit(root)


class LayoutsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.contents = photographs.contents()

  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.enter_context(contextlib.redirect_stderr(io.StringIO()))

  def _load(self):
    source = imagenet.ImageNet(image_size=16, num_workers=0)
    return streams.load(source, str(self.root))

  @parameterized.parameters(
    photographs.write_folders,
    photographs.write_tars,
    _tars_and_devkit,
    photographs.write_records,
  )
  def test_every_layout_lists_the_same_images(self, write):
    write(self.root, self.contents)
    found = self._load()
    self.assertEqual(list(found), ["train", "test"])
    for split, own in (("train", "train"), ("test", "val")):
      data, listed = found[split]
      self.assertEqual(listed.class_names, photographs.CLASSES)
      wanted = [
        (label, content)
        for label, name in enumerate(photographs.CLASSES)
        for _, content in sorted(self.contents[own][name].items())
      ]
      self.assertEqual(data.labels.tolist(), [label for label, _ in wanted])
      for index, (_, content) in enumerate(wanted):
        place, encoded = data.images.images[index]
        self.assertEqual(encoded, content)
        self.assertRegex(place, r"n0000000\d|ILSVRC2012_val_")
    digests = {split: listed.digest for split, (_, listed) in found.items()}
    self.assertEqual(digests, {"train": "abbd2e97f25ad069", "test": "3691c90c85f75c92"})
    self.assertNotIn("tensorflow", sys.modules)

  def test_a_list_of_members_is_kept_and_verified(self):
    photographs.write_tars(self.root, self.contents)
    before = self._load()
    with mock.patch.object(_tar_index, "_members", side_effect=AssertionError):
      self.assertEqual(self._load()["train"][1].digest, before["train"][1].digest)
    with self.subTest("damaged"):
      for path in (self.root / "tfds").glob("index-*.npz"):
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
      with self.assertLogs(level="WARNING") as logs:
        self.assertEqual(self._load()["train"][1].digest, before["train"][1].digest)
      self.assertRegex(logs.output[0], "index-.*npz is damaged and is made anew")
    with self.subTest("another archive"):
      contents = photographs.contents(num_train=(5, 5, 6))
      photographs.write_tars(self.root, contents)
      self.assertLen(self._load()["train"][0].labels, 16)

  def test_other_classes_in_train_and_val(self):
    del self.contents["train"]["n00000002"]
    self.addCleanup(self.setUpClass)
    photographs.write_folders(self.root, self.contents)
    with self.assertRaisesRegex(ValueError, r"differ: n00000002 \(in val\) in one"):
      self._load()

  def test_an_empty_class(self):
    photographs.write_folders(self.root, self.contents)
    (self.root / "val" / "n00000004").mkdir()
    with self.assertRaisesRegex(ValueError, "n00000004 has no .* class is empty"):
      self._load()

  @parameterized.parameters(
    ("train", None, "has train/ but no val/"),
    (None, None, r"does not contain ImageNet \(found: val\)"),
  )
  def test_missing_folders(self, train, val, message):
    photographs.write_folders(self.root, {"val": self.contents["val"]})
    if train:
      (self.root / "val").rename(self.root / "train")
    with self.assertRaisesRegex(FileNotFoundError, message):
      self._load()

  def _cut(self, name, length):
    path = self.root / name
    path.write_bytes(path.read_bytes()[:length])

  def _cut_between(self):
    with tarfile.open(self.root / imagenet.VAL_TAR) as archive:
      second = archive.getmembers()[1].offset
    self._cut(imagenet.VAL_TAR, second)

  def _inner(self, **members):
    content = photographs.tar({f"{k}.tar": v for k, v in members.items()})
    (self.root / imagenet.TRAIN_TAR).write_bytes(content)

  @parameterized.named_parameters(
    ("cut", lambda t: t._cut(imagenet.TRAIN_TAR, -20_000), "truncated or damaged"),
    ("cut within", lambda t: t._cut(imagenet.VAL_TAR, 512), "truncated or damaged"),
    (
      "cut between members",
      lambda t: t._cut_between(),
      "end-of-archive mark is missing",
    ),
    ("no mark at the end", lambda t: t._inner(a=b"\0" * 300), "truncated or dam"),
    ("empty class", lambda t: t._inner(a=photographs.tar({})), "has no images"),
    (
      "foreign",
      lambda t: (t.root / imagenet.TRAIN_TAR).write_bytes(
        photographs.tar({"a/1.JPEG": b"1"})
      ),
      "contains a/1.JPEG, not a tar file per class",
    ),
    (
      "foreign within",
      lambda t: t._inner(a=photographs.tar({"readme.txt": b"1"})),
      "a.tar contains readme.txt, which is not an image",
    ),
    (
      "outside",
      lambda t: t._inner(a=photographs.tar({"../1.JPEG": b"1"})),
      "leaves its own folder",
    ),
    (
      "a web page",
      lambda t: (t.root / imagenet.VAL_TAR).write_bytes(fixtures.HTML),
      "is an HTML page",
    ),
    (
      "compressed",
      lambda t: (t.root / imagenet.VAL_TAR).write_bytes(b"\x1f\x8b" + b"1" * 600),
      "not a plain tar file",
    ),
    (
      "labels",
      lambda t: (t.root / imagenet.VAL_LABELS).write_text("n00000001\n"),
      "has 6 images, but there are 1 labels",
    ),
    (
      "labels outside",
      lambda t: (t.root / imagenet.VAL_LABELS).write_text("n00000009\n" * 6),
      r"the classes of train and val differ: n00000001 \(in train\)",
    ),
  )
  def test_archives_and_labels_that_do_not_fit(self, change, message):
    photographs.write_tars(self.root, self.contents)
    change(self)
    with self.assertRaisesRegex(ValueError, message):
      self._load()

  @parameterized.parameters(
    (imagenet.VAL_TAR, "lacks ILSVRC2012_img_val.tar"),
    (imagenet.VAL_LABELS, "but no labels for it"),
  )
  def test_missing_files(self, name, message):
    photographs.write_tars(self.root, self.contents)
    (self.root / name).unlink()
    with self.assertRaisesRegex(FileNotFoundError, message):
      self._load()

  def test_numbers_of_the_devkit_that_name_no_class(self):
    _tars_and_devkit(self.root, self.contents)
    meta = imagenet._numbered_classes
    with (
      mock.patch.object(
        imagenet, "_numbered_classes", lambda *a: {1: meta(*a)[1], 2: meta(*a)[2]}
      ),
      self.assertRaisesRegex(ValueError, "has the label 3, not one of 1 to 2"),
    ):
      self._load()

  def test_it_is_not_held_in_memory(self):
    with self.assertRaisesRegex(ValueError, "too large for memory"):
      imagenet.ImageNet().load(self.root)

  def test_without_grain(self):
    with (
      mock.patch.object(streams.importlib.util, "find_spec", lambda name: None),
      self.assertRaisesRegex(ModuleNotFoundError, r'pip install "jsharp\[stream\]"'),
    ):
      self._load()


if __name__ == "__main__":
  absltest.main()
