"""The images in a directory or in archives, by path."""

import os
import pathlib
from collections.abc import Container, Iterator
from typing import NamedTuple, Self

from jsharp._files import composed, read_bytes
from jsharp.data import _archives, _formats, _left_out


class ImageFile(NamedTuple):
  """One image.

  Attributes:
    place: the file, and the name within an archive, for errors.
    path: the path below the directory or in the archive, with `/` between folders and
      composed accents.
    content: the encoded image.
  """

  place: str
  path: str
  content: bytes


class ImageFiles:
  """The images of a dataset.

  Attributes:
    given: the given directory or archive.
    root: the directory that contains them.
    sources: the loose images, or the archives that contain them.
  """

  def __init__(
    self, given: pathlib.Path, root: pathlib.Path, sources: list[pathlib.Path]
  ):
    self.given = given
    self.root = root
    self.sources = sources
    self._left_out = _left_out.LeftOut(given)

  @classmethod
  def find(cls, data_dir: str | os.PathLike, *, fix: str) -> Self:
    """Finds the images of a directory or an archive.

    Loose images take precedence over archives, at any depth.

    Args:
      data_dir: a directory with images or archives, or an archive.
      fix: what to do if there are none; `{}` stands for the directory.

    Raises:
      FileNotFoundError: if there are none.
    """
    given = pathlib.Path(data_dir).expanduser()
    root, files = _archives.given(given)
    if root != given:
      return cls(given, root, files)
    if not given.is_dir():
      what = (
        "is neither a directory nor an archive" if given.exists() else "does not exist"
      )
      raise FileNotFoundError(f"data_dir={given} {what}. {fix.format(given)}")
    sources = [file for file in files if _formats.is_image(file.name)]
    sources = sources or [file for file in files if _archives.is_archive(file)]
    if not sources:
      raise FileNotFoundError(
        f"data_dir={given} has no {_formats.NAMES} files. {fix.format(given)}"
      )
    found = cls(given, given, sources)
    used = set(sources)
    found._left_out.add(
      file.relative_to(given).as_posix() for file in files if file not in used
    )
    return found

  @property
  def packed(self) -> bool:
    """Whether the images are in archives."""
    return _archives.is_archive(self.sources[0])

  def paths(self) -> list[str]:
    """The paths of all images; archives are read to their end.

    Raises:
      ValueError: if an archive is damaged or unsafe.
    """
    found: list[str] = []

    def wanted(name: str) -> bool:
      if self._left_out.is_image(name):
        found.append(composed(name))
      return False

    if not self.packed:
      return [composed(self._name(source)) for source in self.sources]
    for source in self.sources:
      for _ in _archives.members(source, wanted):
        pass
    return found

  def read(self, wanted: Container[str] | None = None) -> Iterator[ImageFile]:
    """The images in stored order.

    Args:
      wanted: the paths to read; None for all.

    Raises:
      ValueError: if an archive is damaged or unsafe.
      OSError: if a file cannot be read.
    """

    def is_wanted(name: str) -> bool:
      if not self._left_out.is_image(name):
        return False
      return wanted is None or composed(name) in wanted

    for source in self.sources:
      if self.packed:
        for name, content in _archives.members(source, is_wanted):
          yield ImageFile(f"{source}: {name}", composed(name), content)
      elif is_wanted(name := self._name(source)):
        yield ImageFile(
          str(source),
          composed(name),
          read_bytes(source, most=_archives.LARGEST_MEMBER),
        )

  def encoded(self) -> Iterator[tuple[str, bytes]]:
    """The location and content of every image."""
    return ((file.place, file.content) for file in self.read())

  def warn(self) -> None:
    """Logs one line with the number and names of the ignored files."""
    self._left_out.warn()

  def _name(self, file: pathlib.Path) -> str:
    return file.relative_to(self.root).as_posix()
