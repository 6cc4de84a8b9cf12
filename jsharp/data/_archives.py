"""Walks the files of a directory or an archive without extracting anything.

Members are streamed in stored order. An archive is rejected as a whole if the name of a
member leaves the directory, or if it contains links or devices: archives of images do
not contain these by accident.
"""

import bz2
import contextlib
import contextvars
import gzip
import lzma
import os
import pathlib
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from jsharp._files import open_regular
from jsharp.data import _left_out

ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".zip")

_OPENERS: tuple[tuple[bytes, Callable], ...] = (
  (b"\xfd7zXZ\x00", lzma.open),
  (b"\x1f\x8b", gzip.open),
  (b"BZh", bz2.open),
)
DAMAGE = (
  tarfile.TarError,
  zipfile.BadZipFile,
  lzma.LZMAError,
  zlib.error,
  struct.error,
  EOFError,
  NotImplementedError,  # A zip with an unsupported compression.
  OSError,
  OverflowError,
  UnicodeError,
)

_WITHIN: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
  "archives that were seen within archives", default=None
)

LARGEST = 2**42
"""Bytes that an archive may have."""
_COMPRESSIONS = (
  zipfile.ZIP_STORED,
  zipfile.ZIP_DEFLATED,
  zipfile.ZIP_BZIP2,
  zipfile.ZIP_LZMA,
)
_OTHER_COMPRESSIONS = {9: "deflate64", 93: "zstd", 95: "xz", 98: "PPMd"}
LARGEST_MEMBER = 256 * 2**20
"""Maximum bytes of a member; members are held in memory, even of a small archive."""


_EXTENDED_HEADERS = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
)
_LARGEST_HEADER = 2**20


class Header(tarfile.TarInfo):
  """A header that raises an error if it is damaged or huge.

  `tarfile` itself treats a damaged header as the end of the archive, and reads a
  member's name of any announced length.
  """

  @classmethod
  def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
    try:
      header = super().frombuf(buf, encoding, errors)
    except tarfile.HeaderError as error:
      if not buf.strip(b"\0"):  # The regular end of the archive.
        raise
      raise tarfile.TarError(str(error)) from error
    if header.type in _EXTENDED_HEADERS and header.size > _LARGEST_HEADER:
      raise tarfile.TarError(f"a member's name has {header.size} bytes")
    return header


def check_encodable(name: str, *, where: object) -> None:
  """Checks that a name can be stored in the records of a dataset.

  Raises:
    ValueError: if it is not UTF-8.
  """
  if name != name.encode(errors="replace").decode():
    raise ValueError(
      f"{where} has the name {name!r}, which is not UTF-8. Rename it, for example "
      "with convmv."
    )


def check_not_html(path: pathlib.Path) -> None:
  """Checks that a data file is not empty or a web page saved under its name.

  Raises:
    ValueError: if `path` is empty or starts like an HTML page.
  """
  with open_regular(path, most=LARGEST) as file:
    head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
  if head.startswith((b"<!doctype", b"<html", b"<head", b"<script", b"<?xml")):
    raise ValueError(
      f"{path} is an HTML page, not data: probably the warning page of Google Drive "
      "or a login page, saved under this name. Download the file again in a browser "
      "and compare its size with the one given there."
    )
  if not head:
    raise ValueError(f"{path} is empty. Fetch the file again.")


def walk(root: pathlib.Path, _above: tuple[str, ...] = ()) -> list[pathlib.Path]:
  """The files below `root`, sorted by folder, without hidden files and prepared data.

  See `_left_out.is_hidden`. Links are followed, except links to an enclosing folder.
  """
  real = os.path.realpath(root)
  if real in _above:
    return []
  found, folders = [], []
  for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
    if _left_out.is_hidden(entry.name):
      continue
    check_encodable(entry.name, where=root)
    if not entry.is_dir():
      found.append(pathlib.Path(root, entry.name))
    elif _above or entry.name != "tfds":
      folders.append(pathlib.Path(root, entry.name))
  for folder in folders:
    found += walk(folder, (*_above, real))
  return found


def given(data_dir: str | os.PathLike) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """The given directory and its files; for an archive, its directory and only itself.

  Example:
    >>> given("/nowhere")[1]
    []
  """
  path = pathlib.Path(data_dir).expanduser()
  if path.is_file() and is_archive(path):
    return path.parent, [path]
  return path, walk(path) if path.is_dir() else []


