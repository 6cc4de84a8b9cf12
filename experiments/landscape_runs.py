"""Finished runs as `experiments.landscape` finds them: flags, result, checkpoint."""

import hashlib
import importlib
import json
import pathlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from absl import flags

from experiments import program

EXPERIMENTS = ("miniimagenet", "omniglot")

# What has to be the same for runs to be compared: their tasks and their network.
COMMON = (
  "dataset",
  "test_dataset",
  "omniglot_split",
  "rotate_test",
  "image_size",
  "way",
  "shot",
  "eval_query_shot",
  "support_label_noise",
  "rotation",
  "shear",
  "scale",
  "model",
  "num_filters",
)


class Run(NamedTuple):
  """A finished run.

  Attributes:
    name: unique among the runs that are compared, for titles and tables.
    path: its directory.
    settings: the values of its flags.
    fingerprints: of the data that it was trained on, by split.
    digest: of what makes it this run.
    best_step: the meta-steps that the best checkpoint took.
    last_step: those of the last one.
    has_path: whether it kept the parameters of every validation.
  """

  name: str
  path: pathlib.Path
  settings: SimpleNamespace
  fingerprints: dict[str, str]
  digest: str
  best_step: int
  last_step: int
  has_path: bool


def read(
  directories: Sequence[str], *, measure: bool = False, need_path: bool = False
) -> list[Run]:
  """Reads finished runs that can be compared.

  Args:
    directories: as given on the command line.
    measure: whether derivatives of their meta-objectives are needed.
    need_path: whether each must have kept its path.

  Raises:
    ValueError: if one is missing, unfinished, of another kind, given twice, or its
      tasks or network differ from those of the first one.
  """
  if not directories:
    raise ValueError("--runs: there is no run; give directories separated by commas")
  paths = [pathlib.Path(directory).expanduser() for directory in directories]
  if len({path.resolve() for path in paths}) < len(paths):
    raise ValueError(
      f"--runs: {','.join(directories)} names a directory twice; name each run once"
    )
  runs = [_read_one(path) for path in paths]
  for other in runs[1:]:
    _check_alike(runs[0], other)
  for run in runs:
    if measure and (reason := _without_derivative(run.settings)):
      raise ValueError(
        f"--runs: {run.path} is a run of {run.settings.algorithm}, {reason}; pass "
        "--nomeasure"
      )
    if need_path and not run.has_path:
      raise ValueError(
        f"--runs: {run.path} has kept no path (no checkpoints/path_*.npz) to lay a "
        "plane through; take --plane=random, or train it anew:\n  python -m "
        f"experiments.{run.settings.experiment} --flagfile={run.path / 'flags.txt'} "
        "--keep_path --run_dir=ELSEWHERE"
      )
  names = [_name(run.settings) for run in runs]
  if len(set(names)) < len(names):
    names = [path.resolve().name for path in paths]
  if len(set(names)) < len(names):
    names = [str(path) for path in paths]
  return [run._replace(name=name) for run, name in zip(runs, names, strict=True)]


def _name(settings: SimpleNamespace) -> str:
  sharp = "" if settings.sharpness == "none" else f", SAM {settings.sharpness}"
  return f"{settings.algorithm}{sharp}, seed {settings.seed}"


def _without_derivative(settings: SimpleNamespace) -> str | None:
  """Why the loss that is drawn has no derivative to measure, None if it has one."""
  if settings.algorithm == "imaml":
    return (
      "whose derivative is that of an idealised inner loop and not of the loss that is "
      "drawn"
    )
  if settings.algorithm == "reptile" and settings.inner_optimizer == "adam":
    return "whose inner Adam has no derivative where a gradient is zero"
  return None


def _read_one(path: pathlib.Path) -> Run:
  try:
    identity_bytes = (path / "run.json").read_bytes()
    identity = json.loads(identity_bytes)["identity"]
    experiment = identity["experiment"]
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f"--runs: {path} is not a run directory (no readable run.json); name the "
      "--run_dir of a training run"
    ) from error
  if experiment not in EXPERIMENTS:
    raise ValueError(
      f"--runs: {path} is a run of experiments.{experiment}; landscapes are drawn of "
      f"{' and '.join(EXPERIMENTS)}"
    )
  try:
    result = json.loads((path / "result.json").read_text())
    checkpoint = result["protocol"]["checkpoint"]
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f"--runs: {path} is not finished (no readable result.json); finish it with\n"
      f"  python -m experiments.{experiment} --flagfile={path / 'flags.txt'}"
    ) from error
  settings = _settings(experiment, path)
  if settings.num_seeds > 1:
    raise ValueError(
      f"--runs: {path} holds {settings.num_seeds} seeds side by side; train the seeds "
      "to be drawn without --num_seeds"
    )
  return Run(
    name=str(path),
    path=path,
    settings=settings,
    fingerprints=identity["data"],
    digest=hashlib.sha256(identity_bytes).hexdigest()[:16],
    best_step=checkpoint["step"],
    last_step=checkpoint["of"],
    has_path=any((path / "checkpoints").glob("path_*.npz")),
  )


def _settings(experiment: str, path: pathlib.Path) -> SimpleNamespace:
  """The flags of a run, completed as when it was started."""
  module = importlib.import_module(f"experiments.{experiment}")
  values = flags.FlagValues()
  module.define_flags(values)
  try:
    values(["landscape", f"--flagfile={path / 'flags.txt'}"])
  except flags.Error as error:
    raise ValueError(
      f"--runs: {path / 'flags.txt'} cannot be read with this version: {error}"
    ) from error
  defined = flags.FlagValues()
  module.define_flags(defined)
  return program.resolve(experiment, {name: values[name].value for name in defined})


def _check_alike(first: Run, other: Run) -> None:
  differing = [
    f"  {name}: {_value(first, name)} there, {_value(other, name)} here"
    for name in COMMON
    if _value(first, name) != _value(other, name)
  ]
  if not differing and first.fingerprints != other.fingerprints:
    differing = ["  the data themselves, by their fingerprints"]
  if differing:
    raise ValueError(
      f"--runs: {other.path} has other tasks or another network than {first.path}:\n"
      + "\n".join(differing)
      + "\nCompare runs that share these; draw the others with another --out"
    )


def _value(run: Run, name: str) -> Any:
  return getattr(run.settings, name, None)
