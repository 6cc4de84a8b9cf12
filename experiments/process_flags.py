"""The flags of runs that several processes train together."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

from absl import flags

from experiments.validators import positive

flags.disclaim_key_flags()  # as in common_flags.py


def define(flag_values: flags.FlagValues) -> None:
  """Defines them."""
  f = flag_values
  flags.DEFINE_boolean(
    "distributed",
    False,
    "Train with the other processes of this job, on all their devices; found from "
    "SLURM, Open MPI, Kubernetes or a TPU pod, or given by --coordinator.",
    flag_values=f,
  )
  flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of the first process, which keeps the run directory; with "
    "--num_processes and --process_id.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_processes", None, "How many processes there are.", flag_values=f
  )
  flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", flag_values=f)
  flags.DEFINE_float(
    "peer_timeout",
    300.0,
    "Seconds after which a process gives up on others that died (checked by "
    "heartbeats) or do not answer.",
    flag_values=f,
  )
  positive(("num_processes",), f, "give the number of processes.")
  positive(("peer_timeout",), f, "usual values lie between 60 and 600.")


def asked(settings: SimpleNamespace) -> bool:
  """Whether other processes take part."""
  names = ("coordinator", "num_processes", "process_id")
  given = any(getattr(settings, name, None) is not None for name in names)
  return given or getattr(settings, "distributed", False)


def has_joined() -> bool:
  """Whether this process is one of several by now."""
  import jax

  return jax.distributed.is_initialized()


@contextlib.contextmanager
def joined(settings: SimpleNamespace) -> Iterator[pathlib.Path | None]:
  """Joins the other processes; a directory for the records that nobody needs.

  Args:
    settings: the values of the flags; `num_devices` becomes that of all processes where
      it was not given.

  Yields:
    None in the first process, which keeps records; a temporary directory in another,
    which prints nothing but errors.

  Raises:
    ValueError: if flags are missing, or the others do not come.
  """
  import jax

  from jsharp.training import processes

  if settings.memory_budget is not None:
    raise ValueError(
      "--memory_budget would be decided by each process on its own; find the flags "
      "with one process, then pass --task_chunk and --second_order"
    )
  try:
    processes.start(
      coordinator=settings.coordinator,
      num_processes=settings.num_processes,
      process_id=settings.process_id,
      timeout=settings.peer_timeout,
    )
  except RuntimeError as error:
    raise ValueError(f"the other processes did not come: {error}") from error
  if settings.num_devices in (None, 1):  # Others are checked with all the rest.
    settings.num_devices = jax.device_count()
  if processes.is_first():
    yield None
    return
  with (
    tempfile.TemporaryDirectory() as directory,
    open(os.devnull, "w") as nowhere,
    contextlib.redirect_stdout(nowhere),
  ):
    yield pathlib.Path(directory)