def is_archive(path: pathlib.PurePath) -> bool:
  """Whether `path` has the name of an archive that `members` can read.

  Example:
    >>> is_archive(pathlib.Path("train_0.tar.xz")), is_archive(pathlib.Path("a.csv"))
    (True, False)
  """
  return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def members(
  path: pathlib.Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
  """The names and contents of the wanted files in an archive.

  Args:
    path: a zip, or a tar that is plain or compressed with xz, gzip or bzip2. The
      first bytes decide, not the name.
    wanted: called with the name of each file (`/` between folders).

  Yields:
    `(name, content)` in stored order.

  Raises:
    ValueError: if the file is an HTML page, not an archive, truncated or damaged, or
      contains a link, a device, a name outside the archive's own folder or a wanted
      file of more than `LARGEST_MEMBER` bytes.
  """
  check_not_html(path)
  with open_regular(path, most=LARGEST) as file:
    head = file.read(262)
  wanted = _noting_archives(path, wanted)
  try:
    if head.startswith(b"PK"):
      yield from _zip_members(path, wanted)
      return
    opener = next((open_ for magic, open_ in _OPENERS if head.startswith(magic)), open)
    if opener is open and head[257:262] != b"ustar":
      raise ValueError(
        f"{path} is neither a zip nor a tar archive (it starts with {head[:8]!r}). "
        "Fetch the file again."
      )
    with (
      opener(path, "rb") as stream,
      tarfile.open(fileobj=stream, mode="r|", tarinfo=Header) as tar,
    ):
      yield from _tar_members(path, tar, wanted)
      # To the end, where the checksum of a compressed stream is.
      while stream.read(1 << 20):
        pass
  except DAMAGE as error:
    raise ValueError(
      f"{path} is truncated or damaged ({type(error).__name__}: {error}). "
      "Fetch the file again."
    ) from error


@contextlib.contextmanager
def archives_within_named() -> Iterator[None]:
  """Extends the error of a failing loader if there were archives within archives.

  Raises:
    ValueError: as raised in the block, with a hint on nested archives.
    FileNotFoundError: likewise.
  """
  seen: list[str] = []
  token = _WITHIN.set(seen)
  try:
    yield
  except (ValueError, FileNotFoundError) as error:
    if not seen or type(error) not in (ValueError, FileNotFoundError):
      raise
    raise type(error)(
      f"{error} There are archives within an archive, which are not read: "
      f"{', '.join(dict.fromkeys(seen[:3]))}. Extract the outer one, and pass its "
      "folder."
    ) from error
  finally:
    _WITHIN.reset(token)


def _noting_archives(
  path: pathlib.Path, wanted: Callable[[str], bool]
) -> Callable[[str], bool]:
  seen = _WITHIN.get()

  def noted(name: str) -> bool:
    if wanted(name):
      return True
    if seen is not None and is_archive(pathlib.PurePosixPath(name)):
      seen.append(f"{name} in {path.name}")
    return False

  return noted


def _zip_members(path, wanted):
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      kind = stat.S_IFMT(info.external_attr >> 16)
      if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        _refuse(path, info.filename, "is a link or a device")
      # Some Windows programs write backslashes between folders.
      _check_name(path, info.orig_filename.replace("\\", "/"))
      name = info.filename.replace("\\", "/")
      if name.endswith("/") or _left_out.is_hidden(name):
        continue
      if wanted(name):
        if info.flag_bits & 1:
          _refuse(path, name, "is encrypted")
        if info.compress_type not in _COMPRESSIONS:
          method = _OTHER_COMPRESSIONS.get(info.compress_type, info.compress_type)
          raise ValueError(
            f"{path}: the member {name!r} is compressed by method {method}, which "
            "Python cannot read. Extract the archive and pass the folder, or pack it "
            "again with deflate."
          )
        _check_size(path, name, info.file_size)
        yield name, archive.read(info)


def check_member(path: object, info: tarfile.TarInfo) -> None:
  """Checks that a member of a tar file is a regular file below its folder.

  Raises:
    ValueError: if it is not; the message names the member and the file.
  """
  if not (info.isreg() or info.isdir()):
    _refuse(path, info.name, "is a link or a device")
  _check_name(path, info.name)


def _tar_members(path, tar, wanted):
  for info in tar:
    check_member(path, info)
    name = info.name.removeprefix("./")
    if info.isreg() and not _left_out.is_hidden(name) and wanted(name):
      _check_size(path, name, info.size)
      content = tar.extractfile(info).read()
      if len(content) != info.size:
        raise EOFError(f"{name} ends after {len(content)} of {info.size} bytes")
      yield name, content


def _check_name(path: object, name: str) -> None:
  if name.startswith("/") or ":" in name.split("/")[0]:
    _refuse(path, name, "is an absolute path")
  if ".." in name.replace("\\", "/").split("/"):
    _refuse(path, name, "leaves its own folder")
  if "\\" in name:
    _refuse(path, name, "has a backslash in its name")
  check_encodable(name, where=path)


def _check_size(path: pathlib.Path, name: str, size: int) -> None:
  if size > LARGEST_MEMBER:
    _refuse(path, name, f"has {size} bytes, more than {LARGEST_MEMBER}")


def _refuse(path: object, name: str, why: str) -> None:
  raise ValueError(
    f"{path}: the member {name!r} {why}, which an archive of images should not have. "
    "Nothing was read from it. Fetch it from its source, or extract it yourself and "
    "pass the folder."
  )
