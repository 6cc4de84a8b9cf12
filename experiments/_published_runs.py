"""Our runs, read from their directories: finished, unfinished and transcribed."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import _program, _published_figures
from experiments._program import Experiment
from jsharp import _files
from jsharp.evaluation.comparison import Interval, half_width_over_seeds, interval
from jsharp.evaluation.report import read_column

_RESULT, _RECORD, _RUN = "result.json", "record.json", "run.json"
_OWN = ("experiment", "settings", "num_steps")


class Run(NamedTuple):
  """A run.

  Attributes:
    path: its directory.
    name: its name in tables.
    experiment: the experiment that it is of.
    settings: its flags by name, as far as they were recorded.
    seed: its training seed.
    num_steps: all its meta-steps; None if that was not recorded.
    step: meta-steps taken so far.
    result: the figures of a finished run; None for an unfinished one.
    validation: the last validation of an unfinished run, if there was one.
    transcribed: where the figures were transcribed from, if they were.
  """

  path: pathlib.Path
  name: str
  experiment: Experiment
  settings: dict[str, Any]
  seed: int
  num_steps: int | None
  step: int
  result: dict[str, Any] | None = None
  validation: dict[str, Any] | None = None
  transcribed: str | None = None

  @property
  def tasks_seen(self) -> int:
    """Tasks that it has been trained on."""
    return self.step * self.settings.get("num_tasks", 1)


def read_all(directories: Sequence[pathlib.Path]) -> list[Run]:
  """Reads the runs in directories.

  Args:
    directories: each the directory of a run, or a directory that contains runs.

  Raises:
    ValueError: if there is no run in one, or a file is damaged; the message names it.
    OSError: if a file cannot be read.
  """
  runs: dict[pathlib.Path, Run] = {}
  for directory in directories:
    if not directory.is_dir():
      raise ValueError(f"--runs={directory} is not a directory")
    found = list(_found(directory))
    if not found:
      raise ValueError(
        f"--runs={directory} contains no run (no {_RESULT}, {_RECORD} or {_RUN}); name "
        "the --run_dir of a training run, or a directory of several"
      )
    for path in found:
      inside = path.relative_to(directory).as_posix()
      name = path.resolve().name if inside == "." else inside
      runs.setdefault(path.resolve(), _read(path, name))
  return list(runs.values())


def _found(directory: pathlib.Path) -> Sequence[pathlib.Path]:
  names = _files.names_in(directory)
  if {_RESULT, _RECORD, _RUN} & set(names):
    return [directory]
  below = (directory / name for name in names)
  return [
    run
    for path in below
    if path.is_dir() and not path.is_symlink()
    for run in _found(path)
  ]


def _read(path: pathlib.Path, name: str) -> Run:
  for file in (_RECORD, _RESULT):
    if (path / file).is_file():
      return _finished(path, name, path / file)
  return _unfinished(path, name)


def _finished(path: pathlib.Path, name: str, file: pathlib.Path) -> Run:
  """A run with a result, or with a record of one."""
  result = _files.read_table(file)
  transcribed = None
  if file.name == _RECORD:
    transcribed = result.get("transcribed")
    if not isinstance(transcribed, str) or not transcribed:
      raise ValueError(
        f"{file}: transcribed is {transcribed!r}; write where the figures come from"
      )
  for key in _OWN:
    if key not in result:
      raise ValueError(f"{file}: {key} is missing; restore the file from a copy")
  experiment, settings, seed = _settings(file, result["experiment"], result["settings"])
  num_steps = _count(file, "num_steps", result["num_steps"])
  settings["num_steps"] = num_steps
  if "num_tasks" in settings:
    settings["eval_tasks"] = _count(
      file, "num_eval_tasks", result.get("num_eval_tasks")
    )
  _check_figures(file, result)
  protocol = result.get("protocol", {})
  if not isinstance(protocol, dict) or not isinstance(
    protocol.get("versions", {}), dict
  ):
    raise ValueError(
      f"{file}: protocol and its versions must be tables; restore the file from a copy"
    )
  return Run(
    path,
    name,
    experiment,
    settings,
    seed,
    num_steps,
    step=num_steps,
    result=result,
    transcribed=transcribed,
  )


def _unfinished(path: pathlib.Path, name: str) -> Run:
  """A run that has not ended: its identity, its length and its last validation."""
  file = path / _RUN
  identity = _files.read_table(file).get("identity")
  if not isinstance(identity, dict) or "experiment" not in identity:
    raise ValueError(
      f"{file}: identity.experiment is missing; name directories of training runs"
    )
  experiment, settings, seed = _settings(file, identity["experiment"], identity)
  lengths = _lengths(path)
  settings |= lengths
  metrics = _metrics(path / "metrics.jsonl")
  validations = [m for m in metrics if any(key.startswith("val_") for key in m)]
  step = max((m["step"] for m in metrics), default=0)
  return Run(
    path,
    name,
    experiment,
    settings,
    seed,
    lengths.get("num_steps"),
    step,
    validation=validations[-1] if validations else None,
  )


def _settings(
  file: pathlib.Path, name: Any, settings: Any
) -> tuple[Experiment, dict[str, Any], int]:
  """The experiment, the flags and the seed of a run."""
  try:
    experiment = _program.experiment_of(str(name))
  except ValueError as error:
    raise ValueError(f"{file}: experiment: {error}") from error
  if not isinstance(settings, dict):
    raise ValueError(f"{file}: settings must be a table; restore it from a copy")
  seed = settings.get("run.seed", settings.get("seed", 0))
  if type(seed) is not int:
    raise ValueError(f"{file}: seed is {seed!r}; restore the file from a copy")
  flags = _published_figures.by_flag(experiment, settings)
  if "num_tasks" in experiment.program.owners():
    flags["num_tasks"] = _count(file, "num_tasks", flags.get("num_tasks"))
  return experiment, flags, seed


def _count(file: pathlib.Path, key: str, value: Any) -> int:
  if type(value) is not int or value < 1:
    raise ValueError(
      f"{file}: {key} is {value!r}; it must be an integer of at least 1, restore the "
      "file from a copy"
    )
  return value


def _check_figures(file: pathlib.Path, result: Mapping[str, Any]) -> None:
  """Checks the figures that tables show."""
  names = ["test_accuracy", "test_accuracy_inductive", "test_ensemble_accuracy"]
  for name in (*names, "test_mse_by_step"):
    if name not in result:
      continue
    value, half = result[name], result.get(f"{name}_ci95")
    pairs = [(value, half)]
    if name == "test_mse_by_step":
      pairs = [(value, None)]
      if isinstance(value, list) and isinstance(half, list) and len(value) == len(half):
        pairs = list(zip(value, half, strict=True))
    for pair in pairs:
      if pair == (None, None) and name == "test_mse_by_step":
        continue  # Not transcribed.
      if not all(isinstance(number, int | float) for number in pair):
        raise ValueError(
          f"{file}: {name} and {name}_ci95 must be numbers, as the test wrote them; "
          "restore the file from a copy"
        )


def _lengths(path: pathlib.Path) -> dict[str, int]:
  """The meta-steps and the test tasks that an unfinished run is to have."""
  found: dict[str, int] = {}
  if (path / "flags.txt").is_file():
    content = _files.read_bytes(path / "flags.txt", most=_files.MAX_TABLE_BYTES)
    for line in content.decode(errors="replace").splitlines():
      name, _, value = line.strip().removeprefix("--").partition("=")
      if name in ("num_steps", "eval_tasks") and value.isdecimal():
        found[name] = int(value)
  if (path / "description.json").is_file():
    file = path / "description.json"
    run = _files.read_table(file).get("run", {})
    try:
      found["num_steps"] = _count(file, "num_steps", run["training"]["num_steps"])
      found["eval_tasks"] = _count(file, "eval_tasks", run["testing"]["eval_tasks"])
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"{file}: run has no training.num_steps or testing.eval_tasks; restore the "
        "file from a copy"
      ) from error
  return found


def _metrics(file: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a run, which may be writing the last line now."""
  content = _files.read_bytes_if_there(file, most=_files.MAX_TABLE_BYTES) or b""
  records = []
  for number, line in enumerate(content.split(b"\n")[:-1], start=1):
    try:
      record = json.loads(line)
      if type(record["step"]) is not int:
        raise ValueError("its step is not an integer")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise ValueError(
        f"line {number} of {file} is damaged ({error!r}); delete that line, or restore "
        "the file from a copy"
      ) from error
    records.append(record)
  return records


