"""The folder of one run: its identity, its metrics, its lock against two writers."""

import fcntl
import json
import math
import os
import pathlib
from types import TracebackType
from typing import Any, BinaryIO, Self

from absl import logging

from jsharp._files import write_atomically, write_json

_FORMAT = 1
_IDENTITY = "run.json"
_LOCK = "lock"
_METRICS = "metrics.jsonl"


class RunDirectory:
  """One run's folder, held by one process; a context manager.

  Made by `RunDirectory.open`. It holds `run.json` (what the run is),
  `metrics.jsonl` (a line per record) and whatever else the run writes.

  Attributes:
    path: the folder.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   with RunDirectory.open(directory, identity={"way": 5}) as run:
    ...     run.append_metrics({"step": 1, "loss": 1.5})
    ...   with RunDirectory.open(directory, identity={"way": 5}) as run:
    ...     run.read_metrics()
    [{'step': 1, 'loss': 1.5}]
  """

  def __init__(self, path: pathlib.Path, lock: BinaryIO):
    self.path = path
    self._lock = lock

  @classmethod
  def open(
    cls, path: str | os.PathLike[str], *, identity: dict[str, Any]
  ) -> "RunDirectory":
    """Creates the folder of a run, or opens it again to go on.

    Args:
      path: the folder; it and its parents are created where missing.
      identity: everything that changes the meaning of the run, by flag name; values
        that JSON holds. What may change between two starts (the number of steps,
        how often to log) is left out.

    Returns:
      The folder, locked until `close`; a torn last line of `metrics.jsonl` is gone.

    Raises:
      ValueError: if the folder belongs to a run with another identity (the message
        lists each flag with both values), or holds other things.
      BlockingIOError: if another process is writing there.
      OSError: if the folder cannot be created or written.
    """
    path = pathlib.Path(path)
    try:
      path.mkdir(parents=True, exist_ok=True)
      present = {entry.name for entry in path.iterdir()}
      ours = {_LOCK, f"{_IDENTITY}.tmp"}
      if _IDENTITY not in present and not present <= ours:
        raise ValueError(
          f"run_dir={path} holds other things ({', '.join(sorted(present - ours)[:3])})"
          f" and no {_IDENTITY}; give an empty or a new directory"
        )
      lock = (path / _LOCK).open("ab+")
    except OSError as error:
      raise type(error)(
        error.errno,
        f"cannot write to run_dir={path} ({error.strerror}); give a directory that can "
        "be created and written",
      ) from error
    _hold(lock, path)
    run = cls(path, lock)
    try:
      run._check_identity(json.loads(json.dumps(identity)))
      run._drop_torn_line()
    except BaseException:
      run.close()
      raise
    return run

  def close(self) -> None:
    """Lets another process write."""
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

  def append_metrics(self, record: dict[str, Any]) -> None:
    """Appends one line to `metrics.jsonl` and synchronises it to the disk.

    Args:
      record: numbers by name; NaN and infinity become null, as JSON lacks them.

    Raises:
      OSError: if it cannot be written; the message names the file.
    """
    strict = {
      name: None if isinstance(value, float) and not math.isfinite(value) else value
      for name, value in record.items()
    }
    line = json.dumps(strict, allow_nan=False).encode() + b"\n"
    path = self.path / _METRICS
    try:
      with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise type(error)(
        error.errno,
        f"cannot write {path} ({error.strerror}); check the free space and the "
        "permissions",
      ) from error

  def read_metrics(self) -> list[dict[str, Any]]:
    """Reads all records, oldest first.

    Raises:
      ValueError: if a line is damaged; the message names it.
    """
    records = []
    for number, line in enumerate(self._metrics_lines(), start=1):
      try:
        records.append(json.loads(line))
      except ValueError as error:
        raise ValueError(
          f"line {number} of {self.path / _METRICS} is damaged ({error}); delete that "
          "line to go on without it"
        ) from error
    return records

  def truncate_metrics(self, num_records: int) -> None:
    """Keeps the first `num_records` records: a count, where a step is ambiguous.

    Two records may belong to one step (training and validation), of which a
    checkpoint may have seen one.
    """
    lines = self._metrics_lines()
    if len(lines) > num_records:
      write_atomically(self.path / _METRICS, b"".join(lines[:num_records]))

  def write_json(self, name: str, obj: Any) -> None:
    """Writes `obj` as JSON to the file `name` of the folder, all or nothing."""
    write_json(self.path / name, obj)

  def read_json(self, name: str) -> Any:
    """Reads the JSON file `name` of the folder.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is not JSON; the message names it.
    """
    try:
      return json.loads((self.path / name).read_bytes())
    except ValueError as error:
      raise ValueError(
        f"{self.path / name} is damaged ({error}); restore a copy of it, or start "
        "over with another run_dir"
      ) from error

  def _check_identity(self, identity: dict[str, Any]) -> None:
    if not (self.path / _IDENTITY).exists():
      self.write_json(_IDENTITY, {"format": _FORMAT, "identity": identity})
      return
    recorded = self.read_json(_IDENTITY)
    if recorded.get("format") != _FORMAT:
      raise ValueError(
        f"{self.path / _IDENTITY} has format {recorded.get('format')}, this version "
        f"reads {_FORMAT}; use the version that wrote it, or another run_dir"
      )
    before = recorded["identity"]
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
        + "\nGo on with the settings there, or start anew with another run_dir"
      )

  def _metrics_lines(self) -> list[bytes]:
    path = self.path / _METRICS
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []

  def _drop_torn_line(self) -> None:
    """A kill or a power cut while appending leaves half a line."""
    lines = self._metrics_lines()
    if lines and not lines[-1].endswith(b"\n"):
      logging.warning("dropped a torn last line of %s", self.path / _METRICS)
      self.truncate_metrics(len(lines) - 1)


def _shown(identity: dict[str, Any], name: str) -> str:
  return json.dumps(identity[name]) if name in identity else "absent"


def _hold(lock: BinaryIO, path: pathlib.Path) -> None:
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    lock.seek(0)
    holder = lock.read().decode(errors="replace").strip()
    lock.close()
    raise BlockingIOError(
      error.errno,
      f"run_dir={path} is in use by process {holder}; wait for it, or give another "
      "run_dir",
    ) from error
  lock.truncate(0)
  lock.write(f"{os.getpid()}\n".encode())
  lock.flush()
