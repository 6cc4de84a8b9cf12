"""How many cores of a CPU compute what a device is given."""

import os

import jax


def one_core_each() -> bool:
  """Whether this process' devices are parts of a CPU with one core each, or less.

  Then nothing is gained by dividing an operation among threads, and operations with
  less arithmetic win that threads would have to wait for each other in.

  Example:
    >>> one_core_each() in (True, False)
    True
  """
  if jax.default_backend() != "cpu":
    return False
  return _num_cores() <= jax.local_device_count()


def _num_cores() -> int:
  """Those that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
