"""Tests of jsharp.data.cub: every layout gives the same data, or an error."""

import contextlib
import io

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import cub, splits
from tests.data import fixtures

SPECIES = ("001.Auk", "002.Owl", "003.Ani", "004.Jay", "005.Tit", "006.Kea", "007.Kiwi")
EXPECTED = splits.Composition(
  classes={"train": SPECIES[0::2], "val": SPECIES[1::4], "test": SPECIES[3::4]},
  images_per_class={name: 2 + number % 2 for number, name in enumerate(SPECIES)},
  image_size=84,
)
SIZE = 6
PATHS = {
  f"{name}/{name[4:]}_{number}.jpg": name
  for name in SPECIES
  for number in range(EXPECTED.images_of(name))
}
BOXES = {path: (2 + number % 3, 1, 6, 5) for number, path in enumerate(PATHS)}


def photograph(path):
  """12x8 pixels; the format follows from the content."""
  seed = list(PATHS).index(path)
  return np.random.RandomState(seed).randint(0, 256, (8, 12, 3)).astype(np.uint8)


def expected_of(path, *, boxes=False):
  image = photograph(path)
  if boxes:
    left, top, width, height = BOXES[path]
    image = image[top : top + height, left : left + width]
  resized = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
  return np.asarray(resized)


def image_files(prefix="CUB_200_2011/images/"):
  return {f"{prefix}{path}": fixtures.png(photograph(path)) for path in PATHS}


def lists(prefix="CUB_200_2011/", **changes):
  """The three lists; `changes` are lines to put in place of the first ones."""
  contents = {
    "images": list(PATHS),
    "image_class_labels": [str(int(path[:3])) for path in PATHS],
    "bounding_boxes": [" ".join(f"{x:.1f}" for x in BOXES[path]) for path in PATHS],
  }
  files = {}
  for name, values in contents.items():
    lines = [f"{number} {value}" for number, value in enumerate(values, 1)]
    lines[0] = changes.get(name, lines[0])
    files[f"{prefix}{name}.txt"] = "\n".join([*lines, ""]).encode()
  return files


def masks(prefix="CUB_200_2011/"):
  return {
    f"{prefix}segmentations/{path.replace('.jpg', '.png')}": b"a mask" for path in PATHS
  }


class CubTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.cache = fixtures.temporary_dir(self)
    self.stderr = io.StringIO()

  def load(self, **options):
    with contextlib.redirect_stderr(self.stderr):
      return cub.load(
        options.pop("root", self.root),
        prepared_dir=self.cache,
        expected=EXPECTED,
        size=SIZE,
        **options,
      )

  def check(self, datasets, wanted=splits.NAMES, *, boxes=False):
    self.assertEqual(tuple(datasets), tuple(wanted))
    for split, dataset in datasets.items():
      names = EXPECTED.classes[split]
      self.assertEqual(dataset.class_names, names)
      self.assertEqual(
        dataset.counts.tolist(), [EXPECTED.images_of(name) for name in names]
      )
      images = [
        expected_of(path, boxes=boxes)
        for name in names
        for path, species in PATHS.items()
        if species == name
      ]
      np.testing.assert_array_equal(dataset.images, np.stack(images))
    self.assertNotIn("resized", self.stderr.getvalue())

  def refuses(self, message, error=ValueError, **options):
    with self.assertRaisesRegex(error, message):
      self.load(**options)
    self.assertEmpty([path for path in self.cache.rglob("*") if path.is_file()])

  def write_split_folders(self):
    of = {name: split for split, names in EXPECTED.classes.items() for name in names}
    files = {
      f"{of[species]}/{path}": fixtures.png(photograph(path))
      for path, species in PATHS.items()
    }
    fixtures.write_files(self.root, files)

  @parameterized.parameters(False, True)
  def test_the_official_archive(self, boxes):
    # The lists lie behind the images, and further files beside them.
    files = {"attributes.txt": b"1 x", **image_files(), **lists(), **masks()}
    fixtures.write_archive(self.root / "CUB_200_2011.tgz", files)
    self.check(self.load(bounding_boxes=boxes), boxes=boxes)
    path = self.root / "CUB_200_2011.tgz"
    alone = self.load(root=path, only="val", bounding_boxes=boxes)
    self.check(alone, ["val"], boxes=boxes)

  @parameterized.parameters(False, True)
  def test_the_extracted_folder(self, boxes):
    fixtures.write_files(self.root, image_files() | lists() | masks())
    fixtures.write_archive(self.root / "segmentations.tgz", masks(""))
    self.check(self.load(bounding_boxes=boxes), boxes=boxes)
    self.check(self.load(only="test", bounding_boxes=boxes), ["test"], boxes=boxes)

  def test_class_folders(self):
    fixtures.write_files(self.root, image_files("birds/"))
    self.check(self.load())

  def test_class_folders_in_an_archive(self):
    fixtures.write_archive(self.root / "birds.zip", image_files(""))
    self.check(self.load())

  def test_split_folders(self):
    self.write_split_folders()
    self.check(self.load())

  def test_boxes_and_sizes_are_prepared_apart(self):
    fixtures.write_files(self.root, image_files() | lists())
    self.check(self.load())
    self.check(self.load(bounding_boxes=True), boxes=True)
    self.check(self.load())
    self.assertEqual(self.stderr.getvalue().count("Preparing"), 2)
    self.assertLen(list(self.cache.iterdir()), 2)

  def test_boxes_end_where_the_image_does(self):
    changed = lists(bounding_boxes="1 -1.0 6.0 40.0 40.0")
    fixtures.write_files(self.root, image_files() | changed)
    image = Image.fromarray(photograph("001.Auk/Auk_0.jpg")[6:])
    resized = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    found = self.load(bounding_boxes=True)["train"].images[0]
    np.testing.assert_array_equal(found, np.asarray(resized))

  def test_grayscale_photographs_become_rgb(self):
    gray = fixtures.images(0, 1, 1, SIZE)[0]
    path = "CUB_200_2011/images/001.Auk/Auk_0.jpg"
    fixtures.write_files(self.root, image_files() | {path: fixtures.png(gray)})
    found = self.load()["train"].images[0]
    np.testing.assert_array_equal(found, np.broadcast_to(gray, (SIZE, SIZE, 3)))

  def test_an_empty_directory_says_what_to_do(self):
    self.refuses(
      "does not contain CUB-200-2011. Put CUB_200_2011.tgz", FileNotFoundError
    )
    self.refuses("only='x' must be one of train, val, test", only="x")
    with self.assertRaisesRegex(ValueError, "size=0 must be at least 1 pixel"):
      cub.load(self.root, size=0)
    with self.assertRaisesRegex(ValueError, "CUB_200_2011.tgz"):
      cub.CUB().load(None)

  @parameterized.parameters("bounding_boxes.txt", "images.txt")
  def test_boxes_need_their_lists(self, name):
    fixtures.write_files(self.root, image_files() | lists())
    (self.root / "CUB_200_2011" / name).unlink()
    self.refuses(f"needs {name}, .*nowhere", FileNotFoundError, bounding_boxes=True)
    self.check(self.load())

  @parameterized.named_parameters(
    ("values", {"bounding_boxes": "1 2.0 3.0"}, "line 1 of .*boxes.txt is '1 2.0 3.0'"),
    ("twice", {"images": "2 001.Auk/Auk_0.jpg"}, "line 2 of .*images.txt is '2 001"),
    ("numbers", {"bounding_boxes": "1 a b c d"}, "box of image 1 is not four numbers"),
    ("nan", {"bounding_boxes": "1 nan 0 5 5"}, r"Auk_0.jpg is \(nan, 0.0.*outside its"),
    ("outside", {"bounding_boxes": "1 12 0 5 5"}, r"12.0, 0.*outside its 12x8 pix"),
    ("empty", {"bounding_boxes": "1 1 1 0 5"}, "outside its 12x8 pixels"),
    ("none", {"bounding_boxes": "99 1 1 5 5"}, "has no box of image 1, 001.Auk/Auk_0"),
    ("unnamed", {"images": "1 001.Auk/other.jpg"}, "has no box: images.txt does not"),
  )
  def test_wrong_boxes_are_refused(self, changes, message):
    fixtures.write_files(self.root, image_files() | lists(**changes))
    self.refuses(message, bounding_boxes=True)

  @parameterized.named_parameters(
    ("label", {"image_class_labels": "1 7"}, "gives image 1 the label 7, images.txt"),
    ("missing", {"image_class_labels": "99 1"}, "or they have other numbers"),
  )
  def test_labels_that_contradict_the_folders_are_refused(self, changes, message):
    fixtures.write_files(self.root, image_files() | lists(**changes))
    self.refuses(message)

  def test_two_lists_of_a_kind_are_refused(self):
    fixtures.write_files(self.root, image_files() | lists() | lists("other/"))
    self.refuses("are two of bounding_boxes.txt: remove one")

  def test_a_missing_and_an_unknown_species_are_named(self):
    files = {
      k.replace("003.Ani", "003.Emu"): v for k, v in image_files("train/").items()
    }
    fixtures.write_files(self.root, files)
    self.refuses("train has 7 classes, .* has 4 .missing: 003.Ani; not of this split")
    self.root = fixtures.temporary_dir(self)
    fixtures.write_files(self.root, {k[6:]: v for k, v in files.items()})
    self.refuses("003.Emu/Ani_0.jpg .* is not in a class folder of CUB-200-2011. Use")

  def test_a_species_of_the_wrong_size_is_named(self):
    fixtures.write_files(self.root, image_files() | lists())
    (self.root / "CUB_200_2011/images/004.Jay/Jay_1.jpg").unlink()
    self.refuses("class 004.Jay of test has 2 images, not 3")

  def test_an_older_version_is_refused(self):
    """CUB-200 of 2010 has the same species and fewer images."""
    files = {k: v for k, v in image_files().items() if "_0" in k or "_1" in k}
    fixtures.write_archive(self.root / "CUB_200_2011.tgz", files)
    self.refuses("class 002.Owl of val has 2 images, not 3")

  def test_a_truncated_archive_is_named(self):
    path = self.root / "CUB_200_2011.tgz"
    fixtures.write_archive(path, image_files() | lists())
    path.write_bytes(path.read_bytes()[:-30])
    self.refuses("CUB_200_2011.tgz is truncated")

  def test_a_truncated_image_is_named(self):
    name = "CUB_200_2011/images/004.Jay/Jay_1.jpg"
    fixtures.write_files(self.root, image_files() | {name: image_files()[name][:60]})
    self.refuses(f"{name} cannot be decoded")

  def test_the_published_numbers(self):
    sizes = {
      split: (len(names), sum(splits.CUB.images_of(name) for name in names))
      for split, names in splits.CUB.classes.items()
    }
    self.assertEqual(
      sizes, {"train": (100, 5885), "val": (50, 2950), "test": (50, 2953)}
    )


if __name__ == "__main__":
  absltest.main()
