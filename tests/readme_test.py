"""The README's commands have their form, its code runs, its links and files exist."""

import pathlib
import re

import jax
from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def first_block(heading):
  section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
  return re.search(r"^```\w*\n(.*?)^```", section, re.DOTALL | re.MULTILINE).group(1)


class ReadmeTest(parameterized.TestCase):
  @parameterized.parameters("Quickstart", "Tests")
  def test_a_section_begins_with_one_command_line(self, heading):
    section = README.split(f"## {heading}\n", 1)[1]
    self.assertTrue(section.lstrip().startswith("```"))
    self.assertLen(first_block(heading).strip().splitlines(), 1)

  def test_files_that_are_named_exist(self):
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    named += re.findall(r"--flagfile=(\S+)", README)
    self.assertNotEmpty(named)
    self.assertEqual([name for name in named if not (ROOT / name).exists()], [])

  def test_its_code_runs(self):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    self.assertLen(blocks, 3)
    for block in blocks:
      with jax.numpy_dtype_promotion("standard"):
        exec(block, {})


if __name__ == "__main__":
  absltest.main()
