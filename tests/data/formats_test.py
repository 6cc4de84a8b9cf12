"""Tests of jsharp.data._formats: a file is opened as what it is meant to be."""

import io
import subprocess

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp.data import _formats, _pixels, image_folder, labelled_images
from tests.data import fixtures

IMAGE = fixtures.images(0, 1)[0]
EPS = fixtures.png(IMAGE, "EPS")


class ProgramsTest(parameterized.TestCase):
  """An EPS makes Pillow start Ghostscript."""

  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.started = fixtures.ghostscript(self, fixtures.temporary_dir(self))

  def test_the_trap_works(self):
    with self.assertRaises(subprocess.CalledProcessError):
      Image.open(io.BytesIO(EPS)).load()
    self.assertTrue(self.started.exists())

  @parameterized.product(
    name=("a/1.png", "1.JPG", "1.jpeg", "record 7 of train", "1.eps"),
    dos_header=(False, True),
  )
  def test_decoding_an_eps_starts_nothing(self, name, dos_header):
    data = b"\xc5\xd0\xd3\xc6\x20\0\0\0" + bytes(24) + EPS if dos_header else EPS
    message = f"{name} contains an image of the format EPS, not PNG or JPEG. Convert it"
    with self.assertRaisesRegex(ValueError, message):
      _pixels.decode(data, name=name, mode="RGB")
    self.assertFalse(self.started.exists())

  @parameterized.parameters("1.png", "1.jpg")
  def test_loose_and_packed(self, name):
    files = {
      f"{split}/{split}/{other}": data
      for split in ("train", "val", "test")
      for other, data in ((name, EPS), ("2.png", fixtures.png(IMAGE)))
    }
    fixtures.write_files(self.root, files)
    fixtures.write_archive(self.root / "images.zip", files)
    for load in (
      lambda: image_folder.load(self.root, size=fixtures.SIZE),
      lambda: labelled_images.load(self.root, prepared_dir=self.root / "prepared"),
      lambda: labelled_images.load(
        self.root / "images.zip", prepared_dir=self.root / "prepared"
      ),
    ):
      with self.assertRaisesRegex(
        ValueError, f"{name} contains an image of the .* EPS"
      ):
        load()
    self.assertFalse(self.started.exists())


class FormatsTest(parameterized.TestCase):
  @parameterized.product(format=("PNG", "JPEG"), suffix=(".png", ".jpg", ".JPEG", ""))
  def test_png_and_jpeg_may_have_each_others_names(self, format, suffix):
    data = fixtures.png(IMAGE, format)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    decoded = _pixels.decode(data, name=f"1{suffix}", mode=None)
    np.testing.assert_array_equal(decoded, expected)

  @parameterized.product(
    format=("GIF", "TIFF", "BMP", "PPM", "WEBP", "PDF"),
    name=("a.zip: train/1.png", "1.jpg"),
  )
  def test_other_formats_under_these_names_are_refused(self, format, name):
    data = fixtures.png(IMAGE, format)
    message = f"{name} contains an image of the format {format}, not PNG or JPEG"
    with self.assertRaisesRegex(ValueError, message):
      _pixels.decode(data, name=name, mode=None)

  @parameterized.parameters(
    ("AVIF", b"\0\0\0\x1cftypavif\0\0\0\0"),
    ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0"),
    ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("TIFF", b"MM\0*\0\0\0\x08"),
    ("TIFF", b"II+\0\x08\0\0\0"),
  )
  def test_the_first_bytes_name_the_format(self, format, head):
    with self.assertRaisesRegex(ValueError, f"of the format {format}, not PNG or JPEG"):
      _pixels.decode(head + bytes(99), name="1.png", mode=None)

  def test_records_have_the_formats_that_are_named(self):
    data = fixtures.png(IMAGE, "BMP")
    formats = ("PNG", "BMP")
    decoded = _pixels.decode(data, name="record 1", mode=None, formats=formats)
    np.testing.assert_array_equal(decoded, IMAGE)
    with self.assertRaisesRegex(
      ValueError, "1 contains .* TIFF, not PNG or BMP. Convert"
    ):
      _pixels.decode(
        fixtures.png(IMAGE, "TIFF"), name="record 1", mode=None, formats=formats
      )

  @parameterized.parameters(b"", b"hello", b"RIFFxxxxWAVE", b"\0\0\0\x18ftypmp42")
  def test_what_is_no_image_is_named(self, data):
    with self.assertRaisesRegex(ValueError, r"1.png cannot be decoded \(it is not PNG"):
      _pixels.decode(data, name="1.png", mode=None)

  @parameterized.parameters("n1.PNG", "a/b.jpeg", "b.JPG")
  def test_the_suffix_decides_what_is_an_image(self, name):
    self.assertTrue(_formats.is_image(name))
    self.assertFalse(_formats.is_image(f"{name}.txt"))
    self.assertFalse(_formats.is_image(name.replace(".", "")))


if __name__ == "__main__":
  absltest.main()
