"""Training runs as separate processes: several at a time, stopped together."""

import concurrent.futures
import contextlib
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from jsharp._files import open_own
from jsharp.training.stop_signal import SAME_SECONDS

Command = Callable[[str], Sequence[str]]
"""`command(program) -> words`, the command that starts a program."""


def module_command(program: str) -> list[str]:
  """The command that runs a module with this Python.

  Example:
    >>> module_command("experiments.sinusoid")[1:]
    ['-m', 'experiments.sinusoid']
  """
  return [sys.executable, "-m", program]


class Runner:
  r"""Runs programs with their output in files, and stops them on request.

  Each program has its own session, so a terminal's Ctrl-C reaches it only through
  `stop`, which signals once; a second signal would end it without saving.

  Args:
    logs: the directory of their output; created if missing.
    command: the command that starts a program.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   runner = Runner(pathlib.Path(directory), lambda program: [program])
    ...   code = runner("echo", "greeting", ["hello"])
    ...   code, (pathlib.Path(directory) / "greeting.txt").read_text()
    (0, 'hello\n')
  """

  def __init__(self, logs: pathlib.Path, command: Command = module_command):
    self._logs = logs
    self._command = command
    self._lock = threading.Lock()
    self._running: set[subprocess.Popen[bytes]] = set()
    self._stopped = False

  def __call__(self, program: str, name: str, arguments: Sequence[str]) -> int:
    """Runs a program to its end; may be called from several threads.

    Args:
      program: the argument of `command`.
      name: the name of its output file, without `.txt`; an existing file is appended
        to.
      arguments: words after the command.

    Returns:
      Its exit code; 143 if it was not started because `stop` was called.

    Raises:
      OSError: if it cannot be started.
    """
    self._logs.mkdir(parents=True, exist_ok=True)
    words = [*self._command(program), *arguments]
    ended: concurrent.futures.Future[int] = concurrent.futures.Future()

    # Signals raise exceptions in the main thread. This thread starts the program,
    # registers it and waits for it, so that no signal can interrupt these steps.
    def run() -> None:
      try:
        ended.set_result(self._run(words, self._logs / f"{name}.txt"))
      except BaseException as error:
        ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return ended.result()

  def _run(self, words: list[str], log: pathlib.Path) -> int:
    with open_own(log) as output:
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

  def wait_while(self, busy: Callable[[], bool]) -> None:
    """Waits for something other than this runner's programs, or until `stop`.

    Args:
      busy: whether to go on waiting; called every second.
    """
    while not self._stopped and busy():
      time.sleep(1.0)

  def stop(self) -> None:
    """Signals all running programs once to save and exit; waits until they have.

    No further programs are started. A second call signals those still running again.
    """
    with self._lock:
      self._stopped = True
      running = list(self._running)
    for process in running:
      process.send_signal(signal.SIGTERM)
    for process in running:
      process.wait()


def run_all(
  calls: Mapping[str, Callable[[], int]], *, jobs: int
) -> Iterator[tuple[str, int]]:
  """Makes several calls, `jobs` at a time, and yields each result when it is ready.

  Args:
    calls: the calls by name; each returns an exit code.
    jobs: the number of calls at a time. With 1 they run in order and in this thread.

  Returns:
    `(name, exit code)` in order of completion. If the caller stops early or a call
    raises, no further calls are made.

  Example:
    >>> list(run_all({"a": lambda: 0, "b": lambda: 1}, jobs=1))
    [('a', 0), ('b', 1)]
  """
  if jobs == 1:
    for name, call in calls.items():
      yield name, call()
    return
  pool = concurrent.futures.ThreadPoolExecutor(jobs)
  try:
    futures = {pool.submit(call): name for name, call in calls.items()}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


class Interrupted(Exception):
  """A signal asked for a stop; `args[0]` is its number."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Turns SIGINT, SIGTERM and SIGHUP into `Interrupted`, in the main thread.

  Under nohup, SIGHUP is still ignored. Signals within half a second count as one, since
  a terminal or a launcher may signal a process and then its group.

  Example:
    >>> with interruptible():
    ...   try:
    ...     signal.raise_signal(signal.SIGTERM)
    ...   except Interrupted as interrupted:
    ...     interrupted.args
    (15,)
  """
  last = -SAME_SECONDS

  def interrupt(number: int, frame: object) -> None:
    nonlocal last
    now = time.monotonic()
    if now - last >= SAME_SECONDS:
      last = now
      raise Interrupted(number)

  previous = {
    number: signal.signal(number, interrupt)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is threading.main_thread()
    and (number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)
  }
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def stop_and_wait(stop: Callable[[], None], say: Callable[[str], None]) -> None:
  """Stops programs, and signals them again whenever another signal arrives.

  Args:
    stop: as `Runner.stop`; a program that is signalled twice ends without saving.
    say: called with messages about the progress.

  Example:
    >>> stop_and_wait(lambda: None, print)
    the runs are saving; repeat the signal to end them without saving
  """
  what = "the runs are saving; repeat the signal to end them without saving"
  while True:
    try:
      say(what)
      return stop()
    except Interrupted:
      what = "the runs end now"
