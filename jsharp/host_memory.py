"""Memory that the process keeps between two calls of a compiled program."""

import ctypes
import os

# The numbers of glibc's malloc.h.
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1


def keep_freed_memory() -> bool:
  """Lets the C library keep what is freed, to be used again.

  On a CPU, XLA allocates all intermediate results of a program when it is called, and
  frees them when it ends. By default glibc returns so much memory to the system at
  once, and the next call is given new pages, each of which the system first clears: a
  fifth to a third of the time of a second-order meta-step whose maps are large. With
  this the process keeps its pages. So it stays as large as it ever was, loading its
  data included, and gets larger than otherwise where what is freed is too scattered to
  serve again. All threads share one heap, which matters only where many of them
  allocate at a time. It is for the whole process, and for good, and has no use where
  JAX computes on an accelerator; call it in programs, before JAX starts its threads.

  Returns:
    Whether it was done: nothing is where the C library is not glibc.

  Example:
    >>> from jsharp import host_memory
    >>> kept = host_memory.keep_freed_memory()
  """
  if not _is_glibc():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  done = [
    # One heap for all threads, which can grow and shrink at one end ...
    mallopt(_M_ARENA_MAX, 1),
    # ... holds large arrays too, which otherwise are mapped one by one ...
    mallopt(_M_MMAP_MAX, 0),
    # ... and never shrinks.
    mallopt(_M_TRIM_THRESHOLD, -1),
  ]
  return all(done)


def _is_glibc() -> bool:
  try:
    return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
  except (AttributeError, ValueError, OSError):  # No such function, name or value.
    return False
