"""Trained learners that come with jsharp, each with its model card."""

import os
import pathlib

_ROOT = pathlib.Path(__file__).parents[1] / "shipped"


def models_available() -> list[str]:
  """The names of the trained learners that come with jsharp.

  `jsharp.load(name)` loads one. Its model card, `README.md` beside its files, says what
  it was trained on, how accurate it is, and the command that trained it.

  Returns:
    The names, sorted.

  Example:
    >>> "omniglot-maml" in models_available()
    True
  """
  return sorted(path.parent.name for path in _ROOT.glob("*/config.json"))


def directory_of(name: str | os.PathLike[str]) -> pathlib.Path:
  """Where a learner lies: a directory, or that of a learner that comes with jsharp.

  Args:
    name: of a directory that exists, or of a shipped learner.

  Returns:
    The directory; as it was given where neither is there.

  Example:
    >>> directory_of("omniglot-maml").name
    'omniglot-maml'
  """
  path = pathlib.Path(name).expanduser()
  if not path.exists() and str(name) in models_available():
    return _ROOT / str(name)
  return path


def evaluations_of(name: str | os.PathLike[str]) -> pathlib.Path:
  """Where evaluations of a learner are written: beside it, if it is the user's own.

  Args:
    name: as `directory_of` takes it.

  Returns:
    The directory, which need not exist; for a learner that comes with jsharp it lies in
    the current directory.

  Example:
    >>> evaluations_of("runs/mine").as_posix()
    'runs/mine/evaluations'
  """
  path = directory_of(name)
  if path.parent == _ROOT:
    return pathlib.Path("evaluations", path.name)
  return path / "evaluations"
