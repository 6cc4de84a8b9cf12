"""Stopping in an orderly way on SIGTERM, SIGHUP and Ctrl-C."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from jsharp import _early

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

SAME_SECONDS = 0.5
"""Signals closer than this are one: a launcher signals a process and then its group."""


class StopRequested(Exception):
  """Raised by `StopSignal.check` once a stop was requested."""


class StopSignal:
  """Turns the first SIGTERM, SIGHUP or Ctrl-C into a request, the second into an exit.

  Inside `with StopSignal() as stop:` (main thread only) the first signal sets
  `stop.requested`, which loops look at: as soon as Python runs in the main thread,
  however late the thread that watches gets its turn. The second ends the process at
  once with 128 + its own number, even in the middle of a compilation: for that a
  thread of its own watches. Signals closer than `SAME_SECONDS` are one. Leaving the
  block brings the previous handlers back. Never entered, it is a switch that only
  `request` sets.

  Example:
    >>> stop = StopSignal()
    >>> stop.requested
    False
    >>> stop.request()
    >>> stop.requested, stop.exit_code
    (True, 143)
  """

  def __init__(self) -> None:
    self._signum: int | None = None
    self._at_once = False
    self._previous: dict[int, Any] = {}

  @property
  def requested(self) -> bool:
    """Whether to stop at the next opportunity."""
    return self._signum is not None

  @property
  def exit_code(self) -> int:
    """What to exit with: 128 + the signal (143 after SIGTERM), 0 without one."""
    return 0 if self._signum is None else 128 + self._signum

  def request(self, signum: int = signal.SIGTERM) -> None:
    """Requests a stop from inside the program, as if by that signal."""
    self._signum = int(signum)

  def check(self) -> None:
    """Call it between the parts of anything that takes more than a second.

    Raises:
      StopRequested: if a stop was requested.
    """
    if self.requested:
      raise StopRequested

  @contextlib.contextmanager
  def ending_at_once(self) -> Iterator[None]:
    """While nothing is unsaved, the first signal ends the process as the second does.

    Example:
      >>> with StopSignal().ending_at_once():
      ...   pass  # A compilation.
    """
    self._at_once = True
    try:
      yield
    finally:
      self._at_once = False

  def __enter__(self) -> Self:
    _early.check()
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    # Python runs its handlers only between two bytecodes, which may be a minute
    # away in a compilation; the file descriptor is written to at once.
    self._previous_descriptor = signal.set_wakeup_fd(
      self._writer.fileno(), warn_on_full_buffer=False
    )
    for signum in _SIGNALS:
      if signal.getsignal(signum) is signal.SIG_IGN:
        continue  # Under nohup and the like the caller does not want it heard.
      self._previous[signum] = signal.signal(signum, self._handle)
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)
    signal.set_wakeup_fd(self._previous_descriptor)
    self._writer.shutdown(socket.SHUT_RDWR)
    self._watcher.join()
    self._reader.close()
    self._writer.close()

  def _handle(self, signum: int, frame: object) -> None:
    if not self.requested:
      self.request(signum)

  def _watch(self) -> None:
    first: float | None = None  # A request from inside is no signal.
    while received := self._reader.recv(1):
      signum = received[0]
      if signum not in _SIGNALS:
        continue
      now = time.monotonic()
      if first is None and self._at_once:
        _say(f"\n{signal.Signals(signum).name}: stopping; there is nothing to save\n")
        os._exit(128 + signum)
      if first is not None and now - first >= SAME_SECONDS:
        _say("\nstopping at once\n")
        os._exit(128 + signum)
      if first is None:
        first = now
        self._handle(signum, None)
        _say(
          f"\n{signal.Signals(signum).name}: saving and stopping, after the "
          "compilation if there is one; once more to stop at once\n"
        )


def _say(text: str) -> None:
  """Past every buffer: the process may be gone in the next moment."""
  with contextlib.suppress(OSError):  # Nobody may be reading any more.
    os.write(2, text.encode())
