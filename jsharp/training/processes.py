"""Training one run with several processes: agreement, and timeouts.

All processes run the same program on the same tasks and states; only the first one
writes records and checkpoints. They have to agree on what only one of them knows: a
signal that requested a stop, the length of the next dispatch, the checkpoint to resume
from.

A process that dies breaks its connections; one that hangs would block the others for
ever. `Peers.patience` ends them in both cases. JAX's own heartbeats, which would abort
them with a stack dump, have a longer timeout.
"""

import contextlib
import ipaddress
import json
import os
import pathlib
import re
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jsharp._checks import check_nonnegative
from jsharp.training.options import Machine

# Words in error messages of JAX's CPU collectives and of its coordination service.
_LOST = "(?i)gloo|connect|socket|broken pipe|timed? ?out|unavailable|peer"
_WHILE_THE_FIRST_TESTS = 7 * 24 * 3600  # seconds

NEVER_CAME = 2
"""Exit code of a process if the others did not start in time."""

GIVEN_UP = 75
"""Exit code of a process that lost its peers, or whose run is in use by another."""


def start(
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = 300.0,
) -> None:
  """Joins this process to the others, before anything else of JAX is used.

  Args:
    coordinator: `host:port` of the first process; None lets JAX find all three
      arguments from SLURM, Open MPI, Kubernetes or a TPU pod.
    num_processes: the number of processes.
    process_id: the number of this process, counted from 0.
    timeout: how many seconds this process waits for the others. JAX considers a process
      without heartbeats dead after twice this time plus a minute.

  Raises:
    ValueError: if only some of the three are given, none can be found, or the
      coordinator is not a valid address.

  If the others do not connect in time, the process exits with the code `NEVER_CAME`.

  Example:
    >>> start(coordinator="127.0.0.1:8476", num_processes=2)
    Traceback (most recent call last):
    ...
    ValueError: process_id=None is missing; coordinator, num_processes and ...
  """
  given = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if 0 < len(missing) < 3:
    raise ValueError(
      f"{missing[0]}=None is missing; coordinator, num_processes and process_id go "
      "together: pass all of them, or none to find them from the launcher"
    )
  if coordinator is not None:
    _check_address(coordinator, listens=process_id == 0)
  # Its handler would swallow a SIGTERM that arrives before training handles signals.
  jax.config.update("jax_enable_preemption_service", False)
  at_home = coordinator is not None and _is_loopback(coordinator)
  # JAX itself would abort with a stack dump.
  others = threading.Timer(timeout, _never_came, (coordinator, num_processes, timeout))
  others.daemon = True
  others.start()
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      # It has no authentication, and by default it listens on all interfaces.
      coordinator_bind_address=coordinator if at_home else None,
      initialization_timeout=int(timeout) + 60,
      heartbeat_timeout_seconds=2 * int(timeout) + 60,
      shutdown_timeout_seconds=_WHILE_THE_FIRST_TESTS,
    )
  finally:
    others.cancel()


def _is_loopback(coordinator: str) -> bool:
  host = coordinator.rpartition(":")[0].strip("[]")
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host == "localhost"


def _check_address(coordinator: str, *, listens: bool) -> None:
  """Rejects an invalid address, and one whose port is not free on this machine."""
  host, colon, port = coordinator.rpartition(":")
  if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ValueError(
      f"coordinator={coordinator} must be HOST:PORT with a port from 1 to 65535, as in "
      "node1:8476"
    )
  try:
    socket.getaddrinfo(host.strip("[]"), int(port))
  except OSError as error:
    raise ValueError(
      f"coordinator={coordinator}: cannot find the host {host} ({error.strerror}); "
      "name the machine of the first process"
    ) from error
  if listens:
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        probe.bind(("", int(port)))
      except OSError as error:
        raise ValueError(
          f"coordinator={coordinator}: port {port} cannot be used here "
          f"({error.strerror}); choose another one"
        ) from error


def _never_came(
  coordinator: str | None, num_processes: int | None, timeout: float
) -> None:
  """Ends a process whose peers did not start; like a bad flag, it is not retried."""
  count = "all" if num_processes is None else f"all {num_processes}"
  where = "the first one" if coordinator is None else f"the first one at {coordinator}"
  text = (
    f"\nwaited {timeout:g} s for the other processes, but they did not connect: start "
    f"{count} of them, each with its own --process_id and {where}\n"
  )
  _end(text, NEVER_CAME)


def _end(text: str, code: int) -> None:
  """Ends this process from any thread, even if its message cannot be printed."""
  with contextlib.suppress(OSError):
    os.write(2, text.encode())
  os._exit(code)


def has_joined() -> bool:
  """Whether this process has joined others.

  Example:
    >>> has_joined()
    False
  """
  return jax.distributed.is_initialized()


