"""A process that has nothing but the library."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]


def outputs_elsewhere(code: str, directory: pathlib.Path) -> np.ndarray:
  """Runs code that assigns `outputs`; fails where it imports the programs."""
  end = (
    "print([name for name in sys.modules if name.startswith('experiments')])\n"
    "print(np.asarray(outputs).ravel().tolist())\n"
  )
  ran = subprocess.run(
    [sys.executable, "-c", f"import sys, jsharp, numpy as np\n{code}{end}"],
    cwd=directory,
    env={
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    },
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stderr
  experiments, outputs = ran.stdout.splitlines()
  assert experiments == "[]", experiments
  return np.array(json.loads(outputs))
