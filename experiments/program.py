"""The way from a command line to a run, the same for every experiment.

Exit codes: 0 done; 1 training failed; 2 bad flags, data or run directory; 130 and
143 interrupted by Ctrl-C and SIGTERM (the same command goes on).

JAX is imported only once the flags are known to be good, so that `--help` and
refusals are quick.
"""

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from absl import app, flags, logging

from experiments import method_flags, process_flags, resource_flags

DefineFlags = Callable[[flags.FlagValues], None]
Build = Callable[[SimpleNamespace], Any]
Complete = Callable[[SimpleNamespace], list[str]]
"""Fills in the defaults that depend on other flags; returns the words that the default
run directory is named after."""

# A run may be started again with other values of these: they change how long it
# trains, how it is shown and where things lie, not what one meta-step computes, save by
# rounding. (--deterministic shows in task_chunk.)
BENIGN = frozenset(
  {
    "num_steps",
    "eval_tasks",
    "log_every",
    "checkpoint_seconds",
    "data_dir",
    "test_data_dir",
    "run_dir",
    "compilation_cache_dir",
    "num_devices",
    "images",
    "convolution",
    "distributed",
    "coordinator",
    "num_processes",
    "process_id",
    "peer_timeout",
    "memory_budget",
    "second_order",
    "deterministic",
  }
)


def few_shot(settings: SimpleNamespace) -> list[str]:
  """Completes the settings of the experiments that meta-learn."""
  if settings.query_shot is None:
    settings.query_shot = settings.shot
  if settings.eval_query_shot is None:
    settings.eval_query_shot = settings.query_shot
  if settings.num_eval_inner_steps is None:
    settings.num_eval_inner_steps = settings.num_inner_steps
  resource_flags.complete(settings)
  words = [settings.algorithm, f"{settings.shot}shot"]
  if settings.sharpness != "none":
    words[:1] = [settings.algorithm, f"sharp_{settings.sharpness}"]
  if hasattr(settings, "dataset"):
    words[1:1] = [f"{settings.way}way"]
    if settings.dataset != settings.experiment:
      words[:0] = [settings.dataset]
  return words


def start(
  name: str, define_flags: DefineFlags, build: Build, complete: Complete = few_shot
) -> None:
  """Runs an experiment as the program that was called; does not return.

  Args:
    name: of the experiment.
    define_flags: defines its flags on a `FlagValues`.
    build: `build(settings) -> experiments.session.Parts`.
    complete: fills in what depends on other flags and names the run.
  """
  define_flags(flags.FLAGS)

  def parse(arguments: list[str]) -> list[str]:
    try:
      return flags.FLAGS(arguments)
    except flags.Error as error:
      sys.exit(_refuse(name, f"{error}\n--help lists every flag."))

  def main(arguments: list[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # absl shows JAX's chatter otherwise
    if len(arguments) > 1:
      return _refuse(name, f"{arguments[1]!r} is no flag; flags start with --.")
    try:
      return run(name, define_flags, build, flags.FLAGS, complete)
    except KeyboardInterrupt:
      print(f"{name}: interrupted before training began.", file=sys.stderr)
      return 130

  app.run(main, flags_parser=parse)


def run(
  name: str,
  define_flags: DefineFlags,
  build: Build,
  flag_values: flags.FlagValues,
  complete: Complete = few_shot,
) -> int:
  """Trains, tests and reports, or shows again what a finished run reported.

  Args:
    name: of the experiment.
    define_flags: defines its flags on a `FlagValues`.
    build: `build(settings) -> experiments.session.Parts`.
    flag_values: the parsed flags.
    complete: as for `start`.

  Returns:
    The exit code.
  """
  ours = flags.FlagValues()
  define_flags(ours)
  try:
    values = {flag: flag_values[flag].value for flag in ours}
    if refusal := method_flags.unread(flag_values, ours):
      raise ValueError(refusal)
    settings = resolve(name, values, complete)
  except ValueError as error:
    return _refuse(name, message(error))
  run_dir = pathlib.Path(settings.run_dir).expanduser()
  finished = _finished_result(run_dir, settings)

  resource_flags.set_environment(settings)
  # Only now: they import JAX.
  from experiments import memory_budget, session
  from jsharp._cores import assume_one_core_each
  from jsharp._files import write_atomically
  from jsharp.nn import default_convolution
  from jsharp.training import processes
  from jsharp.training.run_directory import RunDirectory

  if finished:
    return session.show(finished, run_dir)
  lines = [flag_values[flag].serialize() for flag in sorted(ours)]
  flags_text = "".join(f"{line}\n" for line in lines if line)
  with contextlib.ExitStack() as stack:
    convolution = getattr(settings, "convolution", "auto")
    stack.enter_context(
      default_convolution(None if convolution == "auto" else convolution)
    )
    if getattr(settings, "deterministic", False):
      stack.enter_context(assume_one_core_each())  # on any number of devices
    try:
      if process_flags.asked(settings):
        elsewhere = stack.enter_context(process_flags.joined(settings))
        run_dir = elsewhere or run_dir
      session.use_compilation_cache(settings.compilation_cache_dir)
      session.check_devices(settings)
      if getattr(settings, "memory_budget", None) is None:
        parts = build(settings)
      else:
        settings, parts = memory_budget.fit(settings, build)
        if finished := _finished_result(run_dir, settings):
          return session.show(finished, run_dir)
      run_identity = {**identity(settings), **parts.identity}
      directory = RunDirectory.open(run_dir, identity=run_identity)
    except (ValueError, OSError) as error:
      code = _refuse(name, message(error))
      if process_flags.has_joined():
        processes.leave(code)
      return code
    stack.enter_context(directory)
    write_atomically(run_dir / "flags.txt", flags_text.encode())
    return session.run(settings, parts, directory)


def resolve(
  name: str, values: dict[str, Any], complete: Complete = few_shot
) -> SimpleNamespace:
  """Fills in the defaults that depend on other flags.

  Args:
    name: of the experiment.
    values: the values of its flags.
    complete: as for `start`.

  Returns:
    The values as attributes, and `experiment`, the name.

  Raises:
    ValueError: from `complete`, if flags contradict each other.
  """
  settings = SimpleNamespace(experiment=name, **values)
  words = complete(settings)
  if settings.run_dir is None:
    run_name = "-".join([name, *words, f"seed{settings.seed}"])
    run_name = run_name.replace(":", "-").replace("/", "-")
    settings.run_dir = str(pathlib.Path("runs", run_name))
  return settings


def identity(settings: SimpleNamespace) -> dict[str, Any]:
  """The settings that make a run this run and no other, ready for strict JSON."""
  return {
    name: str(value) if value == float("inf") else value  # --p=inf
    for name, value in vars(settings).items()
    if name not in BENIGN
  }


def _finished_result(
  run_dir: pathlib.Path, settings: SimpleNamespace
) -> dict[str, Any] | None:
  """The result of a run that has done all that the settings ask for, or None."""
  try:
    result = json.loads((run_dir / "result.json").read_text())
  except (OSError, ValueError):
    return None
  asked: dict[str, Any] = {"settings": identity(settings)}
  for key, flag in (("num_steps", "num_steps"), ("num_eval_tasks", "eval_tasks")):
    if hasattr(settings, flag):
      asked[key] = getattr(settings, flag)
  return result if all(result.get(key) == asked[key] for key in asked) else None


def message(error: Exception) -> str:
  """An exception's message, without the number that `OSError` puts before it."""
  return getattr(error, "strerror", None) or str(error)


def _refuse(name: str, message: str) -> int:
  print(f"{name}: {message}", file=sys.stderr)
  return 2
