"""Printing that never fails, even if the reader is gone or the disk is full."""

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
  """Discards a file's buffer and everything written to it later.

  Otherwise Python would try to flush it again at exit, and set its own exit code.

  Args:
    file: standard output or standard error.

  Example:
    >>> import io
    >>> silence(io.StringIO())  # No effect without a file descriptor.
  """
  with contextlib.suppress(OSError, ValueError, AttributeError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)


def open_streams() -> None:
  """Makes the standard streams safe to write to.

  A closed stream (`2>&-`) becomes /dev/null. Otherwise the next file that the program
  opens would get its descriptor, and messages would be written into that file.
  Characters that the terminal cannot encode are written as escapes.

  Example:
    >>> open_streams()
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # It gets the lowest free descriptor.
    if getattr(sys, name) is None:
      stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
      setattr(sys, name, stream)
    elif number and getattr(getattr(sys, name), "errors", None) == "strict":
      getattr(sys, name).reconfigure(errors="backslashreplace")
