"""Printing that never ends a program: its reader may be gone and its disk full."""

import contextlib
import os
import sys
from typing import TextIO


def tell(text: str) -> None:
  """Prints to standard output.

  Example:
    >>> tell("step 1")
    step 1
  """
  _print(text, sys.stdout)


def say(line: str) -> None:
  """Prints to standard error.

  Example:
    >>> with contextlib.redirect_stderr(sys.stdout):
    ...   say("interrupted")
    interrupted
  """
  _print(line, sys.stderr)


def _print(text: str, file: TextIO | None) -> None:
  if file is None:
    return
  try:
    print(text, file=file, flush=True)
  except (OSError, ValueError):  # ValueError: the file is closed.
    silence(file)


def silence(file: TextIO) -> None:
  """Sends what a file still buffers, and all that follows, to nowhere.

  Python would otherwise try again as it ends, and exit with a code of its own.

  Args:
    file: standard output or standard error.

  Example:
    >>> import io
    >>> silence(io.StringIO())  # has no descriptor
  """
  with contextlib.suppress(OSError, ValueError, AttributeError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)


def open_streams() -> None:
  """Makes the standard streams safe to write to.

  One that is closed (`2>&-`) becomes /dev/null. The next file that the program opens
  would get its number otherwise, and messages would be written into it. A character
  that the terminal lacks is written as an escape.

  Example:
    >>> open_streams()
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # It gets the lowest number that is free.
    if getattr(sys, name) is None:
      stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
      setattr(sys, name, stream)
    elif number and getattr(getattr(sys, name), "errors", None) == "strict":
      getattr(sys, name).reconfigure(errors="backslashreplace")
