"""Tests of jsharp.data._prepared and jsharp.data._builders: the prepared cache."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from tensorflow_datasets.core import shuffle

from jsharp.data import _builders, _pixels, _prepared
from tests.data import fixtures

_fingerprint = _prepared.fingerprint


def _fingerprint_by_rule_1(root, files, *settings):
  """It knew of no rule."""
  if settings[-2:-1] == ("rule",):
    settings = settings[:-2]
  return _fingerprint(root, files, *settings)


def jpeg(orientation):
  exif = Image.Exif()
  exif[274] = orientation
  buffer = io.BytesIO()
  Image.fromarray(fixtures.images(0, 1, 3)[0]).save(buffer, "JPEG", exif=exif)
  return buffer.getvalue()


class PreparedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.cache = fixtures.temporary_dir(self)
    (self.root / "source.bin").write_bytes(b"source")
    self.calls = 0

  def _read(self):
    self.calls += 1
    return {"a": {"y": fixtures.images(1), "x": fixtures.images(2, 5)}}

  def _load(self, *, read=None, settings=(1,), prepared_dir="cache", **arguments):
    return _prepared.load(
      "JsharpOmniglot",
      read or self._read,
      data_dir=self.root,
      prepared_dir=self.cache if prepared_dir == "cache" else prepared_dir,
      files=[self.root / "source.bin"],
      settings=settings,
      **arguments,
    )

  def _check(self, opened):
    self.assertEqual(opened["a"].names, ("y", "x"))
    np.testing.assert_array_equal(opened["a"].counts, [3, 5])
    arrays = opened["a"].arrays()
    np.testing.assert_array_equal(arrays["y"], fixtures.images(1))
    np.testing.assert_array_equal(arrays["x"], fixtures.images(2, 5))

  def test_reads_the_source_once(self):
    self._check(self._load())
    self._check(self._load())
    self.assertEqual(self.calls, 1)

  def test_parquet_where_there_is_no_array_record(self):
    with mock.patch.object(_builders, "file_format", return_value="parquet"):
      self._check(self._load())
      self._check(self._load())
    self.assertEqual(self.calls, 1)
    self.assertNotEmpty(list(self.cache.rglob("*.parquet*")))

  def test_tensorflow_is_not_imported(self):
    self._load()
    self.assertNotIn("tensorflow", sys.modules)

  def test_large_data_need_no_tensorflow_either(self):
    """Records beyond this many bytes would be set aside by TensorFlow."""
    with mock.patch.object(shuffle, "MAX_MEM_BUFFER_SIZE", 10):
      self._check(self._load())
      self.assertEqual(shuffle.MAX_MEM_BUFFER_SIZE, 10)
    self.assertNotIn("tensorflow", sys.modules)

  def test_a_changed_source_is_prepared_anew(self):
    self._load()
    (self.root / "source.bin").write_bytes(b"longer source")
    self._load()
    self.assertEqual(self.calls, 2)
    os.utime(self.root / "source.bin", ns=(1, 1))
    self._load()
    self.assertEqual(self.calls, 3)

  def test_other_settings_are_prepared_apart(self):
    self._load()
    self._load(settings=(2,))
    self._load()
    self.assertEqual(self.calls, 2)

  def test_a_moved_source_is_not_prepared_anew(self):
    self._load()
    moved = self.root.with_name(self.root.name + "_moved")
    self.root.rename(moved)
    self.root = moved
    self._load()
    self.assertEqual(self.calls, 1)
    moved.rename(moved.with_name(moved.name.removesuffix("_moved")))

  @parameterized.parameters("flip", "truncate", "delete", "metadata")
  def test_damage_is_noticed_and_prepared_anew(self, damage):
    self._load()
    pattern = "metadata.json" if damage == "metadata" else "*.array_record*"
    file = next(iter(self.cache.rglob(pattern)))
    data = bytearray(file.read_bytes())
    if damage == "delete":
      file.unlink()
    elif damage == "truncate":
      file.write_bytes(data[: len(data) // 2])
    else:
      data[len(data) // 2] ^= 1
      file.write_bytes(data)
    with self.assertLogs(level="WARNING") as logs:
      self._check(self._load())
    self.assertRegex(logs.output[0], "is damaged and is prepared anew")
    self.assertEqual(self.calls, 2)

  def test_wrong_pixels_are_noticed_by_their_digest(self):
    with mock.patch.object(_builders, "digest", return_value="0" * 64):
      self._load()
    with self.assertLogs(level="WARNING") as logs:
      self._check(self._load())
    self.assertRegex(logs.output[0], "class y of a does not match its SHA-256")

  def _load_images(self, files, *, mode="RGB", **arguments):
    """Loads classes made of encoded images, as a source does."""

    def decoded():
      return {
        name: _pixels.decode(data, name=name, mode=mode)[None]
        for name, data in files.items()
      }

    def read():
      self.calls += 1
      return {"a": decoded()}

    def images():
      self.checks += 1
      return files.items()

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      opened = self._load(
        read=read, encoded=_prepared.Encoded(images, mode), **arguments
      )
    for name, array in decoded().items():
      np.testing.assert_array_equal(opened["a"].arrays()[name], array)
    return err.getvalue()

  def _load_by_rule_1(self, files, mode="RGB"):
    """Leaves the copy that the first rule made of the same files."""
    arrays = {}
    for name, data in files.items():
      pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
      arrays[name] = pixels.reshape(1, *pixels.shape[:2], -1)
    with mock.patch.object(_prepared, "fingerprint", _fingerprint_by_rule_1):
      self._load(read=lambda: {"a": arrays})
    (folder,) = self.cache.iterdir()
    self.calls = self.checks = 0
    return folder

  def test_a_copy_by_an_older_rule_that_is_still_right_is_kept(self):
    gray = fixtures.png(fixtures.images(0, 1, 1)[0])
    color = fixtures.png(fixtures.images(0, 1, 3)[0])
    files = {"1.png": gray, "2.png": color, "3.JPG": jpeg(orientation=1)}
    files["4.png"] = fixtures.png(np.full((8, 8, 4), 255, np.uint8))  # opaque
    self._load_by_rule_1(files)
    self.assertIn("Checking the prepared images once", self._load_images(files))
    self.assertEqual(self._load_images(files), "")
    self.assertEqual((self.calls, self.checks), (0, 1))
    self.assertLen(list(self.cache.iterdir()), 1)

  @parameterized.parameters("alpha", "turned", "format", "name", "accent", "16 bits")
  def test_one_that_is_wrong_today_is_prepared_anew_beside_it(self, what):
    image = fixtures.images(0, 1, 4)[0]
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 999
    extra = {
      "alpha": ("1.png", fixtures.png(image)),
      "turned": ("1.jpg", jpeg(orientation=6)),
      "format": ("1.gif", fixtures.png(image[..., :1], "GIF")),
      "name": ("_1.png", fixtures.png(image[..., :3])),
      "accent": ("e\u0301.png", fixtures.png(image[..., :3])),
      "16 bits": ("1.png", fixtures.png(deep[..., None])),
    }[what]
    files = {"0.png": fixtures.png(image[..., :3])}
    before = dict([*files.items(), extra])
    if what in ("format", "name"):  # The first rule left it out.
      before = files
    copy = self._load_by_rule_1(before)
    kept = sorted(copy.rglob("*"))
    files = dict([*files.items(), extra])
    self.assertIn(f"{copy} is no longer used", self._load_images(files))
    self.assertEqual(self._load_images(files), "")
    self.assertEqual((self.calls, self.checks), (1, 1))
    self.assertEqual(sorted(copy.rglob("*")), kept)  # Nothing was lost.

  def _load_part(self, part):
    def read():
      self.calls += 1
      return {part: {"y": fixtures.images({"a": 1, "b": 2}[part])}}

    opened = self._load(read=read, parts=(part,))
    self.assertEqual(list(opened), [part])
    images = opened[part].arrays()["y"]
    np.testing.assert_array_equal(images, fixtures.images({"a": 1, "b": 2}[part]))

  def test_parts_have_copies_of_their_own_or_are_taken_from_that_of_all(self):
    for part in ("a", "b", "a", "b"):
      self._load_part(part)
    self.assertEqual(self.calls, 2)
    self._load(
      read=lambda: {
        name: {"y": fixtures.images(seed)} for name, seed in (("a", 1), ("b", 2))
      }
    )
    for folder in self.cache.iterdir():
      if len(list(folder.rglob("*.array_record*"))) == 1:
        shutil.rmtree(folder)
    self._load_part("a")
    self.assertEqual(self.calls, 2)

  def test_a_part_is_taken_from_an_older_copy_of_all(self):
    image = fixtures.png(fixtures.images(0, 1, 3)[0])
    self._load_by_rule_1({"1.png": image, "2.png": image})
    for _ in range(2):
      opened = self._load(
        read=self.fail,
        parts=("a",),
        encoded=_prepared.Encoded(lambda: [("1.png", image)] * 2, "RGB"),
      )
      self.assertEqual(opened["a"].names, ("1.png", "2.png"))

  def test_pixels_have_no_rule(self):
    with mock.patch.object(_prepared, "fingerprint", _fingerprint_by_rule_1):
      self._check(self._load())
    self._check(self._load())
    self.assertEqual(self.calls, 1)

  def test_the_check_is_noted_elsewhere_where_the_copy_is_read_only(self):
    files = {"1.png": fixtures.png(fixtures.images(0, 1, 3)[0])}
    copy = self._load_by_rule_1(files)
    (self.root / "tfds").symlink_to(self.cache)
    home = fixtures.temporary_dir(self)
    before = sorted(copy.rglob("*"))
    copy.chmod(0o555)
    self.cache.chmod(0o555)
    self.addCleanup(self.cache.chmod, 0o755)
    self.addCleanup(copy.chmod, 0o755)
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(home)}):
      self.assertIn("Checking", self._load_images(files, prepared_dir=None))
      self.assertEqual(self._load_images(files, prepared_dir=None), "")
    self.assertEqual((self.calls, self.checks), (0, 1))
    self.assertEqual(sorted(copy.rglob("*")), before)

  def test_an_error_while_reading_leaves_nothing_behind(self):
    def fail():
      raise ValueError("bad source")

    with self.assertRaisesRegex(ValueError, "bad source"):
      self._load(read=fail)
    self.assertEmpty([path for path in self.cache.rglob("*") if path.is_file()])
    self._check(self._load())

  def test_another_process_may_finish_first(self):
    def read():
      # As if another process had prepared the same meanwhile.
      self._check(self._load())
      return self._read()

    self._check(self._load(read=read))
    self.assertEqual(self.calls, 2)

  def test_the_default_place_is_beside_the_source(self):
    self._check(self._load(prepared_dir=None))
    self.assertTrue((self.root / "tfds").is_dir())

  def test_a_read_only_source_is_prepared_in_the_cache(self):
    self.root.chmod(0o555)
    self.addCleanup(self.root.chmod, 0o755)
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(self.cache)}):
      self._check(self._load(prepared_dir=None))
      self._check(self._load(prepared_dir=None))
    self.assertEqual(self.calls, 1)
    self.assertFalse((self.root / "tfds").exists())
    self.assertTrue((self.cache / "jsharp").is_dir())

  def test_nowhere_to_write_names_the_places(self):
    self.cache.chmod(0o555)
    self.addCleanup(self.cache.chmod, 0o755)
    with self.assertRaisesRegex(OSError, "be written. Pass prepared_dir="):
      self._load()

  @parameterized.parameters(
    (b'"x"', b'"X"', "metadata.json does not match"),
    (b'"shape": [', b'"shape": [9', "metadata.json does not match"),
    (b'"sha256": "', b'"sha256": "0', "metadata.json does not match"),
    (b"{", b"[", "prepared anew"),
    (None, None, "metadata.json lists no classes"),
  )
  def test_damaged_metadata_are_noticed_and_mended(self, old, new, message):
    self._load()
    (file,) = self.cache.rglob("metadata.json")
    if old is None:
      file.unlink()
    else:
      content = json.dumps(json.loads(file.read_bytes())).encode()
      self.assertIn(old, content)
      file.write_bytes(content.replace(old, new, 1))
    with self.assertLogs(level="WARNING") as logs:
      self._check(self._load())
    self.assertRegex(logs.output[0], message)
    self._check(self._load())
    self.assertEqual(self.calls, 2)

  def test_a_copy_of_an_earlier_version_has_no_digest_of_its_metadata(self):
    self._load()
    (file,) = self.cache.rglob("metadata.json")
    content = json.loads(file.read_bytes())
    del content["sha256"]
    file.write_text(json.dumps(content))
    self._check(self._load())
    self.assertEqual(self.calls, 1)
    file.write_text(json.dumps(content).replace('"x"', '"z"'))
    with self.assertLogs(level="WARNING") as logs:
      self._check(self._load())
    self.assertRegex(logs.output[0], "class z of a is called")

  def test_what_a_living_preparation_writes_is_kept_and_what_a_dead_one_left_is_not(
    self,
  ):
    self._load()
    (folder,) = self.cache.glob("*/jsharp_omniglot")
    left = folder / "incomplete.X_1.0.0"
    for alive in (True, False):
      left.mkdir(exist_ok=True)
      os.utime(left, (1, 1))  # Its files are written, not its folder.
      next(iter(folder.rglob("*.array_record*"))).unlink()
      with _prepared._preparing(folder) if alive else contextlib.nullcontext():
        left.mkdir(exist_ok=True)
        with self.assertLogs(level="WARNING"):
          self._check(self._load())
      self.assertEqual(left.exists(), alive)

  def test_killed_preparations_are_never_opened(self):
    """SIGKILL at random instants, then an uninterrupted start (fault F13)."""
    script = textwrap.dedent(
      """
      import os, pathlib, random, shutil, signal, sys, time
      import numpy as np
      from jsharp.data import _builders, _prepared

      root, cache = map(pathlib.Path, sys.argv[1:])
      images = np.random.RandomState(0).bytes(100 * 84 * 84 * 3)
      images = np.frombuffer(images, np.uint8).reshape(100, 84, 84, 3)
      begun, begin = os.pipe()

      def read():
        os.write(begin, b"x")
        return {"a": {str(number): images for number in range(20)}}

      def load():
        return _prepared.load(
          "JsharpOmniglot", read, data_dir=root, prepared_dir=cache,
          files=[root / "source.bin"], settings=())

      delays = random.Random(0)
      longest = 0.3
      killed = 0
      while killed < 3:
        child = os.fork()
        if not child:
          load()
          os._exit(0)
        os.read(begun, 1)
        time.sleep(delays.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # A complete one would be opened by the next child, which then reads nothing.
        if list(cache.glob("*/*/[0-9]*")):
          shutil.rmtree(cache)
          longest /= 2  # This machine is faster: kill earlier.
        else:
          killed += 1
      opened = load()["a"]
      assert opened.names == tuple(map(str, range(20)))
      assert all((array == images).all() for array in opened.arrays().values())
      """
    )
    command = [sys.executable, "-c", script, str(self.root), str(self.cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
  absltest.main()
