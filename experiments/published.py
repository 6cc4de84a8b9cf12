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
PARTS = ("runs", "figures")
BEGIN = "<!-- experiments.published: begin {} -->"
END = "<!-- experiments.published: end {} -->"
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
    help="Markdown file for the tables. If it exists, the text between its marker "
    f"lines is replaced: '{BEGIN.format('runs')}' to '{END.format('runs')}', and the "
    "same for 'figures'.",
  )
  published: str | None = option(
    None,
    "TOML file with the published figures and their sources. Default: "
    "experiments/published.toml.",
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
    figures = pathlib.Path(published.published or FIGURES)
    tables, unmatched = render(figures, published.runs)
    page = (
      "\n".join(map(marked, PARTS, ("", ""))) if before is None else decoded(before)
    )
    for part, text in tables.items():
      page = replaced(page, part, text, out)
    _files.write_atomically(out, page.encode(errors="surrogateescape"))
  except (ValueError, OSError) as error:
    return _program.refuse(NAME, _program.message(error))
  for line in unmatched:
    say(f"{NAME}: {line}")
  tell(f"{out}: written")
  return 0


def render(
  figures: pathlib.Path, runs: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
  """The text of each of the `PARTS`, and why runs belong to no figure.

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
  *parts, unmatched = _published_table.markdown(known, ours)
  return dict(zip(PARTS, parts, strict=True)), unmatched


def decoded(content: bytes) -> str:
  """The text of a file; bytes that are not UTF-8 survive writing it again."""
  return content.decode(errors="surrogateescape")


def marked(part: str, text: str) -> str:
  """A part between its marker lines."""
  return f"{BEGIN.format(part)}\n\n{text}\n{END.format(part)}\n"


def replaced(page: str, part: str, text: str, where: pathlib.Path) -> str:
  """A page with the text between a part's marker lines replaced.

  Raises:
    ValueError: if the page does not have each marker once, in order.
  """
  begin, end = (f"{marker.format(part)}\n" for marker in (BEGIN, END))
  head, _, rest = page.partition(begin)
  _, _, tail = rest.partition(end)
  if page.count(begin) != 1 or page.count(end) != 1 or end not in rest:
    raise ValueError(
      f"--out={where} exists, but does not have these two lines once each, in this "
      f"order; add them, or choose another file:\n{begin}{end}".rstrip()
    )
  return f"{head}{marked(part, text)}{tail}"


if __name__ == "__main__":
  sys.exit(start(sys.argv[1:], flags.FLAGS))
