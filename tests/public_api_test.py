"""What a user can import: names that resolve, docstrings, runnable examples."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

from absl.testing import absltest, parameterized

import jsharp
from jsharp.options import Options

ROOT = pathlib.Path(__file__).parents[1]
IMPORTS = """
import importlib
import sys

import jsharp

print(sorted({{"jax", "matplotlib"}} & set(sys.modules)))


def first(find):
  for name in [name for name in sys.modules if name.partition(".")[0] == "jsharp"]:
    del sys.modules[name]
  import jsharp

  return find(jsharp).__name__


print(
  first(lambda jsharp: jsharp.models.Conv4),
  first(lambda jsharp: jsharp.data.characters.load),
  first(lambda jsharp: jsharp.sam),
)
for name in {names}:
  importlib.import_module(name)
from jax._src import xla_bridge

print("matplotlib" in sys.modules, xla_bridge.backends_are_initialized())
"""


def public_modules():
  """The modules of jsharp without a leading underscore in their path."""
  for found in pkgutil.walk_packages(jsharp.__path__, "jsharp."):
    # `jsharp.evaluate` is a function; the module of that name is a program alone.
    if "._" not in found.name and found.name != "jsharp.evaluate":
      yield importlib.import_module(found.name)


def public_objects():
  """Functions and classes that a public module defines or exports, once each."""
  objects = {}
  for module in (jsharp, *public_modules()):
    exported = getattr(module, "__all__", ())
    for name, value in inspect.getmembers(module, is_function_or_class):
      own = value.__module__ == module.__name__ and not name.startswith("_")
      if own or name in exported:
        objects[f"{value.__module__}.{name}"] = value
  return objects


def is_function_or_class(value):
  return inspect.isroutine(value) or inspect.isclass(value)


def exported_aliases():
  """Names of types such as `SampleFn` that some `__all__` holds."""
  for module in (jsharp, *public_modules()):
    for name in getattr(module, "__all__", ()):
      value = getattr(module, name)
      if not is_function_or_class(value) and not inspect.ismodule(value):
        yield name


def is_record(value):
  """Whether a class only holds values: its fields need words, not an example.

  So does a description: each of its options has a help text (tests/catalogue_test.py).
  """
  if not inspect.isclass(value):
    return False
  if issubclass(value, Options):
    return True
  names = [name for name in dir(value) if not name.startswith("_")] + ["__call__"]
  has_methods = any(inspect.isfunction(getattr(value, name)) for name in names)
  return issubclass(value, Exception | tuple) or (
    dataclasses.is_dataclass(value) and not has_methods
  )


def field_names(value):
  if issubclass(value, Options):
    return []
  if dataclasses.is_dataclass(value):
    return [field.name for field in dataclasses.fields(value)]
  return getattr(value, "_fields", ())


def run(code):
  """The output of a fresh Python."""
  return subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout


class ImportTest(parameterized.TestCase):
  def test_every_name_resolves(self):
    for module in (jsharp, *public_modules()):
      for name in getattr(module, "__all__", ()):
        with self.subTest(f"{module.__name__}.{name}"):
          self.assertIn(name, dir(module))
          self.assertIsNotNone(getattr(module, name))

  def test_type_checkers_see_the_same_names(self):
    tree = ast.parse((ROOT / "jsharp/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
      module = importlib.import_module(node.module)
      for alias in node.names:
        names = module.__all__ if alias.name == "*" else [alias.name]
        seen |= {name: getattr(module, name) for name in names}
    found = {name: getattr(jsharp, name) for name in jsharp.__all__}
    self.assertEqual({name: seen.get(name) for name in found}, found)

  def test_an_unknown_name_is_refused(self):
    with self.assertRaisesRegex(AttributeError, "'jsharp' has no attribute 'maml2'"):
      _ = jsharp.maml2

  def test_imports_in_a_fresh_process(self):
    names = [module.__name__ for module in public_modules()]
    alone, one_is_enough, devices = run(IMPORTS.format(names=names)).splitlines()
    with self.subTest("import alone loads neither jax nor matplotlib"):
      self.assertEqual(alone, "[]")
    with self.subTest("one import is enough"):
      self.assertEqual(one_is_enough, "Conv4 load sam")
    with self.subTest("no module loads matplotlib or starts a device"):
      self.assertEqual(devices, "False False")


class DocstringTest(parameterized.TestCase):
  def test_every_public_name_has_a_summary(self):
    for name, value in public_objects().items():
      with self.subTest(name):
        # A NamedTuple or dataclass without a docstring has its signature as one.
        self.assertNotStartsWith(value.__doc__ or "", f"{value.__name__}(")
        summary = (value.__doc__ or "").strip().partition("\n\n")[0]
        self.assertRegex(summary, r"(?s)^\S.{9,}[.?:]$")

  def test_every_alias_is_described_where_it_is_defined(self):
    sources = [path.read_text() for path in (ROOT / "jsharp").rglob("*.py")]
    for name in set(exported_aliases()):
      with self.subTest(name):
        described = re.compile(rf'^{name} = [^"]+\n""".*\w', re.MULTILINE)
        self.assertTrue(any(map(described.search, sources)))

  def test_every_function_has_an_example_with_an_outcome(self):
    parser = doctest.DocTestParser()
    for name, value in public_objects().items():
      if not is_record(value):
        with self.subTest(name):
          examples = parser.get_examples(value.__doc__ or "")
          self.assertTrue(any(e.want or e.exc_msg for e in examples), value.__doc__)

  def test_every_field_of_a_record_is_described(self):
    for name, value in public_objects().items():
      if is_record(value):
        for field in field_names(value):
          with self.subTest(f"{name}.{field}"):
            self.assertRegex(value.__doc__, rf"(?m)^    {field}: \S")


if __name__ == "__main__":
  absltest.main()
