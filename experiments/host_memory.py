"""How the system hands memory to a program that computes on the CPU.

It imports nothing, so that what starts anew has not waited for JAX before.
"""

import os
import sys

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
  """Starts the running program anew with huge pages for its large arrays.

  On a CPU, XLA allocates all intermediate results of a program when it is called and
  frees them when it ends. So much memory goes back to the system at once, and the next
  call is given new pages, which the system first clears one by one. Pages of 2 MiB in
  place of 4 KiB are handed out and found faster: measured in docs/performance.md. The C
  library asks for them if `GLIBC_TUNABLES` says so when a process starts, hence the
  restart, in the same process and with the same arguments; what was read from standard
  input is lost. Call it first in a program, or set `GLIBC_TUNABLES=
  glibc.malloc.hugetlb=1` yourself.

  Does nothing where that variable decides on huge pages already (so nothing in the
  program that was started anew), and where the system is not Linux. Another C library
  than glibc takes no notice.

  Raises:
    OSError: if the interpreter cannot be started again.

  Example:
    >>> import os
    >>> from experiments import host_memory
    >>> os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"
    >>> host_memory.restart_with_huge_pages()  # Decided: this program goes on.
  """
  present = os.environ.get(_TUNABLES, "")
  if _HUGE_PAGES in present or sys.platform != "linux":
    return
  asked = f"{_HUGE_PAGES}=1"
  environment = {
    **os.environ,
    _TUNABLES: f"{present}:{asked}" if present else asked,
  }
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
