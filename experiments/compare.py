r"""Methods side by side: a grid of methods and seeds at one budget, from one command.

Does sharpness help, and by more than chance?

  python -m experiments.compare --plan=experiments/plans/quick.toml --out=DIRECTORY

The plan names the experiment, the methods with their flags, the seeds and the budget:
meta-steps, gradients of single examples, or minutes of training. Every run is an
ordinary run in DIRECTORY/runs with checkpoints of its own; the same command goes on
where it was interrupted and trains nothing twice. Written are comparison.md and .csv
(means with 95 percent intervals over tasks and over seeds, paired differences from the
baseline on the same test tasks) and comparison.png.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging

from experiments import compare_cost, compare_plan, compare_records, program
from experiments.compare_plan import Plan
from experiments.compare_runner import Runner

NAME = "compare"

Run = tuple[str, str, tuple[int, ...]]
"""Method, name and seeds of a run."""


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
    "A flag of all runs in place of the plan's, as in --set=num_tasks=8 "
    "--set=eval_way=10,20.",
    flag_values=f,
  )
  flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1, flag_values=f)


class Interrupted(Exception):
  """Somebody asked for a stop; `args[0]` is the signal's number."""


def run(flag_values: flags.FlagValues, runner: Any = None) -> int:
  """Runs what is not finished and writes the tables.

  Args:
    flag_values: the parsed flags.
    runner: `runner(experiment, name, arguments) -> exit code`; a `Runner` if None.

  Returns:
    The exit code: 0 done, 1 a run failed, 2 bad flags or plan.
  """
  given: dict[str, Any] = {name: flag_values[name].value for name in flag_values}
  for name in ("plan", "out"):
    if given[name] is None:
      return _refuse(f"--{name} is missing; --help has an example")
  path, out = (pathlib.Path(given[name]).expanduser() for name in ("plan", "out"))
  overrides: dict[str, Any] = {}
  for entry in given["set"]:
    name, equals, value = entry.partition("=")
    if not equals:
      return _refuse(f"--set={entry} must look like flag=value, as in num_tasks=8")
    overrides[name] = value
  if given["data_dir"] is not None:
    overrides["data_dir"] = given["data_dir"]
  try:
    plan = compare_plan.load(path, overrides)
  except OSError as error:
    what = program.message(error)
    return _refuse(f"--plan={path}: {what}; give the TOML file of the comparison")
  except ValueError as error:
    return _refuse(str(error))
  try:
    out.mkdir(parents=True, exist_ok=True)
    if differing := compare_records.claim(plan, out):
      return _refuse(
        f"--out={out} holds another comparison, see plan.json there; it differs in "
        f"{', '.join(differing)}: choose another directory, or go back to its plan"
      )
  except (ValueError, OSError) as error:
    return _refuse(f"--out={out}: {program.message(error)}; choose another directory")
  runner = runner or Runner(out / "logs")
  stop = getattr(runner, "stop", lambda: None)

  def interrupt(number: int, frame: Any) -> None:
    raise Interrupted(number)

  previous = {
    number: signal.signal(number, interrupt)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is threading.main_thread()
    and (number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)  # nohup
  }
  try:
    return _run(plan, out, runner, given["jobs"])
  except Interrupted as interrupted:
    _stop(stop)
    _say(f"interrupted; the runs are saved in {out}, the same command goes on.")
    return 128 + interrupted.args[0]
  except (ValueError, OSError) as error:
    stop()
    return _refuse(program.message(error))
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def _stop(stop: Callable[[], None]) -> None:
  """Stops what runs; asked once more meanwhile, it does not wait for savings."""
  what = "the runs save what they have; once more to end them without"
  while True:
    try:
      _say(f"stopping: {what}")
      return stop()
    except Interrupted:
      what = "the runs end now"


def _say(message: str) -> None:
  with contextlib.suppress(OSError):  # The terminal may be gone.
    print(f"{NAME}: {message}", file=sys.stderr, flush=True)


def _run(plan: Plan, out: pathlib.Path, runner: Any, jobs: int) -> int:
  steps = compare_records.num_steps(plan, out, runner)
  if steps is None:
    return 1
  grid = [(method, *run) for method in plan.methods for run in plan.runs(method)]
  grid.sort(key=lambda run: run[2][0])  # the first seed of all methods comes first

  def run_one(run: Run) -> int:
    method, name, seeds = run
    arguments = [
      *plan.arguments(method),
      f"--seed={seeds[0]}",
      f"--num_steps={steps[method]}",
      f"--eval_every={max(1, steps[method] // plan.validations)}",
      f"--run_dir={out / 'runs' / name}",
    ]
    if len(seeds) > 1:
      arguments.append(f"--num_seeds={len(seeds)}")
    return runner(plan.experiment, name, arguments)

  failed, finished = [], set()
  for done, ((_, name, _), code) in enumerate(_each(grid, run_one, jobs), start=1):
    what = "finished" if code == 0 else f"failed with exit code {code}"
    print(f"{done}/{len(grid)}: {name} {what}", flush=True)
    if code:
      failed.append(f"{out / 'logs' / f'{name}.txt'}")
    else:
      finished.add(name)
  if failed:
    print(f"{NAME}: failed runs, see\n  " + "\n  ".join(failed), file=sys.stderr)

  from experiments import compare_report

  complete, facts = {}, {}
  for method in plan.methods:
    names = [name for name, _ in plan.runs(method)]
    if finished.issuperset(names):
      complete[method] = [out / "runs" / name for name in names]
      facts[method] = _facts(plan, method, steps[method], complete[method])
  if complete:
    print("\n" + compare_report.write(plan, complete, facts, out))
    print(f"{out}/: comparison.md, comparison.csv, comparison.png")
  return 1 if failed else 0


def _each(
  grid: list[Run], run_one: Callable[[Run], int], jobs: int
) -> Iterator[tuple[Run, int]]:
  """Runs all of a grid, `jobs` at a time, and gives what has ended."""
  if jobs == 1:
    for run in grid:
      yield run, run_one(run)
    return
  pool = concurrent.futures.ThreadPoolExecutor(jobs)
  try:
    futures = {pool.submit(run_one, run): run for run in grid}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _facts(
  plan: Plan, method: str, num_steps: int, paths: list[pathlib.Path]
) -> dict[str, Any]:
  results = [compare_records.read_json(path / "result.json") for path in paths]
  settings = plan.settings(method)
  rates = [result["tasks_per_second"] for result in results]
  return {
    "num_steps": num_steps,
    "num_tasks": settings.num_tasks,
    "gradients_per_task": compare_cost.gradients_per_task(settings, num_steps),
    "tasks_per_second": sum(rates) / len(rates),
  }


def _refuse(message: str) -> int:
  print(f"{NAME}: {message}", file=sys.stderr)
  return 2


def main(arguments: list[str]) -> int:
  """Runs the comparison that the command line asks for."""
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  if len(arguments) > 1:
    return _refuse(f"{arguments[1]!r} is no flag; flags start with --.")
  return run(flags.FLAGS)


def _parse(arguments: list[str]) -> list[str]:
  try:
    return flags.FLAGS(arguments)
  except flags.Error as error:
    sys.exit(_refuse(f"{error}\n--help lists every flag."))


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  os.environ.setdefault("PYTHONUNBUFFERED", "1")
  app.run(main, flags_parser=_parse)
