"""The wheel and the source distribution, built as they are published."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile

from absl.testing import absltest

import jsharp

ROOT = pathlib.Path(__file__).parents[1]
_MOST_BYTES = 5_000_000


class PackagingTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    for module in ("build", "twine"):
      if importlib.util.find_spec(module) is None:
        raise unittest.SkipTest(f"{module} is not installed: pip install '.[lint]'")
    directory = cls.enterClassContext(tempfile.TemporaryDirectory())
    copy, out = pathlib.Path(directory, "copy"), pathlib.Path(directory, "dist")
    # Building writes beside the sources, and takes what lies there.
    tracked = subprocess.run(
      ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    for name in tracked.stdout.split("\0"):
      if name and (ROOT / name).is_file():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--outdir", out, copy]
    cls.done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    cls.built = sorted(out.glob("*"))

  def test_they_are_built_and_fit_the_index(self):
    self.assertEqual(self.done.returncode, 0, self.done.stdout + self.done.stderr)
    wheel, sdist = self.built
    self.assertEqual(wheel.name, f"jsharp-{jsharp.__version__}-py3-none-any.whl")
    self.assertEqual(sdist.name, f"jsharp-{jsharp.__version__}.tar.gz")
    command = [sys.executable, "-m", "twine", "check", "--strict", wheel, sdist]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
    self.assertLess(max(path.stat().st_size for path in self.built), _MOST_BYTES)

  def test_the_wheel_holds_the_library_and_its_learners_alone(self):
    with zipfile.ZipFile(self.built[0]) as wheel:
      names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {
      path.relative_to(ROOT).as_posix()
      for path in (ROOT / "jsharp").rglob("*")
      if path.is_file() and path.suffix in (".py", ".typed", ".safetensors", ".json")
    }
    self.assertEqual(package - names, set())
    self.assertEqual([name for name in names if not name.startswith("jsharp/")], [])
    self.assertEqual([name for name in names if "_test" in name], [])

  def test_the_sources_are_whole(self):
    with tarfile.open(self.built[1]) as sdist:
      names = {name.partition("/")[2] for name in sdist.getnames()}
    for name in ("requirements.txt", "setup.py", "LICENSE", "CHANGELOG.md"):
      self.assertIn(name, names)


if __name__ == "__main__":
  absltest.main()
