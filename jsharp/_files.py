"""Files that are either the old or the new one, whenever the process dies."""

import contextlib
import json
import os
import pathlib
from typing import Any


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
  """Creates or replaces a file, all or nothing.

  The bytes go to `path` + `.tmp` beside it and are synchronised to the disk, the
  file is renamed, and the directory entry is synchronised. When that fails (a full
  disk), `path` is untouched and the temporary file is gone. After a kill the
  temporary file may remain; the next write of `path` replaces it.

  Args:
    path: the file to write; its directory must exist.
    content: all of its bytes.

  Raises:
    OSError: if writing fails. The message names `path`; the class and the errno
      are those of the failure.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   path = pathlib.Path(directory) / "note.txt"
    ...   write_atomically(path, b"new")
    ...   path.read_text()
    'new'
  """
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + ".tmp")
  try:
    with temporary.open("wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    _synchronise_directory(path.parent)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise type(error)(
      error.errno,
      f"cannot write {path} ({error.strerror}); what was there before is intact. "
      "Check the free space and the permissions of its directory",
    ) from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
  """Creates or replaces a file of strict JSON, all or nothing.

  Args:
    path: the file to write; its directory must exist.
    content: numbers, strings, None, and lists and dicts of them.

  Raises:
    OSError: if writing fails.
    ValueError: for NaN or infinity, which JSON lacks.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   write_json(f"{directory}/a.json", {"steps": 3})
    ...   read_table(f"{directory}/a.json")
    {'steps': 3}
  """
  text = json.dumps(content, indent=2, allow_nan=False) + "\n"
  write_atomically(path, text.encode())


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a JSON file that holds a table.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is no JSON or no table; the message names it.

  Example:
    See `write_json`.
  """
  path = pathlib.Path(path)
  try:
    content = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} is damaged: it holds no table")
  return content


def _synchronise_directory(directory: pathlib.Path) -> None:
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
