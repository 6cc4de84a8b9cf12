"""Tests of jsharp.data.omniglot on a small synthetic Omniglot and on the real one."""

import contextlib
import io
import shutil
import zipfile
import zlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import omniglot, splits
from tests import real_data
from tests.data import fixtures

_PARTS = {
  "images_background": {"Armenian": 2, "Greek": 3},
  "images_evaluation": {"Angelic": 7, "Tengwar": 2},
}
_SPLIT = {
  "train": tuple(
    [f"Greek/character0{number}" for number in range(1, 4)]
    + [f"Angelic/character0{number}" for number in range(1, 6)]
  ),
  "val": ("Armenian/character01", "Armenian/character02"),
  "test": (
    "Angelic/character06",
    "Angelic/character07",
    "Tengwar/character01",
    "Tengwar/character02",
  ),
}


def _paper(name):
  """A 1-bit 105x105 page, white but for one black square that the name places."""
  row, column = divmod(zlib.crc32(name.encode()) % 49, 7)
  paper = np.ones((105, 105), bool)
  paper[15 * row : 15 * row + 15, 15 * column : 15 * column + 15] = False
  return paper


def _page(name):
  buffer = io.BytesIO()
  Image.fromarray(_paper(name)).save(buffer, "PNG")
  return buffer.getvalue()


def _write_zip(path, part, alphabets, drop=(), extra=()):
  with zipfile.ZipFile(path, "w") as archive:
    for name in splits.omniglot_characters(alphabets):
      for person in range(1, 21):
        member = f"{part}/{name}/0001_{person:02d}.png"
        if member not in drop:
          archive.writestr(member, _page(name))
    for member, data in dict(extra).items():
      archive.writestr(member, data)


class OmniglotTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # The same dataset with fewer alphabets, of which the last four characters are test.
    for ours, theirs in zip(
      _PARTS.values(),
      (splits.OMNIGLOT_BACKGROUND, splits.OMNIGLOT_EVALUATION),
      strict=True,
    ):
      self.enterContext(mock.patch.dict(theirs, ours, clear=True))
    self.enterContext(mock.patch.object(splits, "_VINYALS_NUM_TEST", 4))
    self.data = fixtures.temporary_dir(self)
    self.cache = fixtures.temporary_dir(self)
    for part, alphabets in _PARTS.items():
      _write_zip(self.data / f"{part}.zip", part, alphabets)

  def _load(self, **kwargs):
    with contextlib.redirect_stderr(io.StringIO()):
      return omniglot.load(self.data, prepared_dir=self.cache, **kwargs)

  def test_vinyals_split_with_rotations_in_train_and_val(self):
    datasets = self._load()
    rotations = {name: dataset.num_rotations for name, dataset in datasets.items()}
    self.assertEqual(rotations, {"train": 4, "val": 4, "test": 1})
    for name, dataset in datasets.items():
      self.assertEqual(dataset.split, name)
      self.assertEqual(dataset.class_names, _SPLIT[name])
      self.assertEqual(set(dataset.counts.tolist()), {20})
      self.assertEqual(dataset.images.shape[1:], (28, 28, 1))

  @parameterized.parameters("train", "val", "test")
  def test_one_split_alone(self, only):
    whole = self._load()[only]
    self.assertLen(list(self.cache.iterdir()), 1)
    self.assertEqual(self._load(only=only)[only].fingerprint(), whole.fingerprint())
    self.assertLen(list(self.cache.iterdir()), 1)  # From the copy of all.
    self.cache = fixtures.temporary_dir(self)
    missing = {"val": "images_evaluation", "test": "images_background"}.get(only)
    if missing:
      (self.data / f"{missing}.zip").unlink()
    for _ in range(2):
      (alone,) = self._load(only=only).values()
      self.assertEqual(alone.fingerprint(), whole.fingerprint())
    if missing:
      with self.assertRaisesRegex(FileNotFoundError, f"neither {missing}.zip"):
        self._load()
      with self.assertRaisesRegex(FileNotFoundError, f"neither {missing}.zip"):
        self._load(only="train")

  def test_of_a_part_that_is_not_needed_nothing_is_read(self):
    (self.data / "images_background.zip").write_bytes(b"broken")
    self.assertEqual(self._load(only="test")["test"].class_names, _SPLIT["test"])
    with self.assertRaisesRegex(
      ValueError, "only='all' must be one of train, val, test"
    ):
      self._load(only="all")

  def test_rotations_in_test_too(self):
    datasets = self._load(rotations=("train", "val", "test"))
    self.assertEqual([d.num_rotations for d in datasets.values()], [4, 4, 4])

  def test_mixed_split_takes_the_seed(self):
    def mixed(seed):
      order = splits.permutation(_SPLIT["train"], seed)
      return {"train": order[:4], "val": order[4:6], "test": order[6:]}

    self.assertIs(omniglot._SPLITS["mixed"], splits.mixed)
    with mock.patch.dict(omniglot._SPLITS, {"mixed": mixed}):
      datasets = self._load(split="mixed", split_seed=3)
    for name, dataset in datasets.items():
      self.assertEqual(dataset.class_names, mixed(3)[name])

  @parameterized.parameters(7, 28, 35)
  def test_a_pixel_is_its_share_of_ink(self, size):
    datasets = self._load(size=size)
    repeat = np.kron(1 - _paper("Angelic/character01"), np.ones((size, size)))
    ink = 255 * repeat.reshape(size, 105, size, 105).mean((1, 3))
    train = datasets["train"]
    index = _SPLIT["train"].index("Angelic/character01")
    image = train.images[train.offsets[index]][..., 0]
    np.testing.assert_allclose(image, ink, atol=1.01)
    self.assertEqual(image.max(), 255)
    self.assertEqual(image.min(), 0)

  def test_folders_serve_as_well_as_zips(self):
    root = fixtures.temporary_dir(self)
    shutil.copy(self.data / "images_background.zip", root)
    with zipfile.ZipFile(self.data / "images_evaluation.zip") as archive:
      archive.extractall(root)
    with contextlib.redirect_stderr(io.StringIO()):
      datasets = omniglot.load(root, prepared_dir=self.cache)
    expected = self._load()
    for name in datasets:
      self.assertEqual(datasets[name].fingerprint(), expected[name].fingerprint())

  def test_any_depth_and_one_archive_of_both_serve_as_well(self):
    expected = self._load()
    deep = fixtures.temporary_dir(self)
    shutil.copytree(self.data, deep / "omniglot-py" / "zips")
    both = fixtures.temporary_dir(self) / "both.zip"
    with zipfile.ZipFile(both, "w") as target:
      for part in _PARTS:
        with zipfile.ZipFile(self.data / f"{part}.zip") as source:
          for name in source.namelist():
            target.writestr(f"omniglot-py/{name}", source.read(name))
    for place in (deep, both, both.parent):
      cache = fixtures.temporary_dir(self)
      with contextlib.redirect_stderr(io.StringIO()):
        datasets = omniglot.load(place, prepared_dir=cache)
      for name in datasets:
        self.assertEqual(datasets[name].fingerprint(), expected[name].fingerprint())

  @parameterized.named_parameters(
    ("split", {"split": "lake"}, "split='lake' must be one of vinyals, mixed"),
    ("rotations", {"rotations": ("training",)}, "there is no split 'training'"),
    ("size", {"size": 0}, "size=0 must lie between 1 and 105"),
  )
  def test_wrong_arguments(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      self._load(**kwargs)

  def test_missing_directory_and_archive_say_what_to_do(self):
    root = fixtures.temporary_dir(self)
    for place, message in (
      (root / "none", "none does not exist"),
      (root, r"has neither images_background.zip nor images_background/"),
    ):
      with self.assertRaisesRegex(FileNotFoundError, message) as caught:
        omniglot.load(place)
      self.assertRegex(str(caught.exception), "brendenlake/omniglot")
      self.assertRegex(str(caught.exception), "--dataset=characters needs no data")

  @parameterized.named_parameters(
    (
      "missing",
      {"drop": {f"images_evaluation/Angelic/character07/0001_{i:02d}.png"
                for i in range(1, 21)}},
      "lacks the character Angelic/character07",
    ),
    (
      "extra",
      {"extra": {"images_evaluation/Klingon/character01/1_01.png": _page("k")}},
      "has the unknown character Klingon/character01",
    ),
    (
      "too_small",
      {"drop": {"images_evaluation/Angelic/character07/0001_05.png"}},
      "character Angelic/character07 has 19 drawings, not 20",
    ),
    (
      "wrong_size",
      {"extra": {"images_evaluation/Angelic/character07/0001_05.png":
                 fixtures.png(fixtures.images(0, 1)[0])},
       "drop": {"images_evaluation/Angelic/character07/0001_05.png"}},
      "Angelic/character07/0001_05.png is 8x8 pixels, not 105x105",
    ),
    (
      "no_image",
      {"extra": {"images_evaluation/Angelic/character07/0001_05.png": b"hello"},
       "drop": {"images_evaluation/Angelic/character07/0001_05.png"}},
      "Angelic/character07/0001_05.png cannot be decoded",
    ),
    (
      "no_folder",
      {"extra": {"0001_05.png": _page("k")}},
      "0001_05.png is not in a folder alphabet/character",
    ),
  )  # fmt: skip
  def test_wrong_contents_are_named(self, kwargs, message):
    part = "images_evaluation"
    _write_zip(self.data / f"{part}.zip", part, _PARTS[part], **kwargs)
    with self.assertRaisesRegex(ValueError, message):
      self._load()

  def test_a_page_saved_as_archive_is_named(self):
    root = fixtures.temporary_dir(self)
    for part in _PARTS:
      (root / f"{part}.zip").write_bytes(fixtures.HTML)
    with (
      contextlib.redirect_stderr(io.StringIO()),
      self.assertRaisesRegex(ValueError, "images_background.zip is an HTML page"),
    ):
      omniglot.load(root)


class RealOmniglotTest(absltest.TestCase):
  def test_the_original_drawings(self):
    root = real_data.path("omniglot")
    cache = fixtures.temporary_dir(self)
    with contextlib.redirect_stderr(io.StringIO()):
      datasets = omniglot.load(root, prepared_dir=cache)
    self.assertEqual([d.num_classes for d in datasets.values()], [4112, 688, 423])
    for dataset in datasets.values():
      # Strokes cover a few percent of the page, and some pixels wholly.
      self.assertBetween(dataset.images.mean() / 255, 0.03, 0.15)
      self.assertEqual(dataset.images.max(), 255)
      self.assertEqual(np.median(dataset.images), 0)


if __name__ == "__main__":
  absltest.main()
