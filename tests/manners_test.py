"""House rules read off the source: imports, names, docstrings, examples."""

import ast
import pathlib

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / "jsharp").rglob("*.py"))

# Rooms from the bottom up; a module may import from rooms strictly below its own.
ROOMS = (
  ("types", "tree", "_checks", "_files", "_leaf_archive", "_cores"),
  ("losses", "normalization", "precision", "nn", "data"),
  ("models", "perturbations"),
  ("core",),
  ("algorithms", "analysis"),
  ("training",),
  ("evaluation",),
)
LEVEL = {name: level for level, room in enumerate(ROOMS) for name in room}


def room_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT / "jsharp").parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST):
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == "jsharp":
        names = [f"jsharp.{alias.name}" for alias in node.names]
      else:
        names = [node.module]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    for name in names:
      parts = name.split(".")
      if parts[0] == "jsharp" and len(parts) > 1:
        yield parts[1]
      elif parts[0] in ("experiments", "tests", "benchmarks"):
        yield parts[0]


def public_definitions(tree: ast.Module):
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
      yield node


class MannersTest(parameterized.TestCase):
  def test_every_module_has_a_room(self):
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    self.assertEqual(rooms - set(LEVEL), set())

  def test_imports_point_down(self):
    wrong = []
    for path in SOURCES:
      room = room_of(path)
      if room == "__init__":
        continue
      for imported in imported_rooms(ast.parse(path.read_text())):
        if imported != room and LEVEL.get(imported, 99) >= LEVEL[room]:
          wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    self.assertEqual(wrong, [])

  def test_words(self):
    forbidden = {"rng", "n_way", "k_shot", "num_ways", "fast_weights", "theta", "e_w"}
    wrong = []
    for path in SOURCES:
      for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(node, "id", None) or getattr(node, "arg", None)
        if name in forbidden:
          wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    self.assertEqual(wrong, [])

  def test_modules_are_short(self):
    long = {
      str(path.relative_to(ROOT)): lines
      for path in (*SOURCES, *(ROOT / "experiments").rglob("*.py"))
      if (lines := len(path.read_text().splitlines())) > 300
    }
    self.assertEqual(long, {})

  def test_public_functions_have_a_runnable_example(self):
    missing = []
    for path in SOURCES:
      internal = path.name.startswith("_")
      for node in public_definitions(ast.parse(path.read_text())):
        text = ast.get_docstring(node) or ""
        function = isinstance(node, ast.FunctionDef)
        wanted = ">>>" if function and not internal else "."
        if wanted not in text:
          missing.append(f"{path.relative_to(ROOT)}:{node.name}")
    self.assertEqual(missing, [])

  def test_images_are_opened_by_named_formats(self):
    # Else Pillow tries all it knows, of which EPS starts a program.
    wrong, opened = [], 0
    for folder in ("jsharp", "experiments", "benchmarks"):
      for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
          if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
            opened += 1
            if "formats" not in {keyword.arg for keyword in node.keywords}:
              wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    self.assertEqual(wrong, [])
    self.assertGreater(opened, 0)

  def test_every_file_of_experiments_is_imported_by_nobody_else(self):
    wrong = [
      str(path.relative_to(ROOT))
      for path in SOURCES
      if "experiments" in set(imported_rooms(ast.parse(path.read_text())))
    ]
    self.assertEqual(wrong, [])


if __name__ == "__main__":
  absltest.main()
