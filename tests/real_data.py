"""Where the tests find real datasets, and why they skip where there are none."""

import os
import pathlib
import unittest

_DEFAULT = pathlib.Path(__file__).parents[1].parent / "shared" / "data"


def path(name: str) -> pathlib.Path:
  """The folder of the real dataset `name`, or a skipped test."""
  root = pathlib.Path(os.environ.get("JSHARP_DATA_DIR", _DEFAULT))
  if not (root / name).is_dir():
    raise unittest.SkipTest(
      f"no real data at {root / name}; set JSHARP_DATA_DIR to a folder with {name}/"
    )
  return root / name
