r"""Published figures beside our runs: one table, from records, without training.

How close do our runs come to the papers, at what share of their budget, and what
differs?

  python -m experiments.published --runs=runs/A,runs/B --out=published.md
  python -m experiments.published --runs=docs/results/runs --out=docs/results.md

The published figures and their sources are in experiments/published.toml. A run belongs
to a figure if it has the same data, method, way and shot as the flagfile that the
figure names. Runs that belong to none are listed in a table of their own.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import ClassVar

from absl import flags

from experiments import _program
from jsharp import _files
from jsharp._flags import Group, Program
from jsharp._terminal import say, tell
from jsharp.options import Check, Options, Role, option

NAME = "published"
FIGURES = pathlib.Path(__file__).with_name("published.toml")
BEGIN = "<!-- begin: python -m experiments.published -->"
END = "<!-- end: python -m experiments.published -->"
_MAX_BYTES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published(Options):
  """The figures, the runs and the file to write."""

  role: ClassVar[Role] = Role.MACHINE

  runs: tuple[str, ...] = option(
    help="Directories separated by commas: of a run, finished or not, or of several "
    "runs. A run that is training is only read.",
    check=Check(bool, "there is no run; pass directories separated by commas."),
  )
  out: str = option(
    help="Markdown file for the table. If it exists, the text between its two lines "
    f"'{BEGIN}' and '{END}' is replaced.",
  )
  published: str = option(
    str(FIGURES), "TOML file with the published figures and their sources."
  )


PROGRAM = Program(NAME, (Group("files", {"published": Published}),), {}, __doc__ or "")


def start(arguments: Sequence[str], values: flags.FlagValues) -> int:
  """Writes the table as a command line says.

  Returns:
    The exit code: 0 done, 2 bad flags, figures or runs.
  """
  return _program.call(PROGRAM, arguments, values, lambda given: run(**given.build()))


def run(published: Published) -> int:
  """Writes the table; returns the exit code."""
  try:
    out = pathlib.Path(published.out).expanduser()
    before = _files.read_bytes_if_there(out, most=_MAX_BYTES)
    text, unmatched = render(pathlib.Path(published.published), published.runs)
    content = text if before is None else replaced(before.decode(), text, out)
    _files.write_atomically(out, content.encode())
  except (ValueError, OSError) as error:
    return _program.refuse(NAME, _program.message(error))
  for line in unmatched:
    say(f"{NAME}: {line}")
  tell(f"{out}: written")
  return 0


def render(figures: pathlib.Path, runs: Sequence[str]) -> tuple[str, list[str]]:
  """The table, between its two marker lines, and why runs belong to no figure.

  Args:
    figures: the TOML file with the published figures.
    runs: directories of runs, or of several runs.

  Raises:
    ValueError: if a file is invalid; the message names it, the key and the fix.
    OSError: if a file cannot be read.
  """
  # Imported late: they import JAX.
  from experiments import _published_figures, _published_runs, _published_table

  known = _published_figures.load(figures.expanduser())
  ours = _published_runs.read_all([pathlib.Path(name).expanduser() for name in runs])
  text, unmatched = _published_table.markdown(known, ours)
  return f"{BEGIN}\n\n{text}\n{END}\n", unmatched


def replaced(page: str, text: str, where: pathlib.Path) -> str:
  """A page with the text between its marker lines replaced.

  Raises:
    ValueError: if the page does not have each marker once, in order.
  """
  head, begin, rest = page.partition(f"{BEGIN}\n")
  _, end, tail = rest.partition(f"{END}\n")
  if not (begin and end) or BEGIN in tail or END in head:
    raise ValueError(
      f"--out={where} exists, but does not have these two lines once each, in this "
      f"order; add them, or choose another file:\n{BEGIN}\n{END}"
    )
  return f"{head}{text}{tail}"


if __name__ == "__main__":
  sys.exit(start(sys.argv[1:], flags.FLAGS))
