"""Reading finished runs from their directories."""

import hashlib
import os
import pathlib
from typing import Any, NamedTuple

from jsharp import _catalogue, _files, options
from jsharp.training.runs import AnyRun

_DESCRIPTION = "description.json"
_IDENTITY = "run.json"
_RESULT = "result.json"


class FinishedRun(NamedTuple):
  """A finished run.

  `jsharp.load(run.path)` loads the learner that it trained.

  Attributes:
    path: its directory.
    experiment: the program that ran it.
    description: its description, such as a `jsharp.training.FewShotRun`.
    result: the content of `result.json`.
    fingerprints: the fingerprints of its data, by split.
    digest: 16 hexadecimal digits of its identity: its settings and its data.
    best_step: the meta-steps of the parameters that were tested.
    last_step: all meta-steps.
    has_path: whether it kept the parameters of every validation.
    identity: the digest that its checkpoints store.
  """

  path: pathlib.Path
  experiment: str
  description: AnyRun
  result: dict[str, Any]
  fingerprints: dict[str, str]
  digest: str
  best_step: int
  last_step: int
  has_path: bool
  identity: str | None = None


def read_run(path: str | os.PathLike[str]) -> FinishedRun:
  """Reads the description and the result of a finished run.

  Args:
    path: the directory of the run.

  Returns:
    The run. Its parameters are not read.

  Raises:
    ValueError: if it is not a run directory, a file there is damaged, the run is not
      finished, or this version of jsharp does not know a part of its description; the
      message names the fix.
    OSError: if a file there cannot be read.

  Example:
    >>> read_run("/nowhere")
    Traceback (most recent call last):
    ValueError: /nowhere is not a run directory (no readable run.json); ...
  """
  path = pathlib.Path(path).expanduser()
  try:
    identity = _files.read_bytes(path / _IDENTITY, most=_files.MAX_TABLE_BYTES)
    run = _files.parse_table(identity, where=path / _IDENTITY)
    fingerprints = run["identity"]["fingerprints"]
  except (FileNotFoundError, NotADirectoryError, KeyError, TypeError) as error:
    raise _no_run(path, _IDENTITY) from error
  experiment, description = _described(path)
  try:
    result = _files.read_table(path / _RESULT)
    checkpoint = result["protocol"]["checkpoint"]
    best_step, last_step = checkpoint["step"], checkpoint["of"]
  except (FileNotFoundError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is not finished (no readable {_RESULT}); finish it with\n"
      f"  python -m experiments.{experiment} --flagfile={path / 'flags.txt'}"
    ) from error
  return FinishedRun(
    path=path,
    experiment=experiment,
    description=description,
    result=result,
    fingerprints=fingerprints,
    digest=hashlib.sha256(identity).hexdigest()[:16],
    best_step=best_step,
    last_step=last_step,
    has_path=_has_path(path / "checkpoints"),
    identity=_files.digest_of(run["identity"]),
  )


def _has_path(directory: pathlib.Path) -> bool:
  return any(name.startswith("path_") for name in _files.names_in(directory))


def description_of(path: str | os.PathLike[str]) -> AnyRun | None:
  """Reads the description of a run, finished or not.

  Args:
    path: the run's directory, or the subdirectory of one of its seeds.

  Returns:
    The description; None if the directory does not contain a run.

  Raises:
    ValueError: if its description is damaged, or this version of jsharp does not know a
      part of it.

  Example:
    >>> description_of("/nowhere") is None
    True
  """
  path = pathlib.Path(path).expanduser()
  if path.name.startswith("seed_") and not (path / _DESCRIPTION).is_file():
    path = path.parent
  return _described(path)[1] if (path / _DESCRIPTION).is_file() else None


def _described(path: pathlib.Path) -> tuple[str, AnyRun]:
  """The program of a run and its description."""
  try:
    record = _files.read_table(path / _DESCRIPTION)
    experiment, content = record["experiment"], record["run"]
  except (FileNotFoundError, NotADirectoryError, KeyError, TypeError) as error:
    raise _no_run(path, _DESCRIPTION) from error
  description = options.from_json(
    AnyRun, content, where=f"{path / _DESCRIPTION}: run", find=_catalogue.find
  )
  return experiment, description


def _no_run(path: pathlib.Path, missing: str) -> ValueError:
  return ValueError(
    f"{path} is not a run directory (no readable {missing}); name the --run_dir of a "
    "training run"
  )


def check_comparable(first: FinishedRun, other: FinishedRun) -> None:
  """Checks that two runs have the same tests, network and data.

  Args:
    first: a run.
    other: another run.

  Raises:
    ValueError: if they differ; the message lists the differences.

  Example:
    >>> from jsharp.training.options import Machine, Run
    >>> description = AnyRun(run=Run(), machine=Machine())
    >>> run = FinishedRun(pathlib.Path("A"), "omniglot", description, {},
    ...   {"test": "1"}, "", 1, 1, False)
    >>> other = run._replace(path=pathlib.Path("B"), fingerprints={"test": "2"})
    >>> check_comparable(run, other)
    Traceback (most recent call last):
    ValueError: B has other tasks or another network than A:
      the data themselves, by their fingerprints
    Compare runs that share these
  """
  there, here = (run.description.comparable() for run in (first, other))
  differing = [
    f"  {name}: {there.get(name)} there, {here.get(name)} here"
    for name in there | here
    if there.get(name) != here.get(name)
  ]
  if not differing and first.fingerprints != other.fingerprints:
    differing = ["  the data themselves, by their fingerprints"]
  if differing:
    raise ValueError(
      f"{other.path} has other tasks or another network than {first.path}:\n"
      + "\n".join(differing)
      + "\nCompare runs that share these"
    )
