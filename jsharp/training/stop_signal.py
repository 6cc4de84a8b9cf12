"""Graceful stopping on SIGTERM, SIGHUP and Ctrl-C."""

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
"""Signals within this time count as one, for launchers that signal a group too."""


class StopRequested(Exception):
  """Raised by `StopSignal.check` once a stop was requested."""


class StopSignal:
  """Turns the first SIGTERM, SIGHUP or Ctrl-C into a request, the second into an exit.

  Inside `with StopSignal() as stop:` (main thread only) the first signal sets
  `stop.requested`, which loops check, as soon as Python runs in the main thread. The
  second signal ends the process at once with exit code 128 + its number, even during a
  compilation, because a separate thread watches for it. Signals within `SAME_SECONDS`
  count as one. Leaving the block restores the previous handlers. Without entering the
  block, it is a flag that only `request` sets.

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
    """The exit code: 128 + the signal (143 after SIGTERM), 0 without a signal."""
    return 0 if self._signum is None else 128 + self._signum

  def request(self, signum: int = signal.SIGTERM) -> None:
    """Requests a stop from inside the program, as if by that signal."""
    self._signum = int(signum)

  def check(self) -> None:
    """Raises if a stop was requested; call it at least once a second in long work.

    Raises:
      StopRequested: if a stop was requested.
    """
    if self.requested:
      raise StopRequested

  @contextlib.contextmanager
  def ending_at_once(self) -> Iterator[None]:
    """Lets the first signal end the process at once, while nothing is unsaved.

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
    # Python runs handlers only between two bytecodes, which may take a minute during a
    # compilation; the file descriptor is written to at once.
    self._previous_descriptor = signal.set_wakeup_fd(
      self._writer.fileno(), warn_on_full_buffer=False
    )
    for signum in _SIGNALS:
      if signal.getsignal(signum) is signal.SIG_IGN:
        continue  # Ignored signals stay ignored, as under nohup.
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
    first: float | None = None  # A request from inside is not a signal.
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
          f"\n{signal.Signals(signum).name}: saving and stopping, after a running "
          "compilation; repeat the signal to stop at once\n"
        )


def _say(text: str) -> None:
  """Prints without buffering, since the process may end at any moment."""
  with contextlib.suppress(OSError):  # The reader may be gone.
    os.write(2, text.encode())
