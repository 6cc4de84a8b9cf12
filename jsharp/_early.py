"""Signals that arrive while a program imports its modules, with nothing to save yet.

Import this module first. Python itself takes a twentieth of a second before that.
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
"""The signals that arrived before there was anything to save."""


class Ended(KeyboardInterrupt):
  """A signal (`args[0]`) ended the program when there was nothing to save."""


def check() -> None:
  """Ends the program if a signal has arrived.

  An exception raised by a signal handler can be swallowed by a bare `except` or a
  destructor, so call this afterwards.

  Raises:
    Ended: if a signal has arrived.

  Example:
    >>> check()
  """
  if heard:
    raise Ended(heard[0])


def listen(package: str) -> None:
  """Makes signals end the process without a traceback, if it runs a package's program.

  Args:
    package: one of jsharp's own packages, which calls this when it is imported.

  Example:
    >>> listen("jsharp")  # No effect: this is not `python -m jsharp.PROGRAM`.
  """
  words = sys.orig_argv
  module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
  # While it imports the package, the interpreter has "-m" in place of the file's name.
  is_started = sys.argv[:1] == ["-m"]
  if is_started and module and module[0].partition(".")[0] == package:
    for number, default in DEFAULTS.items():
      if signal.getsignal(number) == default:
        signal.signal(number, _end)


def leave() -> None:
  """Restores the default handlers that `listen` replaced.

  Example:
    >>> leave()
  """
  for number, default in DEFAULTS.items():
    if signal.getsignal(number) is _end:
      signal.signal(number, default)


def ended_by(number: int, frame: FrameType | None) -> NoReturn:
  """Ends the program: a signal handler for when there is nothing to save.

  During an import it ends the process at once, since an exception raised there can
  abort the process with a stack dump (in extension modules) or be swallowed.

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
