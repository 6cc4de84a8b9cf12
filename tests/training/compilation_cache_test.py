"""A directory for compiled programs that is one user's alone."""

import pathlib
import stat
import tempfile

import jax
from absl.testing import absltest

from jsharp.training import use_compilation_cache


class CompilationCacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    before = jax.config.jax_compilation_cache_dir
    self.addCleanup(jax.config.update, "jax_compilation_cache_dir", before)
    self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_is_made_for_the_user_alone(self):
    use_compilation_cache(str(self.directory / "a" / "b"))
    self.assertEqual(stat.S_IMODE((self.directory / "a" / "b").stat().st_mode), 0o700)

  def test_refuses_what_others_can_write_to(self):
    self.directory.chmod(0o777)
    with self.assertRaisesRegex(ValueError, "compilation_cache_dir.*chmod 700"):
      use_compilation_cache(str(self.directory))


if __name__ == "__main__":
  absltest.main()
