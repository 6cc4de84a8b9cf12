"""Files that are not part of a dataset, and a warning about ignored files."""

from collections.abc import Iterable

from absl import logging

from jsharp.data import _formats

_SYSTEM = frozenset(("__macosx", "thumbs.db", "desktop.ini"))
_NUM_SHOWN = 5


def is_hidden(path: str) -> bool:
  """Whether a file was created by a program or system, not by the user.

  Args:
    path: the path, with `/` between folders.

  Example:
    >>> is_hidden("cat/._1.png"), is_hidden("__MACOSX/1.png"), is_hidden("__a__/_1.png")
    (True, True, False)
  """
  return any(
    part.lower() in _SYSTEM or (part.startswith(".") and part.strip("."))
    for part in path.split("/")
  )


class LeftOut:
  """Distinguishes images from other files, and collects the other files.

  Args:
    where: the source, for the warning.
  """

  def __init__(self, where: object):
    self._where = where
    self._names: list[str] = []

  def is_image(self, name: str) -> bool:
    """Whether a file is an image by its name; other files are collected."""
    if _formats.is_image(name):
      return True
    self.add([name])
    return False

  def add(self, names: Iterable[str]) -> None:
    """Adds files that are ignored."""
    self._names += names

  def warn(self) -> None:
    """Logs one line with the files ignored since the last call."""
    names, self._names = sorted(set(self._names)), []
    if names:
      more = ", ..." if len(names) > _NUM_SHOWN else ""
      logging.warning(
        "%s: ignored %d file%s not %s: %s%s",
        self._where,
        len(names),
        " that is" if len(names) == 1 else "s that are",
        _formats.NAMES,
        ", ".join(names[:_NUM_SHOWN]),
        more,
      )
