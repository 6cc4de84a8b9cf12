"""The code on the pages of docs/ runs; the links, names and files on them exist."""

import functools
import importlib
import json
import pathlib
import re

import jax
from absl.testing import absltest, parameterized

import jsharp

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = (".", "how_to")
PAGES = sorted(
  path.relative_to(DOCS).as_posix()
  for folder in FOLDERS
  for path in (DOCS / folder).glob("*.md")
)
TUTORIALS = sorted(path.name for path in (DOCS / "tutorials").glob("*.ipynb"))
LINKING = [*PAGES, *(f"tutorials/{name}" for name in TUTORIALS)]
ROOT_PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
TEXTS = [*ROOT_PAGES, *(f"docs/{page}" for page in LINKING)]


def read(path):
  """The text of a page; all cells of a notebook."""
  text = path.read_text()
  if path.suffix != ".ipynb":
    return text
  return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def resolve(name):
  """A dotted name of jsharp; a private module has to be imported."""
  try:
    return functools.reduce(getattr, name.split(".")[1:], jsharp)
  except AttributeError:
    return importlib.import_module(name)


class DocsTest(parameterized.TestCase):
  @parameterized.parameters("CONTRIBUTING.md", *(f"docs/{p}" for p in PAGES))
  def test_code_runs(self, page):
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    namespace = {}
    for block in blocks:
      code = compile(block, page, "exec")
      title = block.strip().splitlines()[0]
      with self.subTest(title), jax.numpy_dtype_promotion("standard"):
        exec(code, namespace)
    self.assertLen(blocks, text.count("```python"))

  @parameterized.parameters(*LINKING)
  def test_links_exist(self, page):
    path = DOCS / page
    named = re.findall(r"\]\(([^)#:\s]+)\)", read(path))
    self.assertEqual([x for x in named if not (path.parent / x).exists()], [])

  @parameterized.parameters(*TEXTS)
  def test_names_of_the_library_exist(self, page):
    text = read(ROOT / page)
    for name in re.findall(r"`(?:[a-z]+\()?(jsharp(?:\.[A-Za-z_]\w*)+)", text):
      with self.subTest(name):
        resolve(name)

  @parameterized.parameters(*TEXTS)
  def test_learners_that_come_with_jsharp_exist(self, page):
    text = read(ROOT / page)
    named = re.findall(r"\b((?:omniglot|characters|miniimagenet)-[a-z_-]+)\b", text)
    self.assertEmpty(set(named) - set(jsharp.models_available()))

  @parameterized.parameters(*TEXTS)
  def test_files_of_the_library_exist(self, page):
    text = read(ROOT / page)
    for name in re.findall(
      r"`((?:jsharp|tests|experiments|benchmarks)/[\w./]*)`", text
    ):
      with self.subTest(name):
        self.assertTrue((ROOT / name).exists())


if __name__ == "__main__":
  absltest.main()
