"""Packaging: the version and the dependencies, each from its one source."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

requirements = [
  line
  for line in (ROOT / "requirements.txt").read_text().splitlines()
  if line and not line.startswith("#")
]
match = re.search(r'__version__ = "(.+)"', (ROOT / "jsharp/_version.py").read_text())
assert match, "jsharp/_version.py must define __version__"

# With JAX 0.10, later versions of grain warn in every process.
stream = [
  "grain>=0.2.16,<0.2.17; python_version < '3.12'",
  "grain>=0.2.18; python_version >= '3.12'",
]
demo = ["starlette>=1.0", "uvicorn>=0.40"]

setup(
  version=match.group(1),
  packages=find_packages(include=["jsharp", "jsharp.*"]),
  package_data={"jsharp": ["py.typed", "shipped/*/*"]},
  install_requires=requirements,
  extras_require={
    "test": ["pytest>=8.2", "pytest-xdist>=3.6", "equinox>=0.13", *demo, *stream],
    "browser": ["playwright>=1.58"],
    "demo": demo,
    "lint": [
      "ruff>=0.17,<0.18",
      "mypy>=2.4,<3",
      "import-linter>=2.17,<3",
      "build>=1.3",
      "twine>=6.2",
    ],
    "tensorboard": ["tensorboardX>=2.6.4"],
    "docs": [
      "sphinx>=9,<10",
      "myst-nb>=1.4",
      "furo>=2025.12",
      "ipykernel>=7",
      "equinox>=0.13",
    ],
    "stream": stream,
    "brax": ["brax>=0.14"],
    "onnx": ["jax2onnx>=0.17.1", "onnx>=1.20", "onnxruntime>=1.24"],
  },
)