@contextlib.contextmanager
def joined(machine: Machine) -> Iterator[pathlib.Path | None]:
  """Joins the other processes, and keeps all but the first one quiet.

  Args:
    machine: how they find each other.

  Yields:
    None in the first process, which writes records; in the others, which print only
    errors, a temporary directory for their unused records.

  Raises:
    ValueError: if flags are missing, or the others do not connect.

  Example:
    >>> from jsharp.training.options import Machine
    >>> with joined(Machine(process_id=1)):
    ...   pass
    Traceback (most recent call last):
    ValueError: coordinator=None is missing; coordinator, num_processes and ...
  """
  try:
    start(
      coordinator=machine.coordinator,
      num_processes=machine.num_processes,
      process_id=machine.process_id,
      timeout=machine.peer_timeout,
    )
  except RuntimeError as error:
    raise ValueError(
      f"the other processes did not connect: {error}; start all of them"
    ) from error
  try:
    if is_first():
      yield None
      return
    with (
      tempfile.TemporaryDirectory() as directory,
      open(os.devnull, "w") as nowhere,
      contextlib.redirect_stdout(nowhere),
    ):
      yield pathlib.Path(directory)
  except Exception:
    # A normal exit would wait for the others, and they for this one.
    traceback.print_exc()
    leave(1)


def is_first() -> bool:
  """Whether this process is the one that writes records.

  Example:
    >>> is_first()
    True
  """
  return jax.process_index() == 0


def leave(code: int) -> NoReturn:
  """Ends this process without waiting for the others, which then notice its end.

  Args:
    code: the exit code.

  Example:
    >>> import subprocess
    >>> code = "from jsharp.training import processes; processes.leave(3)"
    >>> subprocess.run([sys.executable, "-c", code]).returncode
    3
  """
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


class Peers:
  """The processes of a run, including this one.

  Args:
    timeout: seconds to wait for the others where all processes have to meet.

  Example:
    >>> peers = Peers(timeout=300.0)
    >>> peers.agree(stop=False, length=7)
    (False, 7)
  """

  def __init__(self, *, timeout: float):
    check_nonnegative("timeout", timeout)
    self._timeout = timeout

  def agree(self, *, stop: bool, length: int) -> tuple[bool, int]:
    """Whether any process stops, and the `length` of the first process."""
    if jax.process_count() == 1:
      return stop, length
    with self.patience("the other processes"):
      every = multihost_utils.process_allgather(np.array([stop, length], np.int32))
    return bool(every[:, 0].any()), int(every[0, 1])

  def from_first(self, tree: Any) -> Any:
    """The first process's arrays; shapes and dtypes are the same on all."""
    if jax.process_count() == 1:
      return tree
    with self.patience("the first process"):
      return multihost_utils.broadcast_one_to_all(tree)

  def text_from_first(self, text: str) -> str:
    """The first process's text."""
    if jax.process_count() == 1:
      return text
    content = text.encode()
    size = int(self.from_first(np.int32(len(content))))
    content = content.ljust(size)[:size]
    return bytes(self.from_first(np.frombuffer(content, np.uint8))).decode()

  def check_same(self, facts: Mapping[str, Any]) -> None:
    """Checks that all processes were started for the same run.

    Args:
      facts: JSON values that must be the same in all processes.

    Raises:
      ValueError: in every process if any differs; in a process that differs from the
        first one, the message lists each difference with both values.

    Example:
      >>> Peers(timeout=300.0).check_same({"seed": 0})
    """
    if jax.process_count() == 1:
      return
    here = json.loads(json.dumps(facts))
    there = json.loads(self.text_from_first(json.dumps(facts)))
    differing = [
      f"  {name}: {there.get(name)} in the first, {here.get(name)} in this one"
      for name in sorted(here.keys() | there.keys())
      if here.get(name) != there.get(name)
    ]
    with self.patience("the other processes"):
      every = multihost_utils.process_allgather(np.int32(bool(differing)))
    others = np.flatnonzero(every).tolist()
    if others:
      which = f"process {', '.join(map(str, others))}: see there"
      raise ValueError(
        "the processes were not started for the same run:\n"
        + ("\n".join(differing) or f"  {which}")
        + "\nStart all of them with the same flags, data and versions"
      )

  @contextlib.contextmanager
  def patience(self, whom: str) -> Iterator[None]:
    """Ends this process if the block fails or takes longer than the timeout."""
    if jax.process_count() == 1:
      yield
      return
    waited = f"waited {self._timeout:g} s for {whom}"
    timer = threading.Timer(self._timeout, self._give_up, (waited,))
    timer.daemon = True
    timer.start()
    try:
      yield
    except (jax.errors.JaxRuntimeError, ValueError, OSError) as error:
      # JAX reports some connection errors as ValueError.
      is_ours = isinstance(error, jax.errors.JaxRuntimeError)
      if "RESOURCE_EXHAUSTED" in str(error):
        raise
      if not is_ours and not re.search(_LOST, str(error)):
        raise
      self._give_up(f"lost {whom} ({str(error).splitlines()[0]})")
    finally:
      timer.cancel()

  def _give_up(self, what: str) -> None:
    text = (
      f"\nprocess {jax.process_index()} of {jax.process_count()} {what} and gives up; "
      "start all processes again to resume from the last checkpoint\n"
    )
    _end(text, GIVEN_UP)  # A normal exit would wait for the others again.
