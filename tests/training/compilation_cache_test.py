"""A directory for compiled programs that is one user's alone."""

import os
import pathlib
import stat
import tempfile
from unittest import mock

import jax
from absl.testing import absltest
from jax.experimental.compilation_cache import compilation_cache

from jsharp.training import use_compilation_cache
from jsharp.training.compilation_cache import CheckedCache


class CompilationCacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    before = jax.config.jax_compilation_cache_dir
    self.addCleanup(jax.config.update, "jax_compilation_cache_dir", before)
    caches = "jax_persistent_cache_enable_xla_caches"
    self.addCleanup(jax.config.update, caches, getattr(jax.config, caches))
    self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_is_made_for_the_user_alone(self):
    use_compilation_cache(str(self.directory / "a" / "b"))
    self.assertEqual(stat.S_IMODE((self.directory / "a" / "b").stat().st_mode), 0o700)

  def test_refuses_what_others_can_write_to(self):
    self.directory.chmod(0o777)
    with self.assertRaisesRegex(ValueError, "compilation_cache_dir.*chmod 700"):
      use_compilation_cache(str(self.directory))

  def test_damaged_programs_are_dropped_and_kept_anew(self):
    cache = CheckedCache(str(self.directory))
    program = bytes(range(256))
    cache.put("key", program)
    (file,) = self.directory.iterdir()
    content = file.read_bytes()
    for place in range(0, 8 * len(content), 7):
      changed = bytearray(content)
      changed[place // 8] ^= 1 << place % 8
      file.write_bytes(changed)
      with mock.patch("absl.logging.warning") as warning:
        self.assertIsNone(cache.get("key"))
      warning.assert_called_once()
    for end in (0, 31, 32, 100):
      file.write_bytes(content[:end])
      with mock.patch("absl.logging.warning"):
        self.assertIsNone(cache.get("key"))
    file.unlink()
    os.mkfifo(file)
    with mock.patch("absl.logging.warning"):
      self.assertIsNone(cache.get("key"))
    cache.put("key", program)
    self.assertEqual(cache.get("key"), program)

  def test_jax_uses_it(self):
    compilation_cache.reset_cache()
    self.addCleanup(compilation_cache.reset_cache)
    use_compilation_cache(str(self.directory))
    self.assertEqual(jax.config.jax_persistent_cache_enable_xla_caches, "none")
    seconds = "jax_persistent_cache_min_compile_time_secs"
    self.addCleanup(jax.config.update, seconds, getattr(jax.config, seconds))
    jax.config.update(seconds, 0.0)
    make = lambda: jax.jit(lambda x: x * 3.25 + 1).lower(1.0).compile()
    make()
    (file,) = self.directory.glob("*-checked")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    jax.clear_caches()
    with self.assertLogs("absl", "WARNING") as logs:
      self.assertEqual(make()(1.0), 4.25)
    self.assertIn("is damaged; it is compiled again", logs.output[0])
    self.assertNotEqual(file.read_bytes()[-1], content[-1] ^ 1)
    jax.clear_caches()
    with mock.patch("absl.logging.warning", self.fail):
      self.assertEqual(make()(1.0), 4.25)

  def test_none_is_none_whatever_the_environment_says(self):
    jax.config.update("jax_compilation_cache_dir", str(self.directory))
    use_compilation_cache("")
    self.assertIsNone(jax.config.jax_compilation_cache_dir)


if __name__ == "__main__":
  absltest.main()
