"""The runs of a comparison: programs of their own, stopped together."""

import concurrent.futures
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable


def command_of(experiment: str) -> list[str]:
  """The command of an experiment, without its flags."""
  return [sys.executable, "-m", f"experiments.{experiment}"]


class Runner:
  """Runs experiments as programs of their own and stops them when asked to.

  A program has a session of its own: a terminal's Ctrl-C reaches it through `stop`
  alone, which asks once, and a second request would end it without saving.

  Args:
    logs: directory of their output.
    command: `command(experiment) -> words`, what is run.
  """

  def __init__(
    self, logs: pathlib.Path, command: Callable[[str], list[str]] = command_of
  ):
    self._logs = logs
    self._command = command
    self._lock = threading.Lock()
    self._running: set[subprocess.Popen[bytes]] = set()
    self._stopped = False

  def __call__(self, experiment: str, name: str, arguments: list[str]) -> int:
    """Runs `command(experiment)` with these flags; returns its exit code.

    Raises:
      OSError: if it cannot be started.
    """
    self._logs.mkdir(parents=True, exist_ok=True)
    words = [*self._command(experiment), *arguments]
    ended: concurrent.futures.Future[int] = concurrent.futures.Future()

    # Signals raise in the main thread. This one starts the program, notes it and waits
    # for it, so that none of these can be cut short.
    def run() -> None:
      try:
        ended.set_result(self._run(words, self._logs / f"{name}.txt"))
      except BaseException as error:
        ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return ended.result()

  def _run(self, words: list[str], log: pathlib.Path) -> int:
    with log.open("ab") as output:
      with self._lock:
        if self._stopped:
          return 128 + signal.SIGTERM
        process = subprocess.Popen(
          words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._running.add(process)
      code = process.wait()
      with self._lock:
        self._running.discard(process)
      return code

  def stop(self) -> None:
    """Asks all running programs once to save and to end; waits until they have.

    No further one is started. A second call asks those that still run again.
    """
    with self._lock:
      self._stopped = True
      running = list(self._running)
    for process in running:
      process.send_signal(signal.SIGTERM)
    for process in running:
      process.wait()
