"""Strict reading and atomic writing of all files that jsharp keeps.

Only regular files of bounded size are read, and a digest is verified if the file has
one. Writing replaces a file atomically and never follows a link.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

MAX_TABLE_BYTES = 2**28
"""The largest JSON file that is read; a result with a million tasks fits."""

_DIGEST = "sha256"
# The digest's own key may be what is damaged; its value still looks like a digest.
_LAST_ENTRY = re.compile(rb'"[0-9a-f]{64}"\s*}\s*\Z')


class FileError(ValueError):
  """A file that is damaged, too large, or of the wrong kind."""


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
  """Creates or replaces a file atomically.

  The bytes are written to a new file `path` + `.tmp` and synchronised to the disk, the
  file is renamed, and the directory entry is synchronised. A link at either path is
  replaced, not followed. If writing fails (a full disk), `path` is unchanged and the
  temporary file is removed. If the process is killed the temporary file may remain; the
  next write of `path` removes it.

  Args:
    path: the file to write; its directory must exist.
    content: all of its bytes.

  Raises:
    OSError: if writing fails, with the class and errno of the failure. The message
      names `path`.

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
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:  # O_EXCL: neither follows a link nor truncates.
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
      f"cannot write {path} ({error.strerror}); its earlier content is intact. "
      "Check the free space and the permissions of its directory",
    ) from error


