"""Measurements in order, each recorded in a JSON file the moment it is done."""

import json
import pathlib
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from jsharp._files import write_atomically

Case = Callable[[dict[str, Any]], Any]
"""`case(values) -> value`, ready for JSON; `values` are those of the cases before."""


def read(path: pathlib.Path) -> dict[str, Any]:
  """The record in a file; an empty one if there is no file."""
  found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
  return {"finished": False, "cases": {}, **found}


def write(path: pathlib.Path, record: dict[str, Any]) -> None:
  """Replaces the record in a file."""
  write_atomically(path, json.dumps(record, indent=1).encode())


def run(
  path: pathlib.Path,
  cases: Mapping[str, Case],
  *,
  about: dict[str, Any],
  threads: int = 1,
) -> None:
  """Runs the cases that have no value yet, and writes the file after each.

  A case that raises is recorded with its traceback, and is run again by the next call.

  Args:
    path: the file.
    cases: the cases by name, in order of importance.
    about: facts to record, such as the device and the versions.
    threads: how many cases run at a time.
  """
  record = read(path)
  record["about"] = about
  values = {k: v["value"] for k, v in record["cases"].items() if "value" in v}
  left = [name for name in cases if name not in values]

  def one(name: str) -> tuple[str, dict[str, Any]]:
    started = time.monotonic()
    outcome: dict[str, Any]
    try:
      outcome = {"value": cases[name](values)}
      values[name] = outcome["value"]
    except Exception:
      outcome = {"error": traceback.format_exc()}
    return name, outcome | {"seconds": round(time.monotonic() - started, 2)}

  with ThreadPoolExecutor(threads) as pool:
    for done in as_completed([pool.submit(one, name) for name in left]):
      name, outcome = done.result()
      record["cases"][name] = outcome
      write(path, record)
  record["finished"] = all(name in values for name in cases)
  record.pop("stopped", None)
  write(path, record)
