"""Tests that need eight devices, in a process that has eight virtual ones.

JAX's devices are fixed when it starts, so a test module calls itself as a program.
"""

import os
import subprocess
import sys


def run_on_eight(test, module, *, num_tests, xla_flags=""):
  """Runs the class `OnEightDevices` of a module; all its tests have to pass."""
  devices = "--xla_force_host_platform_device_count=8"
  environment = {
    **os.environ,
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags} {devices}".strip(),
    "JAX_PLATFORMS": "cpu",
    "NPROC": "32",  # fewer threads than devices can deadlock
  }
  done = subprocess.run(
    [sys.executable, "-m", module, "OnEightDevices"],
    env=environment,
    capture_output=True,
    text=True,
    timeout=500,
  )
  test.assertEqual(done.returncode, 0, done.stderr[-5000:])
  test.assertIn(f"Ran {num_tests} test", done.stderr)
