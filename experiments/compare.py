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
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging

from experiments import compare_plan, program
from experiments.compare_plan import Plan

NAME = "compare"
_PILOT_STEPS = 40

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
  flags.DEFINE_list(
    "set",
    [],
    "Flags of all runs in place of the plan's, as in num_tasks=8,eval_tasks=200.",
    flag_values=f,
  )
  flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1, flag_values=f)


class Interrupted(Exception):
  """Somebody asked for a stop; `args[0]` is the signal's number."""


class Runner:
  """Runs experiments as programs of their own and stops them when asked to.

  Args:
    logs: directory of their output.
  """

  def __init__(self, logs: pathlib.Path):
    self._logs = logs
    self._lock = threading.Lock()
    self._running: set[subprocess.Popen[bytes]] = set()
    self._stopped = False

  def __call__(self, experiment: str, name: str, arguments: list[str]) -> int:
    """Runs `python -m experiments.EXPERIMENT ARGUMENTS`; returns its exit code."""
    self._logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"experiments.{experiment}", *arguments]
    with (self._logs / f"{name}.txt").open("ab") as log:
      with self._lock:
        if self._stopped:
          return 143
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._running.add(process)
      try:
        return process.wait()
      finally:
        with self._lock:
          self._running.discard(process)

  def stop(self) -> None:
    """Asks all running programs to save and to end, and waits until they have."""
    with self._lock:
      self._stopped = True
      running = list(self._running)
      for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
      process.wait()


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
  out = pathlib.Path(given["out"]).expanduser()
  overrides: dict[str, Any] = {}
  for entry in given["set"]:
    name, equals, value = entry.partition("=")
    if not equals:
      return _refuse(f"--set={entry} must look like flag=value")
    overrides[name] = value
  if given["data_dir"] is not None:
    overrides["data_dir"] = given["data_dir"]
  try:
    plan = compare_plan.load(pathlib.Path(given["plan"]), overrides)
    out.mkdir(parents=True, exist_ok=True)
  except (ValueError, OSError) as error:
    return _refuse(program.message(error))
  runner = runner or Runner(out / "logs")

  def interrupt(number: int, frame: Any) -> None:
    raise Interrupted(number)

  previous = {
    number: signal.signal(number, interrupt)
    for number in (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is threading.main_thread()
  }
  try:
    return _run(plan, out, runner, given["jobs"])
  except Interrupted as interrupted:
    if hasattr(runner, "stop"):
      runner.stop()
    print(
      f"{NAME}: interrupted; the runs are saved in {out}, the same command goes on.",
      file=sys.stderr,
    )
    return 128 + interrupted.args[0]
  except ValueError as error:
    return _refuse(program.message(error))
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def _run(plan: Plan, out: pathlib.Path, runner: Any, jobs: int) -> int:
  steps = _num_steps(plan, out, runner)
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

  failed = []
  for done, ((_, name, _), code) in enumerate(_each(grid, run_one, jobs), start=1):
    what = "finished" if code == 0 else f"failed with exit code {code}"
    print(f"{done}/{len(grid)}: {name} {what}", flush=True)
    if code:
      failed.append(f"{out / 'logs' / f'{name}.txt'}")

  from experiments import compare_report

  complete, facts = {}, {}
  for method in plan.methods:
    paths = [out / "runs" / name for name, _ in plan.runs(method)]
    if all((path / "result.json").exists() for path in paths):
      complete[method] = paths
      facts[method] = _facts(plan, method, steps[method], paths)
  if complete:
    print("\n" + compare_report.write(plan, complete, facts, out))
    print(f"{out}/: comparison.md, comparison.csv, comparison.png")
  if failed:
    print(f"{NAME}: failed runs, see\n  " + "\n  ".join(failed), file=sys.stderr)
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


def _num_steps(plan: Plan, out: pathlib.Path, runner: Any) -> dict[str, int] | None:
  """Meta-steps of each method; a budget in minutes is measured once, then kept."""
  if plan.budget[0] != "minutes":
    return {method: compare_plan.num_steps(plan, method) for method in plan.methods}
  kept = out / "steps.json"
  steps = json.loads(kept.read_text()) if kept.exists() else {}
  for method in plan.methods:
    if method in steps:
      continue
    print(f"measuring the speed of {method}", flush=True)
    directory = out / "pilots" / method
    arguments = [
      *plan.arguments(method),
      f"--num_steps={_PILOT_STEPS}",
      f"--eval_every={_PILOT_STEPS}",
      "--val_tasks=2",
      "--eval_tasks=2",
      f"--run_dir={directory}",
    ]
    if code := runner(plan.experiment, f"pilot-{method}", arguments):
      log = out / "logs" / f"pilot-{method}.txt"
      print(f"{NAME}: exit code {code}, see {log}", file=sys.stderr)
      return None
    rate = json.loads((directory / "result.json").read_text())["tasks_per_second"]
    steps[method] = compare_plan.num_steps(plan, method, tasks_per_second=rate)
    kept.write_text(json.dumps(steps))
  return steps


def _facts(
  plan: Plan, method: str, num_steps: int, paths: list[pathlib.Path]
) -> dict[str, Any]:
  results = [json.loads((path / "result.json").read_text()) for path in paths]
  settings = plan.settings(method)
  rates = [result["tasks_per_second"] for result in results]
  return {
    "num_steps": num_steps,
    "num_tasks": settings.num_tasks,
    "gradients_per_task": compare_plan.gradients_per_task(settings),
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


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  os.environ.setdefault("PYTHONUNBUFFERED", "1")
  app.run(main)
