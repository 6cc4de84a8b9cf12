"""Everything that can be chosen by name, found by scanning the library.

A description is in the same file as the code that it describes, which needs JAX. So
that `--help` and errors about flags are fast, `outline` reads the descriptions of a
module from its source: only the classes derived from `jsharp.options.Options`, without
their methods, and the constants that they name. `find` imports the real class.
"""

import ast
import functools
import importlib
import inspect
import pathlib
import sys
from typing import Any

from jsharp.options import Options

_ROOT = pathlib.Path(__file__).parent
_PACKAGES = {
  "algorithm": "algorithms",
  "network": "models",
  "classifier network": "models",
  "dataset": "data",
  "labelled dataset": "data",
  "sharpness-aware optimizer": "perturbations",
  "environment": "control",
  "outer update": "control",
  "run": "training",
}


@functools.cache
def outline(module: str) -> dict[str, Any]:
  """The descriptions in a module and the names they use, without importing it.

  Args:
    module: the dotted name of a module of jsharp.

  Returns:
    The values by name. Classes have all fields and class attributes but no methods.

  Example:
    >>> outline("jsharp.algorithms.ridge")["Ridge"].name
    'ridge'
  """
  return _Outline(module).found


class _Outline:
  """The outline of one module."""

  def __init__(self, module: str):
    path = _ROOT.joinpath(*module.split(".")[1:])
    is_package = path.is_dir()
    source = path / "__init__.py" if is_package else path.with_suffix(".py")
    self.found: dict[str, Any] = {"__name__": module}
    self.imported: dict[str, tuple[str, str]] = {}
    self.assigned: dict[str, ast.expr] = {}
    tree = ast.parse(source.read_text(), str(source))
    for node in tree.body:
      match node:
        case ast.ImportFrom(module=str(origin)):
          for alias in node.names:
            self.imported[alias.asname or alias.name] = (origin, alias.name)
        case ast.Import():
          for alias in node.names:
            self.imported[alias.asname or alias.name] = (alias.name, "")
        case ast.Assign(targets=[ast.Name(id=name)]):
          self.assigned[name] = node.value
        case ast.ClassDef() if any(map(self._is_description, node.bases)):
          self._define(node)
    if is_package:  # Names that the package re-exports.
      for name, (origin, _) in self.imported.items():
        if origin.startswith(module):
          self._name(name)

  def _name(self, name: str) -> Any:
    """The value of a name that a description uses; None if it is not read."""
    if name not in self.found:
      if name in self.assigned:
        expression = self.assigned[name]
        self._names_of(expression)
        code = compile(ast.Expression(expression), self.found["__name__"], "eval")
        self.found[name] = eval(code, self.found)
      elif name in self.imported:
        self.found[name] = _resolve(*self.imported[name])
    return self.found.get(name)

  def _names_of(self, node: ast.AST) -> None:
    for part in ast.walk(node):
      if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
        self._name(part.id)

  def _is_description(self, base: ast.expr) -> bool:
    if not isinstance(base, ast.Name):
      return False
    if base.id not in self.found:
      if not self.imported.get(base.id, ("",))[0].startswith("jsharp"):
        return False
      self._name(base.id)
    value = self.found[base.id]
    return isinstance(value, type) and issubclass(value, Options)

  def _define(self, node: ast.ClassDef) -> None:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    node.body = [part for part in node.body if not isinstance(part, functions)]
    self._names_of(node)
    exec(compile(ast.Module([node], []), self.found["__name__"], "exec"), self.found)


def _resolve(module: str, name: str) -> Any:
  if module == "jsharp.options" or not module.startswith("jsharp"):
    if module.partition(".")[0] not in sys.stdlib_module_names | {"jsharp"}:
      return None  # A slow import; descriptions do not use it.
    found = importlib.import_module(module)
    return getattr(found, name) if name else found
  return outline(module).get(name)


@functools.cache
def outlines(kind: str) -> dict[str, type[Options]]:
  """All descriptions of one kind in the library, by name, without importing them.

  Args:
    kind: "algorithm", "network", "dataset", ...

  Returns:
    The classes from `outline`, in the order of their files.

  Example:
    >>> "maml" in outlines("algorithm")
    True
  """
  package = _PACKAGES[kind]
  found = {}
  for path in sorted((_ROOT / package).glob("[!_]*.py")):
    module = f"jsharp.{package}.{path.stem}"
    for value in outline(module).values():
      is_own = isinstance(value, type) and value.__module__ == module
      if is_own and getattr(value, "kind", "") == kind and vars(value).get("name"):
        found[value.name] = value
  return found


def find(kind: type[Options] | str, name: str) -> type[Options]:
  """The class of a description.

  Args:
    kind: the kind, or the base class of that kind.
    name: a name from `outlines`, or `module:attribute` for your own: the attribute is
      the description's class, or the object that a description in that module names.

  Returns:
    The class, imported.

  Raises:
    ValueError: if there is no such class; the message names the fix.

  Example:
    >>> find("algorithm", "maml").__name__
    'MAML'
  """
  kind = kind if isinstance(kind, str) else kind.kind
  known = outlines(kind)
  prefix = name.partition(":")[0] + ":"
  key = prefix if prefix in known and name != prefix else name
  if ":" in name and key == name:
    return _foreign(kind, name)
  if key not in known:
    raise ValueError(
      f"there is no {kind} {name!r}; choose one of {', '.join(known)}, or name your "
      "own as module:Class"
    )
  found: Any = real(known[key].__module__, known[key].__name__)
  return found if key == name else _named(found, name)


def real(module: str, name: str) -> type[Options]:
  """The class of a description, imported.

  Example:
    >>> real("jsharp.training.options", "Machine").__name__
    'Machine'
  """
  return getattr(importlib.import_module(module), name)


@functools.cache
def _named(cls: Any, name: str) -> type[Options]:
  """A subclass with another name, still a frozen dataclass."""
  return type(cls.__name__, (cls,), {"name": name, "__module__": cls.__module__})


@functools.cache
def _foreign(kind: str, name: str) -> type[Options]:
  module_name, _, attribute = name.partition(":")
  try:
    module = importlib.import_module(module_name)
    value = getattr(module, attribute)
  except (ImportError, AttributeError) as error:
    fix = "put the directory of its file on PYTHONPATH and name it as module:Class"
    if getattr(error, "name", None) != module_name.partition(".")[0]:
      fix = "fix that file, or name another class in it"
    raise ValueError(
      f"the {kind} {name} cannot be imported ({error}); {fix}"
    ) from error
  found: list[Any] = [
    cls
    for cls in vars(module).values()
    if inspect.isclass(cls)
    and issubclass(cls, Options)
    and cls.kind == kind
    and (cls is value or cls.name == attribute)
  ]
  if not found:
    raise ValueError(
      f"{name} describes no {kind}: derive a frozen dataclass from "
      f"{_BASES[kind]} and name that class, or give it name = {attribute!r}"
    )
  return _named(found[0], name)


_BASES = {
  "algorithm": "jsharp.algorithms.Algorithm",
  "network": "jsharp.models.Network",
  "classifier network": "jsharp.models.ClassifierNetwork",
  "dataset": "jsharp.data.ImageSource",
  "labelled dataset": "jsharp.data.LabelledSource",
  "sharpness-aware optimizer": "jsharp.perturbations.SharpOptimizer",
  "environment": "jsharp.control.Environment",
  "outer update": "jsharp.control.OuterUpdate",
}
