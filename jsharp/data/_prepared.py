"""Prepare a dataset once, reopen it quickly, and notice when its source changed.

A prepared dataset lies in `PLACE/NAME-FINGERPRINT`, where the fingerprint covers the
name, size and modification time of every source file and the settings. A changed
source is therefore another directory and is prepared anew. tensorflow-datasets writes
into a directory called `incomplete.*` and renames it at the end, so an interrupted
preparation is never opened.

The rule by which images are decoded is part of the fingerprint too. A copy made by an
older rule, without that part, is still opened if all of its images read as before. That
is found out once and noted beside it.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from jsharp._files import write_atomically
from jsharp._terminal import say
from jsharp.data import _rules

ClassArrays = dict[str, np.ndarray]
"""Class name -> uint8 `[num_images, height, width, channels]`."""

_NOTE = f"right_by_rule_{_rules.RULE}"


class Classes(NamedTuple):
  """The images of some classes, one class after the other.

  Attributes:
    names: one per class.
    counts: int32 `[num_classes]`, the number of images of each class.
    images: uint8 `[num_images, height, width, channels]`.
  """

  names: tuple[str, ...]
  counts: np.ndarray
  images: np.ndarray

  def arrays(self) -> ClassArrays:
    """One view of `images` per class."""
    parts = np.split(self.images, np.cumsum(self.counts)[:-1])
    return dict(zip(self.names, parts, strict=True))


def fingerprint(
  root: pathlib.Path, files: Sequence[pathlib.Path], *settings: object
) -> str:
  """Sixteen hexadecimal digits that change with the files or the settings.

  Args:
    root: the directory that the names are taken relative to, so that a moved or
      mounted directory keeps its fingerprint.
    files: the source files. Names, sizes and modification times count; contents are
      not read.
    *settings: whatever else determines the prepared arrays, compared by `repr`.
  """
  digest = hashlib.sha256(repr(settings).encode())
  for file in sorted(files):
    status = file.stat()
    entry = (file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)
    digest.update(repr(entry).encode())
  return digest.hexdigest()[:16]


class Encoded(NamedTuple):
  """The images that are decoded to prepare a dataset.

  Attributes:
    images: `images()` gives name and content of every image of the source.
    mode: the channels that they are decoded to; see `jsharp.data._pixels.decode`.
  """

  images: Callable[[], Iterable[tuple[str, bytes]]]
  mode: str | None


def load(
  builder_name: str,
  read: Callable[[], dict[str, ClassArrays]],
  *,
  data_dir: pathlib.Path,
  prepared_dir: str | os.PathLike | None,
  files: Sequence[pathlib.Path],
  settings: Sequence[object],
  encoded: Encoded | None = None,
  parts: Sequence[str] | None = None,
) -> dict[str, Classes]:
  """The classes of every split, prepared at the first call.

  Args:
    builder_name: a class of `jsharp.data._builders`.
    read: reads the source files; called only if nothing valid is prepared.
    data_dir: where the source files lie.
    prepared_dir: where to keep the prepared dataset. None means `data_dir/tfds`
      where that can be written, else `~/.cache/jsharp`.
    files: the source files.
    settings: whatever else determines the arrays.
    encoded: all images of the source files; None if they are stored as pixels.
    parts: the splits that are needed and that `read` returns; None for all. They are
      taken from a copy of all splits if there is one, else from a copy of their own.

  Returns:
    The classes of each split, in the order in which `read` gave them.

  Raises:
    ValueError: from `read`.
    OSError: no place can be written.
  """
  from jsharp.data import _builders

  builder_class = getattr(_builders, builder_name)
  version = str(builder_class.VERSION)
  file_format = _builders.file_format()
  places = kept_in(data_dir, prepared_dir)

  def folder(*rule: object) -> str:
    decided = (*settings, version, file_format, *rule)
    return f"{builder_class.name}-{fingerprint(data_dir, files, *decided)}"

  def opened(
    root: pathlib.Path, parts: Sequence[str] | None = parts
  ) -> dict[str, Classes] | None:
    target = root / builder_class.name / version
    if not target.is_dir():
      return None
    try:
      return _builders.open_prepared(builder_class(data_dir=root), parts)
    except (MemoryError, ImportError, PermissionError):
      raise
    except Exception as error:
      logging.warning("%s is damaged and is prepared anew: %s", target, error)
      shutil.rmtree(target, ignore_errors=True)
      return None

  whole, older = folder("rule", _rules.RULE), folder()
  current = whole if parts is None else folder("parts", *parts, "rule", _rules.RULE)
  for place in places:
    if classes := opened(place / whole) or opened(place / current):
      return classes
  writable = [place for place in places if can_write(place)]
  for place in places:
    noted = any((other / older / _NOTE).exists() for other in places)
    classes = opened(place / older, parts if noted else None)
    if classes and (noted or encoded is None or _still_right(classes, encoded)):
      if not noted and writable:
        (writable[0] / older).mkdir(exist_ok=True)
        write_atomically(writable[0] / older / _NOTE, b"")
      return {p: c for p, c in classes.items() if parts is None or p in parts}
    if classes:
      say(
        f"{place / older} is no longer used: some of its images are decoded "
        "differently now (transparency, 16 bits, orientation) or were left out. It "
        "may be deleted."
      )
  if not writable:
    raise OSError(
      f"no place for the prepared dataset: {' and '.join(map(str, places))} cannot be "
      "written. Pass prepared_dir=, a writable directory."
    )
  root = writable[0] / current
  say(f"Preparing {data_dir} in {root}, once.")
  with _preparing(root / builder_class.name):
    builder = builder_class(data_dir=root, file_format=file_format)
    builder.read = read
    _prepare(builder, root / builder_class.name / version)
  return _builders.open_prepared(builder_class(data_dir=root))


def _still_right(classes: dict[str, Classes], encoded: Encoded) -> bool:
  """Whether the copy made by an older rule is what the present rule would read."""
  say("Checking the prepared images once.")
  names = [name for split in classes.values() for name in split.names]
  rest = sum(len(split.images) for split in classes.values())
  for name, data in encoded.images():
    rest -= 1
    if not _rules.reads_as_before(data, name=name, mode=encoded.mode):
      return False
  return rest == 0 and all(unicodedata.is_normalized("NFC", name) for name in names)


def _prepare(builder, target: pathlib.Path) -> None:
  import tensorflow_datasets as tfds

  tfds.display_progress_bar(sys.stderr.isatty())
  try:
    # TFDS announces a download of unknown size; there is none.
    with (
      contextlib.redirect_stdout(io.StringIO()),
      _kept_in_memory(),
      tempfile.TemporaryDirectory() as downloads,
    ):
      builder.download_and_prepare(download_dir=downloads)
  except OSError:
    # Another process may have finished the same preparation first.
    if not target.is_dir():
      raise


@contextlib.contextmanager
def _kept_in_memory() -> Iterator[None]:
  """Keeps records of more than 1 GB in memory: spilling to files needs TensorFlow.

  They still take memory only once: each class is released as it is written.
  """
  from tensorflow_datasets.core import shuffle

  most = shuffle.MAX_MEM_BUFFER_SIZE
  shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
  try:
    yield
  finally:
    shuffle.MAX_MEM_BUFFER_SIZE = most


def kept_in(
  data_dir: pathlib.Path, prepared_dir: str | os.PathLike | None
) -> list[pathlib.Path]:
  """The directories where prepared data may be kept, the preferred one first."""
  if prepared_dir is not None:
    return [pathlib.Path(prepared_dir).expanduser()]
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return [data_dir / "tfds", pathlib.Path(cache).expanduser() / "jsharp"]


def can_write(place: pathlib.Path) -> bool:
  """Whether a directory can be created and written to."""
  existing = next(path for path in (place, *place.parents) if path.exists())
  # Root may write anywhere; a directory marked read-only stays as it is all the same.
  if not existing.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
    return False
  try:
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place):
      return True
  except OSError:
    return False


@contextlib.contextmanager
def _preparing(folder: pathlib.Path) -> Iterator[None]:
  """Marks a preparation as running; removes the remains of earlier, killed ones.

  Each holds a shared lock of the folder. A process that can lock it exclusively knows
  that no other preparation is running.
  """
  folder.mkdir(parents=True, exist_ok=True)
  lock = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # Another goes on, or the disk has no locks.
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      for leftover in folder.glob("incomplete.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with contextlib.suppress(OSError):
      fcntl.flock(lock, fcntl.LOCK_SH)
    yield
  finally:
    os.close(lock)
