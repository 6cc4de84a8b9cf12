"""How many cores of a CPU compute what a device is given."""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_ASSUMED: ContextVar[bool | None] = ContextVar("one_core_each", default=None)


@contextlib.contextmanager
def assume_one_core_each(answer: bool = True) -> Iterator[None]:
  """Within it `one_core_each` has this answer, so that programs are the same anywhere.

  JAX's cache of traced functions knows nothing of it: of a function that was jitted
  before, make a new one.

  Args:
    answer: what to assume.

  Example:
    >>> with assume_one_core_each():
    ...   one_core_each()
    True
  """
  before = _ASSUMED.set(answer)
  try:
    yield
  finally:
    _ASSUMED.reset(before)


def one_core_each() -> bool:
  """Whether this process' devices are parts of a CPU with one core each, or less.

  Then nothing is gained by dividing an operation among threads, and operations with
  less arithmetic win that threads would have to wait for each other in.

  Example:
    >>> with assume_one_core_each(False):
    ...   one_core_each()
    False
  """
  assumed = _ASSUMED.get()
  if assumed is not None:
    return assumed
  if jax.default_backend() != "cpu":
    return False
  return _num_cores() <= jax.local_device_count()


def _num_cores() -> int:
  """Those that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
