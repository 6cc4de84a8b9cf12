import os
import pathlib
import resource
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jsharp import _files
from jsharp._files import FileError, read_table, write_atomically, write_json


class FilesTest(parameterized.TestCase):
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
      (b"[3]", "file is damaged: it is not a JSON object"),
      (b'{"a": ', "file is damaged: Expecting"),
      (b"\xff\xfe\xfa", "file is damaged: .*decode"),
    ):
      self.path.write_bytes(content)
      with self.assertRaisesRegex(ValueError, message):
        read_table(self.path)

  def test_no_writer_follows_a_link(self):
    """Nor a hard link: the other file keeps its content."""
    victim = self.path.with_name("victim")
    for link in (os.symlink, os.link):
      for name in ("new", "new.tmp"):
        victim.write_bytes(b"precious")
        link(victim, self.path.with_name(name))
        write_atomically(self.path.with_name("new"), b"new")
        self.assertEqual(victim.read_bytes(), b"precious")
        self.assertEqual(self.path.with_name("new").read_bytes(), b"new")
        self.path.with_name("new").unlink()
    log = self.path.with_name("log")
    os.link(victim, log)
    with _files.opened_to_append(log) as file:
      file.write(b" line")
    self.assertEqual(log.read_bytes(), b"precious line")
    log.unlink()
    log.symlink_to(victim)
    with (
      self.assertRaisesRegex(OSError, "cannot write .*log .it is a link; remove it"),
      _files.opened_to_append(log),
    ):
      self.fail()
    self.assertEqual(victim.read_bytes(), b"precious")

  def test_only_regular_files_of_a_known_size_are_read(self):
    fifo = self.path.with_name("fifo")
    os.mkfifo(fifo)
    for path in (fifo, "/dev/zero"):
      with self.assertRaisesRegex(FileError, f"{path} is not a regular file"):
        read_table(path)
    with self.assertRaisesRegex(FileError, "fifo is not a regular file; remove it"):
      _files.open_own(fifo)
    with self.path.open("wb") as file:
      file.truncate(2**40)
    with self.assertRaisesRegex(FileError, "file has 1,099,511,627,776 bytes, more"):
      read_table(self.path)

  def test_a_link_that_leads_nowhere_is_not_taken_for_no_file(self):
    self.assertIsNone(_files.read_bytes_if_there(self.path.with_name("no"), most=9))
    self.path.with_name("dangling").symlink_to("nowhere")
    with self.assertRaisesRegex(
      FileError, "dangling is a link to nowhere, which does no"
    ):
      _files.read_bytes_if_there(self.path.with_name("dangling"), most=9)

  def test_no_flipped_bit_of_a_table_is_silent(self):
    table = {"accuracy": 0.9549, "steps": [3000, None], "a": {"b": "ü", "c": True}}
    write_json(self.path, table)
    content = self.path.read_bytes()
    for place in range(8 * len(content)):
      changed = bytearray(content)
      changed[place // 8] ^= 1 << place % 8
      try:
        found = _files.parse_table(bytes(changed), where="x")
      except FileError as error:
        self.assertIn("x is damaged", str(error))
      else:
        self.assertEqual(found, table)
    for end in range(len(content) - 1):
      with self.assertRaises(FileError):
        _files.parse_table(content[:end], where="x")

  @parameterized.parameters(
    (b"a,b\n1,2\n", [["1", "2"]]),
    (b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n", [["1", "2"]]),
    (b'a,b\r"1,\r",2\r', [["1,\n", "2"]]),
    (b"", []),
    ("a,b\nü,2\n".encode("latin-1"), "x.csv is not UTF-8 text .*; save it as UTF-8"),
    ("a,b\n1,2\n".encode("utf-16"), "x.csv is not UTF-8 text"),
    (b"a,b\n1,2\n3\n", "line 3 of x.csv has 1 values for 2 columns"),
    (
      b"a\n" + b"1" * 10**6,
      "line 2 of x.csv is not valid CSV .field larger than field limit",
    ),
  )
  def test_csvs(self, content, expected):
    if isinstance(expected, str):
      with self.assertRaisesRegex(FileError, expected):
        _files.parse_csv(content, where="x.csv")
    else:
      self.assertEqual(_files.parse_csv(content, where="x.csv")[1], expected)

  def test_a_table_of_an_earlier_version_has_no_digest(self):
    self.path.write_text('{"steps": 3}')
    self.assertEqual(read_table(self.path), {"steps": 3})
    self.path.write_text("[" * 10**6)
    with self.assertRaisesRegex(FileError, "file is damaged"):
      read_table(self.path)


if __name__ == "__main__":
  absltest.main()
