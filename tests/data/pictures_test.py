"""Pictures of any kind become the images that a learner was trained on."""

import pathlib
import tempfile
import unicodedata

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import pictures
from jsharp.data.pictures import Looks

GRAY = Looks((2, 3, 1))
COLOUR = Looks((2, 3, 3))


class ReadTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("bool", np.array([[0, 1, 1], [1, 0, 0]], bool), 255),
    ("uint8", np.array([[0, 255, 255], [255, 0, 0]], np.uint8), 255),
    ("int64", np.array([[0, 255, 255], [255, 0, 0]]), 255),
    ("float32", np.array([[0, 1, 1], [1, 0, 0]], np.float32), 255),
    ("half", np.array([[0, 0.5, 0.5], [0.5, 0, 0]]), 128),
  )
  def test_dtypes(self, picture, high):
    expected = np.array([[0, high, high], [high, 0, 0]], np.uint8)
    for given in (picture[None], [picture], picture[None, ..., None]):
      read = pictures.read(given, GRAY)
      self.assertEqual(read.dtype, np.uint8)
      np.testing.assert_array_equal(read, expected[None, ..., None])

  def test_rows_of_flattened_images(self):
    images = np.arange(2 * 18, dtype=np.uint8).reshape(2, 2, 3, 3)
    np.testing.assert_array_equal(pictures.read(images.reshape(2, 18), COLOUR), images)
    with self.assertRaisesRegex(ValueError, r"need 18 numbers \(2 x 3 x 3\)"):
      pictures.read(images.reshape(4, 9), COLOUR)

  def test_channels(self):
    gray = np.full((2, 3), 100, np.uint8)
    np.testing.assert_array_equal(
      pictures.read([gray], COLOUR), np.full((1, 2, 3, 3), 100)
    )
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 255
    # ITU-R 601: 0.299 of red.
    np.testing.assert_array_equal(pictures.read([red], GRAY), np.full((1, 2, 3, 1), 76))

  def test_a_file_a_pillow_image_and_an_array_of_any_size_are_one(self):
    picture = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory, "a.png")
      Image.fromarray(picture).save(path)
      read = pictures.read([picture, Image.fromarray(picture), path, str(path)], COLOUR)
      alone = pictures.read(path, COLOUR)
    for one in read[1:]:
      np.testing.assert_array_equal(one, read[0])
    np.testing.assert_array_equal(alone[0], read[0])
    resized = Image.fromarray(picture).resize((3, 2), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(read[0], np.asarray(resized))

  def test_transparency_and_orientation(self):
    """White where nothing is seen, upright as a phone shows it; whatever it is."""
    ink = np.zeros((6, 9, 4), np.uint8)
    ink[2, 3:, 3] = 255
    seen = np.where(ink[..., 3] > 0, 0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    with tempfile.TemporaryDirectory() as directory:
      path, turned = (pathlib.Path(directory, f"{name}.png") for name in "ab")
      Image.fromarray(ink).save(path)
      Image.fromarray(np.ascontiguousarray(np.rot90(ink))).save(turned, exif=exif)
      given = [ink, Image.fromarray(ink), path, turned, Image.open(turned)]
      read = pictures.read(given, Looks((6, 9, 1)))
    for one in read:
      np.testing.assert_array_equal(one[..., 0], seen)
    deep = Image.fromarray(np.full((2, 2), 40000, np.uint16))
    self.assertEqual(pictures.read([deep], Looks((1, 1, 1))).tolist(), [[[[156]]]])
    with self.assertRaisesRegex(ValueError, r"images\[0\] has .* mode F"):
      pictures.read([Image.new("F", (2, 2))], GRAY)

  def test_drawings_are_light_ink_on_a_dark_ground(self):
    looks = Looks((4, 4, 1), filter="BOX", light_ink=True)
    ink = np.zeros((8, 8), np.uint8)
    ink[2:4, 2:6] = 255
    light, dark = pictures.read([ink, 255 - ink], looks)
    np.testing.assert_array_equal(light, dark)
    np.testing.assert_array_equal(light[1, :, 0], [0, 255, 255, 0])
    np.testing.assert_array_equal(light[0], 0)

  @parameterized.named_parameters(
    ("range", np.full((1, 2, 3), 200.0), r"images\[0\] has floats from 200 to 200"),
    ("nan", np.full((1, 2, 3), np.nan), "NaN or infinity"),
    ("large", np.full((1, 2, 3), 256), "integers from 256 to 256; give uint8"),
    ("bits", np.eye(3, dtype=int)[None], "from 0 to 1, which would be black"),
    ("complex", np.zeros((1, 2, 3), np.complex64), "array of complex64"),
    ("channels", np.zeros((1, 2, 3, 5)), r"1, 3 \(RGB\) or 4 \(RGBA\) channels"),
    ("rank", np.zeros(3), r"images has shape \(3,\)"),
    ("one image", np.zeros((2, 3, 3)), r"that of one image; give images\[None\]"),
    ("empty", [np.zeros((0, 3))], "it has no pixels"),
  )
  def test_refuses(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      pictures.read(given, COLOUR)

  def test_all_that_cannot_be_read_are_named(self):
    with tempfile.TemporaryDirectory() as directory:
      paths = [pathlib.Path(directory, name) for name in ("a.png", "b.png", "c.jpg")]
      paths[0].write_bytes(b"no image")
      Image.fromarray(np.zeros((2, 3), np.uint8)).save(paths[1])
      paths[2].write_bytes(b"")
      with self.assertRaisesRegex(ValueError, r"(?s)2 of 3 .*a\.png.*c\.jpg"):
        pictures.read(paths, GRAY)
      with self.assertRaises(FileNotFoundError):
        pictures.read([paths[0].with_name("d.png")], GRAY)
    with self.assertRaisesRegex(TypeError, r"images\[0\] is a int"):
      pictures.read([3], GRAY)
    for one, message in (
      (Image.new("L", (3, 2)), "one Pillow image; give a list"),
      (None, "pictures is a NoneType; give an array"),
      (b"content of a file", "pictures is a bytes; give"),
    ):
      with self.assertRaisesRegex(TypeError, message):
        pictures.read(one, GRAY)

  def test_none_are_none(self):
    self.assertEqual(pictures.read([], GRAY).shape, (0, 2, 3, 1))


class FoldersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def put(self, name):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(path)

  def test_one_folder_for_each_class(self):
    for name in ("dog/1.png", "cat/2.png", "cat/1.png"):
      self.put(name)
    (self.root / "cat" / "notes.txt").write_text("")
    (self.root / ".cache").mkdir()
    paths, names = pictures.class_folders(self.root)
    self.assertEqual(
      [path.relative_to(self.root).as_posix() for path in paths],
      ["cat/1.png", "cat/2.png", "dog/1.png"],
    )
    self.assertEqual(names, ["cat", "cat", "dog"])
    # Folders of a class belong to it, and so does its name in other code points.
    self.put("dog/images/3.png")
    self.put(f"{unicodedata.normalize('NFD', 'café')}/1.png")
    self.put(f"{unicodedata.normalize('NFC', 'café')}/2.png")
    paths, names = pictures.class_folders(self.root)
    self.assertLen(paths, 6)
    self.assertEqual(names, [*("café",) * 2, "cat", "cat", "dog", "dog"])

  def test_refuses_what_is_no_such_directory(self):
    with self.assertRaisesRegex(FileNotFoundError, "has no folders; put the example"):
      pictures.class_folders(self.root)
    self.put("cat/1.png")
    (self.root / "dog").mkdir()
    (self.root / "cow").mkdir()
    with self.assertRaisesRegex(ValueError, "no images in cow, dog"):
      pictures.class_folders(self.root)
    self.put("loose.png")
    with self.assertRaisesRegex(ValueError, r"loose\.png is not in a class folder"):
      pictures.class_folders(self.root)

  def test_files_of_a_directory(self):
    self.put("b.png")
    self.put("a.png")
    self.put("deep/c.png")
    names = [path.name for path in pictures.files(self.root)]
    self.assertEqual(names, ["a.png", "b.png"])
    names = [path.name for path in pictures.files(self.root, recursive=True)]
    self.assertEqual(names, ["a.png", "b.png", "c.png"])
    (self.root / "void").mkdir()
    with self.assertRaisesRegex(FileNotFoundError, "has no images"):
      pictures.files(self.root / "void")


if __name__ == "__main__":
  absltest.main()
