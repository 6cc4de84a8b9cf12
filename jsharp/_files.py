"""Files that are either the old or the new one, whenever the process dies."""

import contextlib
import os
import pathlib


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


def _synchronise_directory(directory: pathlib.Path) -> None:
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
