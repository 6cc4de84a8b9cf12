import os
import pathlib
import resource
import tempfile
from unittest import mock

from absl.testing import absltest

from jsharp._files import read_table, write_atomically, write_json


class FilesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / "file"
    write_atomically(self.path, b"old")

  def _names(self):
    return os.listdir(self.path.parent)

  def test_a_full_disk_leaves_the_old_file(self):
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
      with self.assertRaisesRegex(OSError, "cannot write .*file.*intact"):
        write_atomically(self.path, bytes(2**20 + 1))
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    self.assertEqual(self.path.read_bytes(), b"old")
    self.assertEqual(self._names(), ["file"])

  def test_a_kill_at_any_operation_leaves_old_or_new(self):
    class Killed(BaseException):
      pass

    for name, expected in (("fsync", b"old"), ("replace", b"old")):
      with mock.patch(f"os.{name}", side_effect=Killed), self.assertRaises(Killed):
        write_atomically(self.path, b"new")
      self.assertEqual(self.path.read_bytes(), expected)
    write_atomically(self.path, b"new")
    self.assertEqual((self.path.read_bytes(), self._names()), (b"new", ["file"]))

  def test_the_data_are_on_the_disk_before_the_name_is(self):
    calls = []
    fsync, replace = os.fsync, os.replace
    with (
      mock.patch("os.fsync", lambda fd: (calls.append("fsync"), fsync(fd))),
      mock.patch("os.replace", lambda a, b: (calls.append("replace"), replace(a, b))),
    ):
      write_atomically(self.path, b"new")
    self.assertEqual(calls, ["fsync", "replace", "fsync"])

  def test_json_is_strict_and_its_damage_is_named(self):
    write_json(self.path, {"a": [1, None]})
    self.assertEqual(read_table(self.path), {"a": [1, None]})
    with self.assertRaisesRegex(ValueError, "not JSON compliant"):
      write_json(self.path, {"a": float("nan")})
    self.assertEqual(read_table(self.path), {"a": [1, None]})
    for content, message in (
      (b"[3]", "file is damaged: it holds no table"),
      (b'{"a": ', "file is damaged: Expecting"),
      (b"\xff\xfe\xfa", "file is damaged: .*decode"),
    ):
      self.path.write_bytes(content)
      with self.assertRaisesRegex(ValueError, message):
        read_table(self.path)


if __name__ == "__main__":
  absltest.main()
