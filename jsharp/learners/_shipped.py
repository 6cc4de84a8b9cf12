"""Trained learners that come with jsharp, each with its model card."""

import os
import pathlib

_ROOT = pathlib.Path(__file__).parents[1] / "shipped"


def models_available() -> list[str]:
  """The names of the trained learners that come with jsharp.

  `jsharp.load(name)` loads one. Its model card, `README.md` in its directory, has its
  training data, its accuracy, and the command that trained it.

  Returns:
    The names, sorted.

  Example:
    >>> "omniglot-maml" in models_available()
    True
  """
  return sorted(path.parent.name for path in _ROOT.glob("*/config.json"))


def directory_of(name: str | os.PathLike[str]) -> pathlib.Path:
  """The directory of a learner, given by path or by the name of a shipped learner.

  Args:
    name: an existing directory, or the name of a shipped learner.

  Returns:
    The directory; the argument itself if neither exists.

  Example:
    >>> directory_of("omniglot-maml").name
    'omniglot-maml'
  """
  path = pathlib.Path(name).expanduser()
  if not path.exists() and str(name) in models_available():
    return _ROOT / str(name)
  return path


def evaluations_of(name: str | os.PathLike[str]) -> pathlib.Path:
  """The directory for evaluations of a learner.

  Args:
    name: as for `directory_of`.

  Returns:
    The directory, which need not exist: inside the learner's directory or, for a
    learner that comes with jsharp, in the current directory.

  Example:
    >>> evaluations_of("runs/mine").as_posix()
    'runs/mine/evaluations'
  """
  path = directory_of(name)
  if path.parent == _ROOT:
    return pathlib.Path("evaluations", path.name)
  return path / "evaluations"
