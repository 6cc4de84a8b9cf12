"""Tests of jsharp.data._archives: what is read, and what is refused."""

import io
import os
import stat
import tarfile
import zipfile
from unittest import mock

from absl.testing import absltest, parameterized

from jsharp.data import (
  _archives,
  cifar,
  image_folder,
  labelled_images,
  miniimagenet,
  omniglot,
)
from tests.data import fixtures

_FILES = {"train/a/1.png": b"one", "train/b/2.png": b"two" * 2000, "notes.txt": b"x"}


def _read(path, wanted=lambda name: name.endswith(".png")):
  return dict(_archives.members(path, wanted))


class ArchivesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)

  def _tar(self, *infos):
    path = self.root / "a.tar"
    with tarfile.open(path, "w") as archive:
      for info in infos:
        archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path

  @parameterized.parameters(
    "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2", "a.zip"
  )
  def test_reads_the_wanted_members(self, name):
    path = self.root / name
    fixtures.write_archive(path, _FILES)
    expected = {name: data for name, data in _FILES.items() if name.endswith(".png")}
    self.assertTrue(_archives.is_archive(path))
    self.assertEqual(_read(path), expected)

  def test_the_content_decides_not_the_name(self):
    fixtures.write_archive(self.root / "a.tar.xz", _FILES)
    os.rename(self.root / "a.tar.xz", self.root / "a.zip")
    self.assertLen(_read(self.root / "a.zip"), 2)

  def test_hidden_members_are_left_out(self):
    path = self.root / "a.zip"
    fixtures.write_archive(
      path,
      {
        "__MACOSX/a/1.png": b"x",
        "a/._1.png": b"x",
        "a/1.png": b"y",
        "__a/_1.png": b"z",
      },
    )
    self.assertEqual(_read(path), {"a/1.png": b"y", "__a/_1.png": b"z"})

  @parameterized.parameters("a.tar", "a.tar.gz", "a.tar.xz", "a.zip")
  def test_a_truncated_archive_is_named(self, name):
    path = self.root / name
    # Random bytes, so that cutting the file cuts the compressed contents.
    files = {f"a/{i}.png": os.urandom(5000) for i in range(4)}
    fixtures.write_archive(path, files)
    path.write_bytes(path.read_bytes()[:9000])
    with self.assertRaisesRegex(ValueError, f"{name} is truncated or damaged"):
      _read(path)

  @parameterized.parameters("a.tar.gz", "a.tar.xz", "a.tar.bz2")
  def test_a_truncated_end_is_noticed_too(self, name):
    path = self.root / name
    fixtures.write_archive(path, _FILES)
    path.write_bytes(path.read_bytes()[:-4])
    with self.assertRaisesRegex(ValueError, f"{name} is truncated or damaged"):
      _read(path)

  @parameterized.parameters("a.tar", "a.tar.gz", "a.zip")
  def test_an_html_page_is_called_so(self, name):
    (self.root / name).write_bytes(fixtures.HTML)
    with self.assertRaisesRegex(ValueError, f"{name} is an HTML page.*Google Drive"):
      _read(self.root / name)

  def test_other_content_is_no_archive(self):
    (self.root / "a.tar").write_bytes(b"hello" * 200)
    with self.assertRaisesRegex(ValueError, "neither a zip nor a tar"):
      _read(self.root / "a.tar")

  def test_an_empty_file_is_called_so(self):
    (self.root / "a.tar").touch()
    with self.assertRaisesRegex(ValueError, "a.tar is empty"):
      _read(self.root / "a.tar")

  @parameterized.parameters(
    ("../../evil.png", "leaves its own folder"),
    ("a/../../evil.png", "leaves its own folder"),
    ("/etc/evil.png", "absolute path"),
    ("C:/evil.png", "absolute path"),
    ("a\\..\\evil.png", "leaves its own folder"),
  )
  def test_names_outside_of_the_archive_are_refused(self, name, why):
    path = self.root / "a.zip"
    fixtures.write_archive(path, {name: b"x"})
    with self.assertRaisesRegex(ValueError, why):
      _read(path, lambda name: False)
    with self.assertRaisesRegex(ValueError, why):
      _read(self._tar(tarfile.TarInfo(name)), lambda name: False)

  @parameterized.parameters(
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
  )
  def test_links_and_devices_in_a_tar_are_refused(self, kind):
    info = tarfile.TarInfo("a/link.png")
    info.type = kind
    info.linkname = "/etc/passwd"
    with self.assertRaisesRegex(ValueError, "link or a device"):
      _read(self._tar(info), lambda name: False)

  def test_links_in_a_zip_are_refused(self):
    path = self.root / "a.zip"
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr(info, "/etc/passwd")
    with self.assertRaisesRegex(ValueError, "link or a device"):
      _read(path, lambda name: False)

  def test_members_larger_than_an_image_are_refused(self):
    zeros = {"a/1.png": bytes(5000), "b.txt": bytes(9000)}
    fixtures.write_archive(self.root / "b.zip", zeros)
    fixtures.write_archive(self.root / "b.tar.gz", zeros)
    for name in ("b.zip", "b.tar.gz"):
      self.assertLen(_read(self.root / name), 1)
      with (
        mock.patch.object(_archives, "LARGEST_MEMBER", 4999),
        self.assertRaisesRegex(ValueError, f"{name}: .* 'a/1.png' has 5000 bytes"),
      ):
        _read(self.root / name)

  def test_a_size_that_is_only_announced_is_refused_unread(self):
    info = tarfile.TarInfo("a/1.png")
    info.size = 1 << 40
    (self.root / "a.tar").write_bytes(info.tobuf() + bytes(1024))
    with self.assertRaisesRegex(ValueError, "'a/1.png' has 1099511627776 bytes"):
      _read(self.root / "a.tar")

  @parameterized.parameters(tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
  def test_long_names_have_an_end(self, kind):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 1 << 40
    path = self._tar(tarfile.TarInfo("a/1.png"))
    path.write_bytes(
      path.read_bytes()[:512] + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    )
    with self.assertRaisesRegex(ValueError, "a member's name has 1099511627776 bytes"):
      _read(path)

  @parameterized.parameters(1000, 520)
  def test_a_damaged_header_is_not_the_end(self, length):
    path = self._tar(tarfile.TarInfo("a/1.png"), tarfile.TarInfo("a/2.png"))
    self.assertLen(_read(path), 2)
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # in the second header
    path.write_bytes(data)
    with self.assertRaisesRegex(ValueError, "a.tar is truncated or damaged"):
      _read(path)
    path.write_bytes(data[:length])
    with self.assertRaisesRegex(ValueError, "a.tar is truncated or damaged"):
      _read(path)

  def test_a_zip_of_windows(self):
    path = self.root / "a.zip"
    for name, message in (
      ("a\\b\\1.png", None),
      ("\\a\\1.png", "is an absolute path"),
      ("C:\\a\\1.png", "is an absolute path"),
      ("a\\..\\..\\1.png", "leaves its own folder"),
    ):
      with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a\\", b"")
        archive.writestr(name, b"x")
      if message is None:
        found = list(_archives.members(path, lambda name: True))
        self.assertEqual(found, [("a/b/1.png", b"x")])
        continue
      with self.assertRaisesRegex(ValueError, f"a.zip: the member .* {message}"):
        list(_archives.members(path, lambda name: True))

  @parameterized.parameters(
    (b"\x00\x00", b"\x09\x00", ".*/1.png' is compressed by method deflate64"),
    (b"\x00\x00", b"\x63\x00", ".*/1.png' is compressed by method 99, which Python"),
    # The name, which is said to be UTF-8.
    (b"1.png", b"\xff.png", " is truncated or damaged"),
  )
  def test_an_unusual_zip_is_named(self, old, new, message):
    path = self.root / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("ä/1.png", b"x")
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    at = data.index(old, start + (10 if old == b"\0\0" else 0))
    path.write_bytes(data[:at] + new + data[at + len(old) :])
    with self.assertRaisesRegex(ValueError, f"a.zip{message}"):
      _read(path)

  @parameterized.product(
    loader=(cifar, image_folder, labelled_images, miniimagenet, omniglot),
    name=("all.zip", "all.tar"),
  )
  def test_archives_within_an_archive_are_named(self, loader, name):
    inner = {"python/images.zip": b"PK", "b.tar": b"x", "readme.md": b"x"}
    fixtures.write_archive(self.root / name, inner)
    options = {"size": 8} if loader is image_folder else {}
    words = rf"images.zip in {name}, b.tar in {name}. Extract the outer one, and pass"
    with self.assertRaisesRegex((ValueError, FileNotFoundError), words):
      loader.load(self.root, **options)

  def test_of_archives_within_nothing_is_said_where_images_are_wrong(self):
    fixtures.write_archive(self.root / "all.zip", _FILES)
    with self.assertRaises(FileNotFoundError) as caught:
      image_folder.load(self.root, size=8)
    self.assertNotIn("within", str(caught.exception))

  def test_walk_leaves_out_hidden_and_prepared_files(self):
    names = ("b/1.png", "a.csv", ".x/2.png", "._3.png", "__MACOSX/4.png", "tfds/5.png")
    names += ("b/tfds/6.png", "Thumbs.db", "b/desktop.ini", "__c__/_7.png")
    fixtures.write_files(self.root, dict.fromkeys(names, b""))
    found = [
      path.relative_to(self.root).as_posix() for path in _archives.walk(self.root)
    ]
    self.assertEqual(found, ["a.csv", "__c__/_7.png", "b/1.png", "b/tfds/6.png"])

  def test_walk_follows_links_but_not_in_circles(self):
    elsewhere = fixtures.temporary_dir(self)
    fixtures.write_files(elsewhere, {"1.png": b"", "c/2.png": b""})
    (self.root / "link").symlink_to(elsewhere)
    (self.root / "other").symlink_to(elsewhere / "c")
    (elsewhere / "c" / "up").symlink_to(elsewhere)
    (elsewhere / "c" / "home").symlink_to(self.root)
    found = [
      path.relative_to(self.root).as_posix() for path in _archives.walk(self.root)
    ]
    # Below `other` nothing is a circle until `elsewhere/c` comes again.
    self.assertEqual(
      found, ["link/1.png", "link/c/2.png", "other/2.png", "other/up/1.png"]
    )


if __name__ == "__main__":
  absltest.main()
