import os
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

_FAULTS = """
import resource
import sys

import numpy as np

from experiments import host_memory

host_memory.restart_with_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  np.ones(2**25, np.uint8)
print(*sys.argv[1:], resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_PROGRAM = """
import os
from unittest import mock

from experiments import program, sinusoid

show = lambda *_: print(os.environ.get("GLIBC_TUNABLES")) or 0
with mock.patch.object(program, "run", show):
  program.start("sinusoid", sinusoid.define_flags, sinusoid.build)
"""
_KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def output(code, *arguments, **variables):
  environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    capture_output=True,
    text=True,
    check=True,
    env={**environment, **variables},
  )
  return done.stdout.strip()


class HostMemoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if sys.platform != "linux":
      self.skipTest("not Linux")

  def test_fewer_pages_are_handed_out(self):
    try:
      if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        self.skipTest("another C library")
    except (AttributeError, ValueError, OSError, TypeError):
      self.skipTest("another C library")
    if not _KERNEL.exists() or "[madvise]" not in _KERNEL.read_text():
      self.skipTest("no huge pages on request")
    # NumPy asks for huge pages by itself.
    numpy = {"NUMPY_MADVISE_HUGEPAGE": "0"}
    refused = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    *arguments, plain = output(_FAULTS, "a b", "c", **numpy, **refused).split()
    self.assertEqual(arguments, ["a", "b", "c"])
    *arguments, huge = output(_FAULTS, "a b", "c", **numpy).split()
    self.assertEqual(arguments, ["a", "b", "c"])
    # 8,192 pages of 4 KiB are 16 of 2 MiB, four times.
    self.assertGreater(int(plain), 4 * 8000)
    self.assertLess(int(huge), int(plain) / 4)

  @parameterized.parameters(
    ((), None, "glibc.malloc.hugetlb=1"),
    ((), "glibc.malloc.hugetlb=2", "glibc.malloc.hugetlb=2"),
    ((), "glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
    (("--nohuge_pages",), None, "None"),
  )
  def test_programs_ask_for_them(self, flags, present, expected):
    variables = {} if present is None else {"GLIBC_TUNABLES": present}
    self.assertEqual(output(_PROGRAM, *flags, **variables), expected)


if __name__ == "__main__":
  absltest.main()
