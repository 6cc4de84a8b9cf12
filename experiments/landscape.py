r"""The loss landscape around trained networks, and its sharpness.

Do sharpness-aware runs end in flatter regions, and do flatter ones generalise better?
Finished runs are measured on the same tasks and drawn side by side.

  python -m experiments.landscape --runs=runs/A,runs/B --out=landscapes/A-and-B
  python -m experiments.landscape --runs=runs/A,runs/B --out=landscapes/lines \
    --dimensions=1
  python -m experiments.landscape --runs=runs/A,runs/B --out=landscapes/paths \
    --plane=path
  python -m experiments.landscape --runs=runs/A,runs/B --out=landscapes/minima \
    --plane=minima

A run is the directory of a finished experiment on few-shot tasks of images, such as
experiments.omniglot, or of experiments.supervised, where batches of images replace
tasks. The same command resumes interrupted work; with another --ceiling it draws the
pictures again. docs/landscapes.md says what is measured.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from absl import flags

from experiments import _program
from jsharp import options
from jsharp._flags import Group, Program
from jsharp._terminal import say
from jsharp.options import Check, Options, Role, at_least, between, option, positive

if TYPE_CHECKING:
  from jsharp.analysis import Measures, Plane

_COUNT = at_least(1, "give a number of at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landscape(Options):
  """The runs to draw and measure, and the tasks."""

  role: ClassVar[Role] = Role.TESTING

  runs: tuple[str, ...] = option(
    help="Directories of finished runs, separated by commas.",
    check=Check(bool, "there is no run; pass directories separated by commas."),
    role=Role.MACHINE,
  )
  out: str = option(
    help="Directory for the pictures, the figures and intermediate results.",
    role=Role.MACHINE,
  )
  checkpoint: Literal["best", "last"] = option(
    "best",
    "Parameters to draw. best: those with the best validation, which the run was "
    "tested with; last: the last ones.",
  )
  objective: Literal["meta", "task", "adapted"] = option(
    "meta",
    "Loss of the landscape. meta: the query loss after adaptation, as a function of "
    "the meta-parameters; task: their query loss without adaptation; adapted: the "
    "query loss around each task's own adapted parameters.",
  )
  split: Literal["train", "val", "test"] = option(
    "test", "Split whose classes tasks are drawn from."
  )
  num_tasks: int = option(20, "Number of tasks to average over.", check=_COUNT)
  seed: int = option(
    0, "Seed of tasks, directions and random vectors.", check=between(0, 2**31 - 1)
  )
  measure: bool = option(True, "Measure sharpness in addition to drawing.")
  gap_tasks: int = option(
    200,
    "Number of tasks of training and of test classes for the generalisation gap.",
    check=at_least(2, "a standard error needs at least 2."),
  )
  ceiling: float | None = option(
    None,
    "Draw larger values at this height.",
    check=positive("usual losses lie between 0.1 and 10."),
    identity=False,
  )
  task_chunk: int | None = option(
    None,
    "Tasks computed at a time: fewer need less memory, more can be faster. Default: 1 "
    "on a CPU, all on an accelerator.",
    check=_COUNT,
    role=Role.MACHINE,
    identity=True,
  )
  data_dir: str | None = option(
    None,
    "Directory of the data, if it has changed since training.",
    role=Role.MACHINE,
  )
  compilation_cache_dir: str = option(
    "~/.cache/jsharp/xla",
    "Directory for compiled programs, as in training; private to you. Empty: no cache.",
    role=Role.MACHINE,
  )


PROGRAM = Program(
  "landscape",
  (
    Group("runs and tasks", {"landscape": Landscape}),
    Group("picture", {"plane": "jsharp.analysis.plane:Plane"}),
    Group("sharpness", {"measures": "jsharp.analysis.measures:Measures"}),
  ),
  {},
  __doc__ or "",
)


def start(arguments: Sequence[str], values: flags.FlagValues) -> int:
  """Measures, draws and reports as a command line says; returns the exit code.

  Codes are those of `experiments._program`: 0 done, 2 bad arguments, 130 and 143
  interrupted.
  """
  return _program.call(PROGRAM, arguments, values, lambda given: run(**given.build()))


def run(landscape: Landscape, plane: Plane, measures: Measures) -> int:
  """Computes what is missing in `--out`, then writes pictures and tables.

  Returns:
    The exit code.
  """
  try:
    return _run(landscape, plane, measures)
  except (ValueError, OSError) as error:
    text = _program.message(error).replace("run_dir=", "--out=")
    return _program.refuse("landscape", text)


def _run(landscape: Landscape, plane: Plane, measures: Measures) -> int:
  # Imported late: they import JAX.
  from experiments import _landscape_measures, _landscape_report, _landscape_runs
  from jsharp import training

  runs = _landscape_runs.read(landscape, plane)
  training.use_compilation_cache(landscape.compilation_cache_dir)
  identity: dict[str, Any] = {}
  for part in (landscape, plane, measures):
    identity |= options.identity(part)
  identity["runs"] = [
    {"name": run.name, "step": run.step(landscape.checkpoint), "run": run.files.digest}
    for run in runs
  ]
  with (
    training.RunDirectory.open(landscape.out, identity=identity) as directory,
    training.StopSignal() as stop,
  ):
    records = _landscape_measures.Records(directory)
    work = _landscape_measures.Work(landscape, plane, measures, runs, records, stop)
    try:
      work.complete()
    except training.StopRequested:
      say(
        f"landscape: interrupted, intermediate results are saved in {landscape.out}; "
        f"resume with the same command:\n  {shlex.join(sys.orig_argv)}"
      )
      return stop.exit_code
    except (ValueError, OSError):
      if records.is_empty():  # Nothing depends on these settings yet.
        (directory.path / "run.json").unlink()
      raise
    _landscape_report.write(directory, landscape, plane, runs, work.drawn, records)
  return 0


if __name__ == "__main__":
  sys.exit(start(sys.argv[1:], flags.FLAGS))
