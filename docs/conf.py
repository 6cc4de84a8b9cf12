"""The site: `python -m sphinx -E -W docs build/site`, from the root of the checkout."""

import hashlib
import os
import pathlib
import re
import shutil
from importlib import metadata

from ipykernel.kernelspec import write_kernel_spec

import jsharp

ROOT = pathlib.Path(__file__).parents[1]
BUILD = ROOT / "build" / "tutorials"

project = "jsharp"
author = "the authors of jsharp"
copyright = f"2026, {author}"
version = release = jsharp.__version__
extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
]
exclude_patterns = ["results/runs/**", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"jsharp {version}"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_heading_anchors = 4


def _digest():
  """Of all code that a tutorial runs, its own excepted: the cache compares that."""
  found = hashlib.sha256()
  for path in sorted((ROOT / "jsharp").rglob("*.py")):
    found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
  for package in ("jax", "jaxlib", "flax", "optax", "equinox", "matplotlib"):
    found.update(f"{package} {metadata.version(package)}".encode())
  return found.hexdigest()[:16]


def _use_this_python():
  """Tutorials run in this Python, on this checkout, whatever kernels a user has."""
  kernels = BUILD / "jupyter" / "kernels" / "python3"
  shutil.rmtree(kernels, ignore_errors=True)
  write_kernel_spec(kernels)
  for variable, path in (
    ("JUPYTER_PATH", BUILD / "jupyter"),
    ("PYTHONPATH", ROOT),
  ):
    others = [os.environ[variable]] if os.environ.get(variable) else []
    os.environ[variable] = os.pathsep.join([str(path), *others])
  os.environ.pop("MPLBACKEND", None)  # The kernel's own shows pictures.


_use_this_python()
nb_execution_mode = "cache"
nb_execution_cache_path = str(BUILD / "cache" / _digest())
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"
nb_merge_streams = True

default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # The text names types and shapes, and is shorter.
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Class attributes", "params_style")]


def setup(app):
  """Makes docstrings, which are plain text with code in backticks, into reST."""
  app.connect("autodoc-process-docstring", _as_rest, priority=400)
  app.connect("autodoc-skip-member", _is_field)


def _is_field(app, what, name, obj, skip, options):
  """Fields of named tuples stand among the attributes of their class."""
  return True if type(obj).__name__ == "_tuplegetter" else None


def _as_rest(app, what, name, obj, options, lines):
  made, code, example = [], False, False
  for number, line in enumerate(lines):
    indented = line.startswith("    ")
    before = made[-1] if made else ""
    if indented and not before.strip() and not code and _is_top(lines, number):
      made += ["::", ""]
      code = True
    elif line.strip() and not indented:
      code = False
    example = ">>>" in line or (example and bool(line.strip()))
    made.append(line if code or example else _escaped(line))
  lines[:] = made


def _is_top(lines, number):
  """Whether an indented line belongs to no section such as `Args:`."""
  for line in reversed(lines[:number]):
    if line.strip() and not line.startswith(" "):
      return not re.fullmatch(r"[A-Z][A-Za-z ]*:", line.strip())
  return True


def _escaped(line):
  parts = re.split(r"(`[^`]*`)", line)
  return "".join(
    part if part.startswith("`") else re.sub(r"([|*]|\w_(?!\w))", _mark, part)
    for part in parts
  )


def _mark(found):
  text = found.group(0)
  return f"\\{text}" if len(text) == 1 else f"{text[0]}\\_"
