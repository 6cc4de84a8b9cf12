import os
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from jsharp import host_memory

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

_PROGRAM = """
from unittest import mock

from experiments import program, sinusoid
from jsharp import host_memory

with (
  mock.patch.object(host_memory, "keep_freed_memory", lambda: print("kept")),
  mock.patch.object(program, "run", lambda *_: 0),
):
  program.start("sinusoid", sinusoid.define_flags, sinusoid.build)
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


class HostMemoryTest(parameterized.TestCase):
  def test_freed_memory_is_used_again(self):
    if not host_memory._is_glibc():
      self.skipTest("another C library")
    # 32,768 without it, or 64 where all pages are huge.
    self.assertLess(page_faults("keep"), 32)

  @parameterized.parameters(AttributeError, ValueError, OSError)
  def test_another_c_library_is_left_alone(self, error):
    with mock.patch.object(os, "confstr", side_effect=error):
      self.assertFalse(host_memory.keep_freed_memory())

  def test_the_programs_do_it(self):
    command = [sys.executable, "-c", _PROGRAM]
    for flags, expected in (((), "kept"), (("--nokeep_memory",), "")):
      done = subprocess.run(
        [*command, *flags], capture_output=True, text=True, check=False
      )
      self.assertEqual(done.stdout.strip(), expected, done.stderr)


if __name__ == "__main__":
  absltest.main()