def measured(runs: Sequence[Run], name: str, column: str | None) -> Interval | None:
  """A figure over the runs of a method that differ only in their seeds.

  Args:
    runs: finished runs.
    name: its name in the result.
    column: its column in test_tasks.csv; None if that file does not have it.

  Returns:
    The mean with both intervals. `over_tasks` is NaN if several seeds have no figures
    by task. None if the figure was not measured.
  """
  results = [run.result for run in runs if run.result and name in run.result]
  if len(results) < len(runs):
    return None
  rows = [] if column is None else [_rows(run, column) for run in runs]
  if rows and all(row is not None for row in rows):
    values = np.concatenate([row for row in rows if row is not None])
    if len(values) > 1:
      return interval(values)
  means = [float(result[name]) for result in results]
  if len(means) == 1:
    return Interval(means[0], float(results[0][f"{name}_ci95"]), float("nan"))
  return Interval(float(np.mean(means)), float("nan"), half_width_over_seeds(means))


def _rows(run: Run, column: str) -> np.ndarray | None:
  """The figures by task, `[seeds, tasks]`, if the directory has them."""
  file = run.path / "test_tasks.csv"
  if run.result is None or not os.path.lexists(file):
    return None
  return read_column(file, column, sha256=run.result.get("test_tasks_sha256"))


def num_seeds(runs: Sequence[Run]) -> int:
  """The number of training seeds, counting those trained side by side."""
  found = 0
  for run in runs:
    found += len((run.result or {}).get("test_accuracy_by_seed", [0]))
  return found


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
  """Finished runs that differ only in their seeds, together; others alone."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    key = json.dumps([run.experiment.name, run.settings], sort_keys=True, default=str)
    if run.result is None or any(
      other.seed == run.seed for other in groups.get(key, [])
    ):
      key += str(run.path)
    groups.setdefault(key, []).append(run)
  return list(groups.values())
