"""The directory of one run: its identity, its metrics, and its lock."""

import errno
import fcntl
import json
import math
import os
import pathlib
import re
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

from absl import logging

from jsharp import _files
from jsharp._files import FileError, write_atomically

_FORMAT = 1
_IDENTITY = "run.json"
_LOCK = "lock"
_METRICS = "metrics.jsonl"
_DIGEST = "sha256"  # The key of a record's digest, of 16 digits.
_MAX_METRICS_BYTES = 2**32


class RunDirectory:
  """One run's directory, locked by one process; a context manager.

  Created by `RunDirectory.open`. It contains `run.json` (the run's identity),
  `metrics.jsonl` (one line per record) and everything else that the run writes. Before
  every write it checks that the directory is still the one that was opened.

  Attributes:
    path: the directory.
    digest: the digest of the identity, which the run's checkpoints store.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   with RunDirectory.open(directory, identity={"way": 5}) as run:
    ...     run.append_metrics({"step": 1, "loss": 1.5})
    ...   with RunDirectory.open(directory, identity={"way": 5}) as run:
    ...     run.read_metrics()
    [{'step': 1, 'loss': 1.5}]
  """

  def __init__(self, path: pathlib.Path, lock: BinaryIO, identity: dict[str, Any]):
    self.path = path
    self.digest = _files.digest_of(identity)
    self._lock = lock
    self._identity = json.loads(json.dumps(identity))

  @classmethod
  def open(
    cls, path: str | os.PathLike[str], *, identity: dict[str, Any]
  ) -> "RunDirectory":
    """Creates the directory of a run, or opens it again to resume the run.

    Args:
      path: the directory; it and its parents are created if missing.
      identity: everything that changes the meaning of the run, by flag name, as JSON
        values. Settings that may change between two starts (the number of steps, how
        often to log) are left out.

    Returns:
      The directory, locked until `close`. An incomplete last line of `metrics.jsonl` is
      removed.

    Raises:
      ValueError: if the directory belongs to a run with another identity (the message
        lists each flag with both values), or contains other files or a damaged
        `run.json`.
      BlockingIOError: if another process is writing there.
      OSError: if the directory cannot be created or written.
    """
    path = pathlib.Path(path)
    try:
      path.mkdir(parents=True, exist_ok=True)
      present = {entry.name for entry in path.iterdir()}
      ours = {_LOCK, f"{_LOCK}.tmp", f"{_IDENTITY}.tmp"}
      if _IDENTITY not in present and not present <= ours:
        raise ValueError(
          f"run_dir={path} has other files ({', '.join(sorted(present - ours)[:3])})"
          f" and no {_IDENTITY}; pass an empty or a new directory"
        )
      lock = _files.open_own(path / _LOCK)
    except OSError as error:
      raise type(error)(
        error.errno,
        f"cannot write to run_dir={path} ({error.strerror}); pass a directory that can "
        "be created and written",
      ) from error
    _hold(lock, path)
    run = cls(path, lock, identity)
    try:
      run._check_identity()
      run._drop_damaged_lines()
    except BaseException:
      run.close()
      raise
    return run

  def close(self) -> None:
    """Releases the lock, so that another process can write."""
    self._lock.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def check_owned(self) -> None:
    """Checks that the directory was not deleted or replaced since it was opened.

    Raises:
      FileNotFoundError: if the lock file on disk is not the one that is locked.
    """
    held = os.fstat(self._lock.fileno())
    try:
      there = os.stat(self.path / _LOCK, follow_symlinks=False)
    except OSError as error:
      self._lost(error)
    if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
      self._lost(None)

  def _lost(self, cause: OSError | None) -> NoReturn:
    raise FileNotFoundError(
      errno.ENOENT,
      f"run_dir={self.path} was deleted or replaced while this run was writing there; "
      "nothing more is written. Start the run again, with another run_dir if a new run "
      "uses this one now",
    ) from cause

  def append_metrics(self, record: dict[str, Any]) -> None:
    """Appends one line to `metrics.jsonl` and synchronises it to the disk.

    Its last key is a digest of the others.

    Args:
      record: numbers by name; NaN and infinity, which JSON lacks, become null.

    Raises:
      OSError: if it cannot be written; the message names the file.
    """
    strict = {
      name: None if isinstance(value, float) and not math.isfinite(value) else value
      for name, value in record.items()
    }
    sealed = {**strict, _DIGEST: _files.short_digest(strict)}
    line = json.dumps(sealed, allow_nan=False).encode() + b"\n"
    self.check_owned()
    with _files.opened_to_append(self.path / _METRICS) as file:
      file.write(line)

  def read_metrics(self) -> list[dict[str, Any]]:
    """Reads all records, oldest first, without their digests.

    Raises:
      ValueError: if a line is damaged; the message names it.
    """
    records = []
    for number, line in enumerate(self._metrics_lines(), start=1):
      try:
        records.append(_record(line))
      except (ValueError, RecursionError) as error:
        raise FileError(
          f"line {number} of {self.path / _METRICS} is damaged ({error}); delete that "
          "line to go on without it"
        ) from error
    return records

  def num_metrics(self) -> int:
    """The number of records."""
    return len(self._metrics_lines())

  def truncate_metrics(self, num_records: int) -> None:
    """Keeps the first `num_records` records.

    A count, because a step would be ambiguous: it may have a training and a validation
    record, and a checkpoint may have been saved between the two.
    """
    lines = self._metrics_lines()
    if len(lines) > num_records:
      self.write(_METRICS, b"".join(lines[:num_records]))

  def keep_metrics(self, name: str) -> None:
    """Copies `metrics.jsonl` to the file `name` in the directory."""
    self.write(name, b"".join(self._metrics_lines()))

  def write(self, name: str, content: bytes) -> None:
    """Writes the file `name` in the directory atomically.

    Raises:
      OSError: if it cannot be written; the message names it.
    """
    self.check_owned()
    write_atomically(self.path / name, content)

  def write_json(self, name: str, obj: dict[str, Any]) -> None:
    """Writes a dict as JSON to the file `name` in the directory atomically."""
    _files.write_json(self.path / name, obj, lambda _, text: self.write(name, text))

  def read_json(self, name: str) -> dict[str, Any]:
    """Reads a file written by `write_json`.

    Raises:
      FileNotFoundError: if it does not exist.
      ValueError: if it is damaged; the message names it.
    """
    try:
      return _files.read_table(self.path / name)
    except FileError as error:
      raise FileError(f"{error}; or start over with another run_dir") from error

  def _check_identity(self) -> None:
    identity = self._identity
    _files.refuse_dangling(self.path / _IDENTITY)
    if not (self.path / _IDENTITY).exists():
      self.write_json(_IDENTITY, {"format": _FORMAT, "identity": identity})
      return
    recorded = self.read_json(_IDENTITY)
    if recorded.get("format") != _FORMAT:
      raise FileError(
        f"{self.path / _IDENTITY} has format {recorded.get('format')}, but this "
        f"version reads {_FORMAT}; use the version that wrote it, or another run_dir"
      )
    before = recorded.get("identity")
    if not isinstance(before, dict):
      raise FileError(
        f"{self.path / _IDENTITY} is damaged: it has no identity; restore it from a "
        "copy, or start over with another run_dir"
      )
    absent = object()
    differing = [
      f"  {name}: {_shown(before, name)} there, {_shown(identity, name)} now"
      for name in sorted(before.keys() | identity.keys())
      if before.get(name, absent) != identity.get(name, absent)
    ]
    if differing:
      raise ValueError(
        f"run_dir={self.path} belongs to a run with other settings:\n"
        + "\n".join(differing)
        + "\nUse these settings to resume it, or start a new run with another run_dir"
      )

  def _metrics_lines(self) -> list[bytes]:
    path = self.path / _METRICS
    content = _files.read_bytes_if_there(path, most=_MAX_METRICS_BYTES)
    return (content or b"").splitlines(keepends=True)

  def _drop_damaged_lines(self) -> None:
    """Drops lines damaged by a kill or power failure while appending, or a bad disk."""
    lines = self._metrics_lines()
    path = self.path / _METRICS
    whole = [line for line in lines if _is_whole(line)]
    if len(whole) == len(lines):
      return
    if whole == lines[:-1] and not lines[-1].endswith(b"\n"):
      logging.warning("dropped an incomplete last line of %s", path)
    else:
      aside = f"{_METRICS}.damaged"
      self.keep_metrics(aside)
      logging.warning(
        "%d of %d lines of %s are damaged; it is kept as %s and the others are used",
        len(lines) - len(whole),
        len(lines),
        path,
        aside,
      )
    self.write(_METRICS, b"".join(whole))


