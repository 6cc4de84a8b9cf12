"""Which files are no part of a dataset, and one line on what else is left out."""

from collections.abc import Iterable

from absl import logging

from jsharp.data import _formats

_SYSTEM = frozenset(("__macosx", "thumbs.db", "desktop.ini"))
_NUM_SHOWN = 5


def is_hidden(path: str) -> bool:
  """Whether a file was put there by a program or a system, without being asked.

  Args:
    path: `/` between folders.

  Example:
    >>> is_hidden("cat/._1.png"), is_hidden("__MACOSX/1.png"), is_hidden("__a__/_1.png")
    (True, True, False)
  """
  return any(
    part.lower() in _SYSTEM or (part.startswith(".") and part.strip("."))
    for part in path.split("/")
  )


class LeftOut:
  """Tells images from other files, and remembers the others.

  Args:
    where: what is read, for the warning.
  """

  def __init__(self, where: object):
    self._where = where
    self._names: list[str] = []

  def is_image(self, name: str) -> bool:
    """Whether the name is that of an image that we read; if not, it is left out."""
    if _formats.is_image(name):
      return True
    self.add([name])
    return False

  def add(self, names: Iterable[str]) -> None:
    """Remembers files that are left out."""
    self._names += names

  def warn(self) -> None:
    """Counts and names in one line what was left out since the last time."""
    names, self._names = sorted(set(self._names)), []
    if names:
      more = ", ..." if len(names) > _NUM_SHOWN else ""
      logging.warning(
        "%s: left out %d file%s no %s: %s%s",
        self._where,
        len(names),
        " that is" if len(names) == 1 else "s that are",
        _formats.NAMES,
        ", ".join(names[:_NUM_SHOWN]),
        more,
      )
