"""The code on the pages of docs/ runs, from top to bottom; their links exist."""

import pathlib
import re

import jax
from absl.testing import absltest, parameterized

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


class DocsTest(parameterized.TestCase):
  @parameterized.parameters(*PAGES)
  def test_code_runs(self, page):
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    namespace = {}
    for block in blocks:
      code = compile(block, page, "exec")
      title = block.strip().splitlines()[0]
      with self.subTest(title), jax.numpy_dtype_promotion("standard"):
        exec(code, namespace)
    if page == "sam.md":
      self.assertGreater(len(blocks), 10)

  @parameterized.parameters(*PAGES)
  def test_links_exist(self, page):
    named = re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text())
    self.assertEqual([name for name in named if not (DOCS / name).exists()], [])


if __name__ == "__main__":
  absltest.main()
