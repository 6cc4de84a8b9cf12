r"""Comparison of methods: a grid of methods and seeds at one budget, from one command.

Does sharpness help, and by more than chance?

  python -m experiments.compare --plan=experiments/plans/quick.toml --out=DIRECTORY

The plan names the experiment, the methods with their flags, the seeds and the budget:
meta-steps, gradients of single examples or minutes of training; epochs or gradients of
each image for ordinary training. Every run is a normal run in DIRECTORY/runs with its
own checkpoints; the same command resumes an interrupted comparison and trains nothing
twice. It writes comparison.md and .csv (means with 95 percent intervals over tasks and
over seeds, paired differences from the baseline on the same test tasks) and
comparison.png.
"""

import functools
import os
import pathlib
import sys

from absl import app, flags, logging

from experiments import _compare_plan, _compare_runs, _program
from experiments._compare_plan import Plan
from experiments._compare_runs import Start
from jsharp._flags import check_words, words
from jsharp._terminal import open_streams, say, tell

NAME = "compare"


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  f = flag_values
  flags.DEFINE_string("plan", None, "The TOML file of the comparison.", flag_values=f)
  flags.DEFINE_string(
    "out", None, "Directory of the comparison: runs, tables, figure.", flag_values=f
  )
  flags.DEFINE_string(
    "data_dir", None, "Directory of the data, for all runs.", flag_values=f
  )
  flags.DEFINE_multi_string(
    "set",
    [],
    "A flag for all runs that replaces the plan's, as in --set=num_tasks=8 "
    "--set=eval_way=10,20.",
    flag_values=f,
  )
  flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1, flag_values=f)


def run(flag_values: flags.FlagValues, start: Start | None = None) -> int:
  """Runs what is not finished and writes the tables.

  Args:
    flag_values: the parsed flags.
    start: starts a run and waits for its end; a `Runner` if None.

  Returns:
    The exit code: 0 done, 1 a run failed, 2 bad flags or plan.
  """
  try:
    plan, out = _asked(flag_values)
  except ValueError as error:
    return _program.refuse(NAME, str(error))
  from jsharp.training import programs

  start = start or programs.Runner(out / "logs")
  stop = start.stop if isinstance(start, programs.Runner) else lambda: None
  with programs.interruptible():
    try:
      return _run(plan, out, start, flag_values.jobs)
    except programs.Interrupted as interrupted:
      programs.stop_and_wait(stop, lambda what: say(f"{NAME}: stopping: {what}"))
      say(f"{NAME}: interrupted; all is saved in {out}, the same command resumes it.")
      return 128 + interrupted.args[0]
    except (ValueError, OSError) as error:
      stop()
      return _program.refuse(NAME, _program.message(error))


def _asked(flag_values: flags.FlagValues) -> tuple[Plan, pathlib.Path]:
  """The plan and its directory, which is claimed for the plan."""
  for name in ("plan", "out"):
    if flag_values[name].value is None:
      raise ValueError(f"--{name} is missing; --help has an example")
  path = pathlib.Path(flag_values.plan).expanduser()
  out = pathlib.Path(flag_values.out).expanduser()
  overrides: dict[str, str] = {}
  for entry in flag_values.set:
    name, equals, value = entry.partition("=")
    if not equals:
      raise ValueError(f"--set={entry} must look like flag=value, as in num_tasks=8")
    overrides[name] = value
  if flag_values.data_dir is not None:
    overrides["data_dir"] = flag_values.data_dir
  plan = _compare_plan.load(path, overrides)
  try:
    out.mkdir(parents=True, exist_ok=True)
    differing = _compare_runs.claim(plan, out)
  except (ValueError, OSError) as error:
    what = _program.message(error)
    raise ValueError(f"--out={out}: {what}; choose another directory") from error
  if differing:
    raise ValueError(
      f"--out={out} has another comparison, see plan.json there; it differs in "
      f"{', '.join(differing)}; choose another directory, or use its plan"
    )
  return plan, out


def _run(plan: Plan, out: pathlib.Path, start: Start, jobs: int) -> int:
  from jsharp.training.programs import Runner, run_all

  steps = _compare_runs.amounts(plan, out, start)
  if steps is None:
    return 1

  def run_one(method: str, name: str, seeds: tuple[int, ...]) -> int:
    run_dir = str(out / "runs" / name)
    own = {
      "run_dir": run_dir,
      "seed": seeds[0],
      **plan.kind.flags(steps[method], plan.header.validations, seeds),
    }
    if teacher := plan.methods[method].teacher:
      own["relabel"] = str(out / "runs" / f"{teacher}-seed{seeds[0]}")
    arguments = words({**plan.methods[method].flags, **own})
    if isinstance(start, Runner):
      start.wait_while(functools.partial(_is_held, run_dir))
    return start(f"experiments.{plan.experiment.name}", name, arguments)

  runs = {method: plan.runs(method) for method in plan.methods}
  total = sum(map(len, runs.values()))
  ended: list[str] = []
  failed = []
  for stage in plan.stages():
    grid = [(method, *run) for method in stage for run in runs[method]]
    grid.sort(key=lambda run: run[2][0])  # The first seed of all methods comes first.
    calls = {run[1]: functools.partial(run_one, *run) for run in grid}
    for name, code in run_all(calls, jobs=jobs):
      ended.append(name)
      what = "finished" if code == 0 else f"failed with exit code {code}"
      tell(f"{len(ended)}/{total}: {name} {what}")
      if code:
        failed.append(name)
  if failed:
    logs = "\n  ".join(str(out / "logs" / f"{name}.txt") for name in failed)
    say(f"{NAME}: failed runs, see\n  {logs}")
  complete = {
    method: [out / "runs" / name for name, _ in runs[method]]
    for method in runs
    if not any(name in failed for name, _ in runs[method])
  }
  if complete:
    tell("\n" + _compare_runs.report(plan, steps, complete, out))
    tell(f"{out}/: comparison.md, comparison.csv, comparison.png")
  return 1 if failed else 0


@functools.cache
def _say_once(line: str) -> None:
  say(line)


def _is_held(run_dir: str) -> bool:
  """Whether a run of a comparison that was killed is still running."""
  from jsharp.training.run_directory import holder

  process = holder(run_dir)
  if process is not None:
    _say_once(f"{NAME}: {run_dir} is run by process {process}; waiting for its end")
  return process is not None


def main(arguments: list[str]) -> int:
  """Runs the comparison of a command line; returns the exit code."""
  open_streams()
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  if len(arguments) > 1:
    message = f"{arguments[1]!r} is not a flag; flags start with --."
    return _program.refuse(NAME, message)
  return run(flags.FLAGS)


def _parse(arguments: list[str]) -> list[str]:
  try:
    check_words(arguments)
    return flags.FLAGS(arguments)
  except (ValueError, OSError) as error:
    sys.exit(_program.refuse(NAME, _program.message(error)))
  except flags.Error as error:
    sys.exit(_program.refuse(NAME, f"{error}\n--help lists every flag."))


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  os.environ.setdefault("PYTHONUNBUFFERED", "1")
  app.run(main, flags_parser=_parse)
