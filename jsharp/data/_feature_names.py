"""Checks the classes named in a prepared dataset's `features.json`.

tensorflow-datasets imports the module of every class named there, and importing a
module runs its code.
"""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from jsharp._files import read_bytes

_KEYS = ("pythonClassName", "python_class_name", "type")


def check(root: pathlib.Path, name: str) -> None:
  """Rejects a dataset whose features would import a foreign module.

  Args:
    root: the directory that holds prepared datasets.
    name: `dataset`, `dataset/config` or `dataset/config:version`.

  Raises:
    ValueError: if a file `features.json` of this dataset is damaged, or names a class
      of a module that is neither part of tensorflow-datasets nor already imported.
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
  """A dataset's name without the difference between snake case and camel case."""
  return name.replace("_", "").lower()


def _names(value: Any) -> Iterator[str]:
  """All class names in the file, including those in JSON inside strings."""
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
