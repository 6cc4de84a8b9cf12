"""Finds where the members of ImageNet's tar files begin, without unpacking them.

`ILSVRC2012_img_train.tar` holds a tar file for each class, `ILSVRC2012_img_val.tar`
holds images. Neither is compressed, so an image can be read at its offset. The headers
are read once, and the index is kept beside the archive.
"""

import hashlib
import io
import itertools
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import logging

from jsharp._files import composed, open_regular, read_bytes, write_atomically
from jsharp._terminal import say
from jsharp.data import _archives, _formats, _left_out, _prepared
from jsharp.data._encoded import Names

_VERSION = 1
_BLOCK = 512
_MOST = 2**30
_FETCH = "Fetch the file again and compare its MD5 with the one announced there."


class Index(NamedTuple):
  """The images of a tar file.

  Attributes:
    groups: `[n]` names of the classes, sorted, or empty texts.
    names: `[n]` names of the images, sorted within a class.
    starts: `[n]` int64, where their content begins in the file, in bytes.
    sizes: `[n]` int64, in bytes.
  """

  groups: Names
  names: Names
  starts: np.ndarray
  sizes: np.ndarray


def index(path: pathlib.Path, *, nested: bool) -> Index:
  """The images of a tar file, from a kept index or by reading the file.

  Args:
    path: the tar file.
    nested: whether it holds a tar file for each class, whose name is that of the
      class; otherwise it holds images.

  Raises:
    ValueError: the file is compressed, truncated, damaged or a different archive.
    OSError: it cannot be read.
  """

  def make() -> dict[str, np.ndarray]:
    rows = sorted(_members(path, nested=nested))
    for before, after in itertools.pairwise(rows):
      if before[:2] == after[:2]:
        raise ValueError(f"{path} holds the image {after[1]} twice. {_FETCH}")
    groups, names, starts, sizes = zip(*rows, strict=True) if rows else ((),) * 4
    found: dict[str, np.ndarray] = {
      "starts": np.array(starts, np.int64),
      "sizes": np.array(sizes, np.int64),
    }
    for key, texts in (("groups", Names(groups)), ("names", Names(names))):
      found |= {key: texts.blob, f"{key}_ends": texts.ends}
    return found

  found = kept(path.parent, [path], ("tar", nested), make, what=f"members of {path}")
  groups, names = (Names.of(found[k], found[f"{k}_ends"]) for k in ("groups", "names"))
  return Index(groups, names, found["starts"], found["sizes"])


def kept(
  data_dir: pathlib.Path,
  files: list[pathlib.Path],
  settings: tuple[object, ...],
  make: Callable[[], dict[str, np.ndarray]],
  *,
  what: str,
) -> dict[str, np.ndarray]:
  """Arrays that take long to make, loaded from a file if they were kept.

  The file's name changes with the names, sizes and modification times of the files
  that the arrays were made from. A damaged file is made again. If nothing can be
  written, the arrays are made at every start.

  Args:
    data_dir: the directory of the files.
    files: the files that the arrays are made from.
    settings: whatever else determines the arrays.
    make: makes the arrays.
    what: a description of the arrays, for messages.
  """
  known = _prepared.fingerprint(data_dir, files, _VERSION, *settings)
  paths = [place / f"index-{known}.npz" for place in _prepared.kept_in(data_dir, None)]
  for path in paths:
    try:
      return _read(path)
    except FileNotFoundError:
      continue
    except (ValueError, OSError) as error:
      logging.warning("%s is damaged and is made anew: %s", path, error)
  say(f"Listing the {what}, once.")
  arrays = make()
  for path in paths:
    if _prepared.can_write(path.parent):
      _write(path, arrays)
      return arrays
  say(
    f"The list cannot be kept, because neither {paths[0].parent} nor {paths[1].parent} "
    "can be written. It is made again at every start."
  )
  return arrays


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  buffer = io.BytesIO()
  np.savez(buffer, allow_pickle=False, **arrays)
  content = buffer.getvalue()
  write_atomically(path, hashlib.sha256(content).digest() + content)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  content = read_bytes(path, most=_MOST)
  if hashlib.sha256(content[32:]).digest() != content[:32]:
    raise ValueError("its SHA-256 differs")
  with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
    return dict(arrays)


class _Window(io.RawIOBase):
  """A part of an open file, as a file."""

  def __init__(self, file: BinaryIO, start: int, size: int):
    self._file, self._start, self._size, self._at = file, start, size, 0

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
    self._at = origin[whence] + offset
    return self._at

  def tell(self) -> int:
    return self._at

  def read(self, size: int = -1) -> bytes:
    left = max(0, self._size - self._at)
    self._file.seek(self._start + self._at)
    content = self._file.read(left if size < 0 else min(size, left))
    self._at += len(content)
    return content


def _members(
  path: pathlib.Path, *, nested: bool
) -> Iterator[tuple[str, str, int, int]]:
  """Class, name, start and size of every image, as they are stored."""
  _archives.check_not_html(path)
  with open_regular(path, most=_archives.LARGEST) as file:
    total = os.fstat(file.fileno()).st_size
    head = file.read(262)
    if head[257:262] != b"ustar":
      raise ValueError(
        f"{path} is not a plain tar file (it starts with {head[:8]!r}). A compressed "
        f"one does not allow random access: decompress it. Otherwise: {_FETCH}"
      )
    for name, start, size in _listed(path, file, 0, total):
      stem = pathlib.PurePosixPath(name)
      if not nested:
        _check_image(path, name)
        yield "", stem.name, start, size
        continue
      if stem.suffix != ".tar":
        raise ValueError(
          f"{path} contains {name}, not a tar file per class: it is not the archive of "
          "ImageNet's training images. If it contains folders, unpack it and pass "
          f"these. {_FETCH}"
        )
      place, count = f"{path}: {name}", 0
      for image, offset, length in _listed(place, file, start, size):
        _check_image(place, image)
        file_name = pathlib.PurePosixPath(image).name
        yield composed(stem.stem), file_name, offset, length
        count += 1
      if not count:
        raise ValueError(f"{place} has no images: the class is empty. {_FETCH}")


def _check_image(place: object, name: str) -> None:
  if not _formats.is_image(name):
    raise ValueError(
      f"{place} contains {name}, which is not an image: this is a different archive. "
      f"{_FETCH}"
    )


def _listed(
  place: object, file: BinaryIO, start: int, size: int
) -> Iterator[tuple[str, int, int]]:
  """Name, start in the file and size of every member of a tar within it."""
  at = "it is truncated or damaged"
  try:
    with tarfile.open(
      fileobj=_Window(file, start, size), mode="r:", tarinfo=_archives.Header
    ) as tar:
      while (info := tar.next()) is not None:
        _archives.check_member(place, info)
        tar.members = []  # type: ignore[attr-defined]  # It keeps them all.
        if not info.isreg() or _left_out.is_hidden(info.name):
          continue
        if info.offset_data + info.size > size:
          raise EOFError(f"{info.name} extends beyond the end of the archive")
        yield info.name.removeprefix("./"), start + info.offset_data, info.size
      if tar.offset + _BLOCK > size:
        raise EOFError("its end-of-archive mark is missing")
  except _archives.DAMAGE as error:
    raise ValueError(f"{place}: {at} ({error}). {_FETCH}") from error