def _record(line: bytes) -> dict[str, Any]:
  """A record without its digest; records of earlier versions have none."""
  record = json.loads(line)
  if not isinstance(record, dict):
    raise ValueError("it is not a JSON object")
  digest = record.pop(_DIGEST, None)
  if digest is None and re.search(rb'"[0-9a-f]{16}"}\s*$', line):
    raise ValueError("the key of its SHA-256 is damaged")
  if digest is not None and digest != _files.short_digest(record):
    raise ValueError("its SHA-256 differs")
  return record


def _is_whole(line: bytes) -> bool:
  try:
    _record(line)
  except (ValueError, RecursionError):
    return False
  return line.endswith(b"\n")


def holder(path: str | os.PathLike[str]) -> str | None:
  """The ID of the process that has locked a run's directory; None if there is none.

  Raises:
    OSError: if the lock cannot be read.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   with RunDirectory.open(directory, identity={}):
    ...     holder(directory) == str(os.getpid())
    ...   print(holder(directory))
    True
    None
  """
  try:
    lock = _files.open_regular(pathlib.Path(path) / _LOCK, most=2**20)
  except (FileNotFoundError, NotADirectoryError):
    return None
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return lock.read().decode(errors="replace").strip() or "?"
  return None


def _shown(identity: dict[str, Any], name: str) -> str:
  return json.dumps(identity[name]) if name in identity else "absent"


def _hold(lock: BinaryIO, path: pathlib.Path) -> None:
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if not isinstance(error, BlockingIOError):
      what = f"cannot lock run_dir={path} ({error.strerror}); use another file system"
      raise type(error)(error.errno, what) from error
    lock.seek(0)
    holder = lock.read().decode(errors="replace").strip()
    lock.close()
    raise BlockingIOError(
      error.errno,
      f"run_dir={path} is in use by process {holder}; wait for it, or pass another "
      "run_dir",
    ) from error
  try:
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n".encode())
    lock.flush()
  except OSError:  # A full disk; the lock is still held.
    logging.warning("the lock file of %s does not name its process", path)
