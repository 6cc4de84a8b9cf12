"""Encoded images, read one by one and in any order from their files.

Worker processes read them, so these classes are small, can be pickled and do not need
JAX.
"""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jsharp._files import open_regular, read_bytes
from jsharp.data import _archives

FORMATS = ("JPEG", "PNG")
"""Pillow's names of the accepted formats; ImageNet has a PNG among its JPEGs."""


class Encoded(Protocol):
  """Images by their numbers."""

  def __len__(self) -> int:
    """The number of images."""
    ...

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    """The location of an image, for errors, and its encoded content."""
    ...


class Names:
  """Strings in two arrays, so that a million strings can be pickled fast.

  Args:
    texts: the strings.

  Example:
    >>> names = Names(["cat", "ox"])
    >>> len(names), names[1], names.take(np.array([1, 0]))[0]
    (2, 'ox', 'ox')
  """

  def __init__(self, texts: Iterable[str]):
    encoded = [text.encode() for text in texts]
    self.blob = np.frombuffer(b"".join(encoded), np.uint8)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    self.ends = np.cumsum(lengths)

  @classmethod
  def of(cls, blob: np.ndarray, ends: np.ndarray) -> "Names":
    """Restores the strings from two saved arrays."""
    names = cls([])
    names.blob, names.ends = blob, ends
    return names

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, index: int) -> str:
    start = self.ends[index - 1] if index else 0
    return self.blob[start : self.ends[index]].tobytes().decode()

  def take(self, rows: np.ndarray) -> "Names":
    """The strings with given numbers, in this order."""
    return Names(self[int(row)] for row in rows)


@dataclasses.dataclass(frozen=True)
class FileImages:
  """Files below a directory.

  Attributes:
    root: the directory.
    names: paths below it.
  """

  root: str
  names: Names

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    path = pathlib.Path(self.root, self.names[index])
    return str(path), read_bytes(path, most=_archives.LARGEST_MEMBER)


@dataclasses.dataclass(frozen=True)
class TarImages:
  """Members of an uncompressed tar file, by their offsets.

  Attributes:
    path: the tar file.
    names: the names of the members.
    starts: `[n]` int64, the offset of each member's content in bytes.
    sizes: `[n]` int64, in bytes.
  """

  path: str
  names: Names
  starts: np.ndarray
  sizes: np.ndarray

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    place = f"{self.path}: {self.names[index]}"
    start, size = int(self.starts[index]), int(self.sizes[index])
    with open_regular(self.path, most=_archives.LARGEST) as file:
      file.seek(start)
      content = file.read(size)
    if len(content) != size:
      raise ValueError(
        f"{place} ends after {len(content)} of {size} bytes: the archive was changed "
        "or cut since training began. Restore it, and start the run again."
      )
    return place, content


@dataclasses.dataclass(frozen=True)
class RecordImages:
  """Records of a dataset prepared by tensorflow-datasets.

  Attributes:
    source: the data source of a split in tensorflow-datasets, with encoded images.
    place: its name in errors.
    records: `[n]` int64, the numbers of the records.
  """

  source: Any
  place: str
  records: np.ndarray

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> tuple[str, bytes]:
    number = int(self.records[index])
    record = self.source[number]
    name = record["file_name"]
    name = name.decode() if isinstance(name, bytes) else str(name)
    return f"record {number} ({name}) of {self.place}", bytes_of(record["image"])


def bytes_of(image: Any) -> bytes:
  """The encoded image of a record."""
  return image if isinstance(image, bytes) else io.BytesIO(image).getvalue()


class Listed(NamedTuple):
  """The images of a split, sorted by class and file name.

  Attributes:
    images: the encoded images.
    labels: `[n]` int32, the numbers of the classes.
    class_names: the sorted names of the classes.
    digest: a digest of class names, file names and labels, the same for every layout.
  """

  images: Encoded
  labels: np.ndarray
  class_names: tuple[str, ...]
  digest: str


def digest_of(class_names: Sequence[str], labels: np.ndarray, names: Names) -> str:
  """Sixteen hexadecimal digits that identify a split; pixels are not included."""
  digest = hashlib.sha256(repr(tuple(class_names)).encode())
  for array in (labels.astype("<i4"), names.ends.astype("<i8"), names.blob):
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()[:16]
