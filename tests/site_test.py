"""The site: all public names, tutorials that ran, and no warning."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest

import jsharp

ROOT = pathlib.Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


class SiteTest(absltest.TestCase):
  def test_every_public_module_has_a_page_of_the_reference(self):
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    listed = (ROOT / "docs" / "api" / "index.md").read_text()
    modules = set(jsharp._MODULES)
    self.assertEqual(pages, modules)
    for name in modules:
      self.assertRegex(listed, rf"(?m)^{name}$")
      text = (ROOT / "docs" / "api" / f"{name}.md").read_text()
      self.assertIn(f".. automodule:: jsharp.{name}\n   :members:", text)
      is_package = (ROOT / "jsharp" / name).is_dir()
      self.assertEqual(":imported-members:" in text, is_package)

  def test_names_of_jsharp_itself_are_listed(self):
    listed = (ROOT / "docs" / "api" / "index.md").read_text()
    named = set(
      re.findall(r"`(\w+)`", listed.partition("## Names of jsharp itself")[2])
    )
    names = {
      name
      for name in dir(jsharp)
      if not name.startswith("_") and name not in jsharp._MODULES
      if getattr(getattr(jsharp, name), "__module__", "").startswith("jsharp.")
    }
    self.assertEqual(named - {"NAME"}, names)

  def test_every_page_is_in_the_contents(self):
    index = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"(?m)^([a-z_/]+)$", index))
    docs = ROOT / "docs"
    found = [*docs.glob("*.md"), *docs.glob("how_to/*.md")]
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in found}
    pages -= {"index"}
    self.assertEqual(pages - listed, set())

  def test_every_tutorial_is_in_the_contents(self):
    index = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"(?m)^tutorials/(\w+)$", index)
    self.assertCountEqual(listed, [path.stem for path in TUTORIALS])

  def test_tutorials_are_stored_without_outputs(self):
    self.assertNotEmpty(TUTORIALS)
    for path in TUTORIALS:
      cells = json.loads(path.read_text())["cells"]
      self.assertEqual(cells[0]["cell_type"], "markdown")
      for cell in cells:
        if cell["cell_type"] == "code":
          self.assertEqual((cell["outputs"], cell["execution_count"]), ([], None))

  def test_it_is_built_without_a_warning(self):
    for module in ("sphinx", "myst_nb", "furo", "ipykernel", "equinox"):
      if importlib.util.find_spec(module) is None:
        self.skipTest(f"{module} is not installed: pip install '.[docs]'")
    with tempfile.TemporaryDirectory() as out:
      done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", ROOT / "docs", out],
        capture_output=True,
        text=True,
        timeout=2400,  # Where no tutorial is in the cache, all of them run.
        cwd=ROOT,
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      for module in jsharp._MODULES:
        page = (pathlib.Path(out) / "api" / f"{module}.html").read_text()
        for name in getattr(getattr(jsharp, module), "__all__", ()):
          there = re.search(rf'id="jsharp[\w.]*\.{name}"', page)
          self.assertTrue(there, f"jsharp.{module}.{name} is on no page")
      for path in TUTORIALS:
        page = (pathlib.Path(out) / "tutorials" / f"{path.stem}.html").read_text()
        last = page.split('class="cell_input')[-1]
        self.assertRegex(last, r'<img [^>]*src="\.\./_images/\w+\.png"')
        for noise in ("Traceback (most", "cpu_aot_loader", "UserWarning"):
          self.assertNotIn(noise, page)


if __name__ == "__main__":
  absltest.main()
