"""What can be chosen by name: read from source, imported, or somebody's own."""

import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

from jsharp import _catalogue
from jsharp.options import MISSING, fields

ROOT = pathlib.Path(__file__).parents[1]
KINDS = tuple(_catalogue._PACKAGES)
OWN = """
import dataclasses
from typing import ClassVar
from jsharp.algorithms.maml import MAML
from jsharp.options import option

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(MAML):
  \"\"\"My own.\"\"\"
  name: ClassVar[str] = "mine"
  warmth: float = option(0.5, "How warm.")

def mine():
  pass

NUMBER = 3
"""


class OutlineTest(parameterized.TestCase):
  @parameterized.parameters(*KINDS)
  def test_outlines_are_the_classes_that_they_stand_for(self, kind):
    for name, outline in _catalogue.outlines(kind).items():
      real = _catalogue.real(outline.__module__, outline.__name__)
      self.assertEqual(real.name, name)
      self.assertEqual(outline.__doc__, real.__doc__)
      facts = [
        [(f.name, f.type, f.default, f.help, f.role, f.identity) for f in fields(cls)]
        for cls in (outline, real)
      ]
      self.assertEqual(*facts, name)
      for field in fields(outline):
        self.assertTrue(field.help, f"{name}.{field.name} has no help")
        self.assertIsNot(field.default, MISSING, f"{name}.{field.name}")
        for cls in (outline, real):
          (check,) = [f.check for f in fields(cls) if f.name == field.name]
          if check is not None and field.default is not None:
            self.assertTrue(check.accepts(field.default), f"{name}.{field.name}")

  def test_outlines_are_read_without_jax(self):
    code = (
      "import sys\n"
      "from jsharp import _catalogue\n"
      f"print([len(_catalogue.outlines(kind)) for kind in {KINDS}])\n"
      "print(sorted({'jax', 'numpy', 'flax', 'optax'} & set(sys.modules)))\n"
    )
    ran = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    counts, heavy = ran.stdout.splitlines()
    self.assertEqual(heavy, "[]", ran.stderr)
    self.assertNotIn(" 0", counts)


class FindTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enter_context(tempfile.TemporaryDirectory())
    (pathlib.Path(directory) / "own_algorithm.py").write_text(OWN)
    sys.path.insert(0, directory)
    self.addCleanup(sys.path.remove, directory)
    self.addCleanup(sys.modules.pop, "own_algorithm", None)
    self.addCleanup(_catalogue._foreign.cache_clear)

  def test_ones_own_by_class_or_by_name(self):
    for name in ("own_algorithm:Mine", "own_algorithm:mine"):
      found = _catalogue.find("algorithm", name)
      self.assertEqual((found.name, found().warmth), (name, 0.5))

  def test_a_prepared_dataset_has_its_own_name(self):
    self.assertEqual(_catalogue.find("dataset", "tfds:cifar100").name, "tfds:cifar100")

  @parameterized.parameters(
    ("newton", "no algorithm 'newton'; choose one of .*maml.*, or .*module:Class"),
    ("nowhere:Thing", "nowhere:Thing cannot be imported .*PYTHONPATH"),
    ("own_algorithm:Other", "cannot be imported .*Other"),
    ("own_algorithm:NUMBER", "NUMBER describes no algorithm"),
  )
  def test_what_is_not_there_is_refused(self, name, message):
    with self.assertRaisesRegex(ValueError, message):
      _catalogue.find("algorithm", name)


if __name__ == "__main__":
  absltest.main()
