"""Signals that come while a program imports its modules: there is nothing to save yet.

It stands before all other imports. Python alone takes a twentieth of a second before.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

DEFAULTS: dict[signal.Signals, Any] = {
  signal.SIGINT: signal.default_int_handler,
  signal.SIGTERM: signal.SIG_DFL,
}
if hasattr(signal, "SIGHUP"):
  DEFAULTS[signal.SIGHUP] = signal.SIG_DFL

heard: list[int] = []
"""The signals that came before there was anything to save."""


class Ended(KeyboardInterrupt):
  """A signal ended the program where nothing had to be saved; `args[0]` is it."""


def check() -> None:
  """Ends the program if a signal has come.

  What a signal raises is lost where it meets a bare `except` or a destructor.

  Raises:
    Ended: then.

  Example:
    >>> check()
  """
  if heard:
    raise Ended(heard[0])


def listen(package: str) -> None:
  """Ends the process at a signal without a traceback, if it is a program of a package.

  Args:
    package: one of jsharp's own, which calls this as it is imported.

  Example:
    >>> listen("jsharp")  # This is no `python -m jsharp.PROGRAM`.
  """
  words = sys.orig_argv
  module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
  # The interpreter has this in place of the file's name while it imports the package.
  is_started = sys.argv[:1] == ["-m"]
  if is_started and module and module[0].partition(".")[0] == package:
    for number, default in DEFAULTS.items():
      if signal.getsignal(number) == default:
        signal.signal(number, _end)


def leave() -> None:
  """Leaves signals to who hears them from now on.

  Example:
    >>> leave()
  """
  for number, default in DEFAULTS.items():
    if signal.getsignal(number) is _end:
      signal.signal(number, default)


def ended_by(number: int, frame: FrameType | None) -> NoReturn:
  """Ends the program: a handler of signals where nothing has to be saved.

  Within an import it ends at once. What is raised there can abort the process with a
  dump of its stack (extension modules that are being set up) or be swallowed.

  Raises:
    Ended: anywhere else, so that temporary files are removed.

  Example:
    >>> import contextlib
    >>> with contextlib.suppress(Ended):
    ...   ended_by(signal.SIGTERM, None)
    >>> heard.pop()
    <Signals.SIGTERM: 15>
  """
  heard.append(number)
  while frame is not None:
    if frame.f_code.co_filename.startswith("<frozen importlib"):
      _end(number, frame)
    frame = frame.f_back
  raise Ended(number)


def _end(number: int, frame: FrameType | None) -> NoReturn:
  del frame
  os.write(2, b"interrupted before it began.\n")
  os._exit(128 + number)


listen("jsharp")
