"""The classes that a prepared dataset's `features.json` names.

tensorflow-datasets imports the module of every class named there, and importing a
module runs it.
"""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from jsharp._files import read_bytes

_KEYS = ("pythonClassName", "python_class_name", "type")


def check(root: pathlib.Path, name: str) -> None:
  """Refuse a dataset whose features would make a foreign module be imported.

  Args:
    root: the directory that holds prepared datasets.
    name: `dataset`, `dataset/config` or `dataset/config:version`.

  Raises:
    ValueError: a file `features.json` of this dataset is damaged, or names a class
      that is neither tensorflow-datasets' own nor of a module imported already.
  """
  dataset = _plain(name.split("/")[0].split(":")[0])
  files = [*root.glob("*/*/features.json"), *root.glob("*/*/*/features.json")]
  for file in files:
    if _plain(file.relative_to(root).parts[0]) != dataset:
      continue
    try:
      named = sorted(set(_names(json.loads(read_bytes(file, most=2**24)))))
    except (ValueError, RecursionError) as error:
      raise ValueError(
        f"{file} is damaged ({type(error).__name__}: {error}). Prepare {name} again."
      ) from error
    for class_name in named:
      module = class_name.rpartition(".")[0]
      if module.split(".")[0] not in ("", "tensorflow_datasets") and (
        module not in sys.modules
      ):
        raise ValueError(
          f"{file} names the class {class_name}, which is not one of "
          "tensorflow-datasets: loading it would run that module, wherever Python "
          f"finds it. If you trust it, import {module} first."
        )


def _plain(name: str) -> str:
  """A dataset's name is the same in snake case and in camel case."""
  return name.replace("_", "").lower()


def _names(value: Any) -> Iterator[str]:
  """Every class name in the file, those in JSON inside of strings included."""
  if isinstance(value, dict):
    for key, inner in value.items():
      if key in _KEYS and isinstance(inner, str):
        yield inner
      else:
        yield from _names(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _names(inner)
  elif isinstance(value, str) and value.lstrip().startswith(("{", "[")):
    yield from _names(json.loads(value))
