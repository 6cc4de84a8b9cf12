import os
import subprocess
import sys

from absl.testing import absltest

_FAULTS = """
import resource
import sys

import numpy as np

from jsharp import host_memory

if "keep" in sys.argv:
  assert host_memory.keep_freed_memory()


def use():
  np.ones(2**25, np.uint8)


use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments):
  """Of a new process that takes and frees four times 32 MiB, after a first time."""
  command = [sys.executable, "-c", _FAULTS, *arguments]
  # NumPy would ask for huge pages, whose faults are few.
  environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
  done = subprocess.run(
    command, capture_output=True, text=True, check=True, env=environment
  )
  return int(done.stdout)


class HostMemoryTest(absltest.TestCase):
  def test_freed_memory_is_used_again(self):
    try:
      if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        self.skipTest("another C library")
    except ValueError:
      self.skipTest("another C library")
    # 32,768 without it, or 64 where all pages are huge.
    self.assertLess(page_faults("keep"), 32)


if __name__ == "__main__":
  absltest.main()