@contextlib.contextmanager
def opened_to_append(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Opens a file for appending; creates it if it is missing.

  A symbolic link is not followed. A file with a second name (a hard link) is copied
  first, so the other name keeps its content.

  Args:
    path: the file; its directory must exist.

  Yields:
    The file. It is synchronised to the disk at the end.

  Raises:
    OSError: if it is a link or cannot be written; the message names it.
    FileError: if it is not a regular file.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   for _ in range(2):
    ...     with opened_to_append(f"{directory}/log") as file:
    ...       _ = file.write(b"line ")
    ...   read_bytes(f"{directory}/log", most=100)
    b'line line '
  """
  try:
    with open_own(path) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    raise type(error)(
      error.errno,
      f"cannot write {path} ({error.strerror}); check the free space and the "
      "permissions",
    ) from error


def open_own(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a file that no other name leads to, for reading and appending.

  Args:
    path: the file, created where it is missing; its directory must exist.

  Returns:
    The open file. Its content is kept.

  Raises:
    OSError: if it is a link or cannot be opened.
    FileError: if it is not a regular file.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   open_own(f"{directory}/lock").close()
  """
  # O_NONBLOCK: a FIFO would otherwise wait for its other end.
  flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
  flags |= os.O_RDWR | os.O_CREAT | os.O_APPEND
  try:
    descriptor = os.open(path, flags, 0o666)
  except OSError as error:
    if error.errno == errno.ELOOP:
      raise OSError(error.errno, "it is a link; remove it") from error
    raise
  status = os.fstat(descriptor)
  if not stat.S_ISREG(status.st_mode):
    os.close(descriptor)
    raise FileError(f"{path} is not a regular file; remove it")
  if status.st_nlink > 1:
    os.close(descriptor)
    write_atomically(path, read_bytes(path, most=MAX_TABLE_BYTES))
    descriptor = os.open(path, flags)
  return os.fdopen(descriptor, "a+b")


def open_regular(path: str | os.PathLike[str], *, most: int) -> BinaryIO:
  """Opens a regular file for reading.

  Args:
    path: the file, or a link to it.
    most: the largest allowed size in bytes.

  Returns:
    The open file.

  Raises:
    OSError: if it is missing or cannot be read.
    FileError: if it is a device, a FIFO or a socket, or is too large.

  Example:
    >>> open_regular("/dev/null", most=100)
    Traceback (most recent call last):
    jsharp._files.FileError: /dev/null is not a regular file; replace it by the ...
  """

  def opener(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)

  file = open(path, "rb", opener=opener)  # noqa: SIM115
  try:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
      raise FileError(f"{path} is not a regular file; replace it by the file itself")
    if status.st_size > most:
      raise FileError(
        f"{path} has {status.st_size:,} bytes, more than the limit of {most:,}; check "
        "that it is the right file"
      )
  except BaseException:
    file.close()
    raise
  return file


def read_bytes(path: str | os.PathLike[str], *, most: int) -> bytes:
  """Reads a regular file.

  Args:
    path: the file, or a link to it.
    most: the largest allowed size in bytes.

  Raises:
    OSError: if it is missing or cannot be read.
    FileError: as for `open_regular`.

  Example:
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...   read_bytes(file.name, most=100)
    b''
  """
  with open_regular(path, most=most) as file:
    size = os.fstat(file.fileno()).st_size
    content = file.read(size + 1)  # One more: some file systems report 0 bytes.
    if len(content) <= size:
      return content
  raise FileError(f"{path} has more bytes than it reports; copy it to a regular file")


def read_bytes_if_there(path: str | os.PathLike[str], *, most: int) -> bytes | None:
  """Reads a regular file; None if it does not exist.

  Raises:
    OSError: if it cannot be read.
    FileError: as for `open_regular`, and for a dangling link.

  Example:
    >>> read_bytes_if_there("/nowhere/at/all", most=100) is None
    True
  """
  try:
    return read_bytes(path, most=most)
  except FileNotFoundError as error:
    refuse_dangling(path)
    if error.errno != errno.ENOENT:
      raise
    return None


def composed(name: str) -> str:
  """A name with composed accents (Unicode NFC); macOS stores them decomposed.

  Example:
    >>> composed("e" + chr(0x301)) == chr(0xE9)
    True
  """
  return unicodedata.normalize("NFC", name)


def names_in(directory: str | os.PathLike[str]) -> list[str]:
  """The sorted names in a directory; empty if the directory does not exist.

  Raises:
    OSError: if it cannot be read.
    FileError: for a dangling link.

  Example:
    >>> names_in("/nowhere/at/all")
    []
  """
  try:
    return sorted(os.listdir(directory))
  except FileNotFoundError:
    refuse_dangling(directory)
    return []


def refuse_dangling(path: str | os.PathLike[str]) -> None:
  """Rejects a dangling link, whose target may exist but is not reachable now.

  Raises:
    FileError: if the path is a dangling link; the message names it.

  Example:
    >>> refuse_dangling("/nowhere")
  """
  if os.path.islink(path) and not os.path.exists(path):
    raise FileError(
      f"{path} is a link to {os.readlink(path)}, which does not exist; restore that, "
      "or remove the link"
    )


def write_json(
  path: str | os.PathLike[str],
  content: dict[str, Any],
  write: Callable[[str | os.PathLike[str], bytes], None] = write_atomically,
) -> None:
  """Creates or replaces a file of strict JSON atomically.

  Its last key, `sha256`, is the digest of the rest as `json.dumps` writes it.

  Args:
    path: the file to write; its directory must exist.
    content: a dict of numbers, strings, None, and lists and dicts of them.
    write: the function that writes the bytes.

  Raises:
    OSError: if writing fails.
    ValueError: for NaN or infinity, which JSON lacks, and for a key `sha256`.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   write_json(f"{directory}/a.json", {"steps": 3})
    ...   read_table(f"{directory}/a.json")
    {'steps': 3}
  """
  if _DIGEST in content:
    raise ValueError(f"the key {_DIGEST!r} is reserved; rename it")
  sealed = {**content, _DIGEST: _digest(content)}
  write(path, (json.dumps(sealed, indent=2, allow_nan=False) + "\n").encode())


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a JSON object from a file, and verifies its digest if it has one.

  Returns:
    The dict without its digest. Files of earlier versions have none.

  Raises:
    OSError: if it cannot be read.
    FileError: if it is not a JSON object or does not match its digest; the message
      names the file.

  Example:
    See `write_json`.
  """
  return parse_table(read_bytes(path, most=MAX_TABLE_BYTES), where=path)


def parse_table(text: bytes, *, where: object) -> dict[str, Any]:
  """Parses what `write_json` wrote; otherwise as `read_table`.

  Args:
    text: the content of the file.
    where: its name, for errors.

  Example:
    >>> parse_table(b"[3]", where="a.json")
    Traceback (most recent call last):
    jsharp._files.FileError: a.json is damaged: it is not a JSON object
  """
  try:
    content = json.loads(text)
    if not isinstance(content, dict):
      raise ValueError("it is not a JSON object")
    digest = content.pop(_DIGEST, None)
    expected = _digest(content) if digest is not None else None
  except (ValueError, RecursionError) as error:
    raise FileError(f"{where} is damaged: {error}") from error
  if digest != expected or (digest is None and _LAST_ENTRY.search(text)):
    raise FileError(
      f"{where} is damaged: its SHA-256 differs; restore it from a copy (if you have "
      f'edited it, remove its last key, "{_DIGEST}")'
    )
  return content


def digest_of(identity: dict[str, Any]) -> str:
  """The digest of a run's identity: 16 hexadecimal digits.

  Example:
    >>> digest_of({"way": 5, "shot": 1}) == digest_of({"shot": 1, "way": 5})
    True
  """
  return short_digest(json.loads(json.dumps(identity, sort_keys=True)))


def short_digest(content: dict[str, Any]) -> str:
  """The first 16 hexadecimal digits of a dict's digest.

  Example:
    >>> len(short_digest({"step": 1}))
    16
  """
  return _digest(content)[:16]


def _digest(content: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def parse_csv(content: bytes, *, where: object) -> tuple[list[str], list[list[str]]]:
  r"""Parses comma-separated values with a header line.

  Args:
    content: UTF-8 text with any line endings.
    where: the name of the file, for errors.

  Returns:
    The names of the columns, and the rows; each has a value for every column.

  Raises:
    FileError: if it is not valid CSV; the message names the line and the fix.

  Example:
    >>> parse_csv(b"a,b\r1,2\r", where="x.csv")
    (['a', 'b'], [['1', '2']])
  """
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise FileError(f"{where} is not UTF-8 text ({error}); save it as UTF-8") from error
  reader = csv.reader(io.StringIO(text, newline=None))
  names: list[str] = []
  rows = []
  try:
    for row in reader:
      if not names:
        names = row
      elif row and len(row) != len(names):
        raise FileError(
          f"line {reader.line_num} of {where} has {len(row)} values for "
          f"{len(names)} columns; restore it from a copy"
        )
      elif row:
        rows.append(row)
  except csv.Error as error:
    raise FileError(
      f"line {reader.line_num} of {where} is not valid CSV ({error}); restore it from "
      "a copy"
    ) from error
  return names, rows


def save_figure(figure: Any, path: str | os.PathLike[str], *, dpi: int) -> None:
  """Writes a Matplotlib figure atomically.

  Args:
    figure: the figure.
    path: the file; its suffix is the format.
    dpi: dots per inch.

  Raises:
    OSError: if writing fails.

  Example:
    >>> import tempfile, unittest.mock
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   save_figure(unittest.mock.Mock(), f"{directory}/a.png", dpi=100)
    ...   os.listdir(directory)
    ['a.png']
  """
  buffer = io.BytesIO()
  figure.savefig(buffer, format=pathlib.Path(path).suffix[1:] or "png", dpi=dpi)
  write_atomically(path, buffer.getvalue())


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Renames a damaged file to `path` + `.damaged`.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   write_atomically(f"{directory}/a", b"")
    ...   set_aside(pathlib.Path(directory, "a")).name
    'a.damaged'
  """
  aside = path.with_name(path.name + ".damaged")
  os.replace(path, aside)
  return aside


def _synchronise_directory(directory: pathlib.Path) -> None:
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
