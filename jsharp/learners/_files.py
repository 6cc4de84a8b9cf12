"""Learners on disk: a directory with `config.json` and `model.safetensors`.

The directory of a finished run contains both, and so does a directory written by
`save`. For an unfinished run, `load` reads the description and a checkpoint.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jsharp import _catalogue, _files, _leaf_archive, options
from jsharp.core.execution import Execution
from jsharp.learners import _store
from jsharp.learners._classifier import (
  Classifier,
  ClassifierDescription,
  build_classifier,
)
from jsharp.learners._description import Description
from jsharp.learners._learner import Learner, build
from jsharp.learners._policy import PolicyDescription, PolicyLearner, build_policy
from jsharp.learners._shipped import directory_of, models_available

FORMAT = 1
"""Version of the description in `config.json`; later versions read earlier formats."""

AnyDescription = Description | ClassifierDescription | PolicyDescription
AnyLearner = Learner | Classifier | PolicyLearner
"""The types that `load` returns and `save` accepts."""

_KINDS: dict[str, type[AnyDescription]] = {
  "learner": Description,
  "classifier": ClassifierDescription,
  "policy": PolicyDescription,
}
"""The key of each kind of description."""

RUN = "description.json"
"""The description of a run, written before its first step."""


def to_json(description: AnyDescription) -> dict[str, Any]:
  """A description as JSON values, with the version of its format.

  Args:
    description: the description of a learner, an ordinary classifier or a policy.

  Returns:
    A dict that `from_json` reads.

  Example:
    >>> from jsharp.algorithms.protonet import ProtoNet
    >>> from jsharp.models.conv4 import Conv4Options
    >>> description = Description(
    ...   algorithm=ProtoNet(), network=Conv4Options(num_filters=8), num_outputs=5,
    ...   input_shape=(28, 28, 1))
    >>> to_json(description)["learner"]["network"]
    {'name': 'conv4', 'norm': 'batch', 'num_filters': 8}
    >>> from_json(to_json(description)) == description
    True
  """
  (kind,) = [kind for kind, cls in _KINDS.items() if isinstance(description, cls)]
  return {"learner_format": FORMAT, kind: options.to_json(description)}


def from_json(
  content: Mapping[str, Any], *, where: str = "config.json"
) -> AnyDescription:
  """Reads a description, strictly.

  Args:
    content: a dict from `to_json`.
    where: the name of the source, for messages.

  Returns:
    The description.

  Raises:
    ValueError: for a later format; a field that is unknown, missing, out of range or
      has another type; or an algorithm, network or dataset that cannot be imported. The
      message names it and the fix.

  Example:
    >>> from_json({"learner_format": 9})
    Traceback (most recent call last):
    ValueError: config.json has learner_format 9, but this jsharp reads 1; upgrade ...
  """
  version = content.get("learner_format")
  if version != FORMAT:
    raise ValueError(
      f"{where} has learner_format {version!r}, but this jsharp reads {FORMAT}; "
      "upgrade jsharp, or read it with the version that wrote it"
    )
  kind = next((kind for kind in _KINDS if kind in content), "learner")
  return options.from_json(
    _KINDS[kind],
    content.get(kind),
    where=f"{where}: {kind}",
    find=_catalogue.find,
  )


def save(learner: AnyLearner, path: str | os.PathLike[str]) -> None:
  """Saves a learner's description and parameters, replacing an earlier one atomically.

  Args:
    learner: the learner.
    path: a directory, created if missing; other files in it are not changed.

  Raises:
    ValueError: if a parameter is not an array of numbers.
    OSError: if it cannot be written.

  Example:
    >>> import tempfile
    >>> from jsharp.algorithms.maml import MAML
    >>> from jsharp.models.mlp import SineNetwork
    >>> learner = build(Description(
    ...   algorithm=MAML(), network=SineNetwork(), problem="regression",
    ...   num_outputs=1, input_shape=(1,)))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   save(learner, directory)
    ...   load(directory).description == learner.description
    True
  """
  arrays = _leaf_archive.named_leaves(learner.params)
  _store.write(path, to_json(learner.description), arrays)


def load(
  path: str | os.PathLike[str],
  *,
  step: int | None = None,
  execution: Execution | None = None,
) -> AnyLearner:
  """Loads a learner that a run has trained or `save` has written.

  Args:
    path: a run directory, a directory with `config.json` and `model.safetensors`, or
      the name of a learner that comes with jsharp (`jsharp.models_available()`).
    step: the meta-step of a run whose parameters to load, if its checkpoint was kept;
      None for the parameters with the best validation, which the run was tested with.
    execution: how it is computed; `Execution()` if None.

  Returns:
    The learner or policy, ready to adapt, or the ordinary classifier, ready to predict.

  Raises:
    FileNotFoundError: if there is no learner.
    ValueError: for a damaged file, a file of a later version, arrays that do not fit
      the description, or a step without checkpoint; the message names it and the fix.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: /nowhere does not contain a learner: no config.json with ...
  """
  directory = directory_of(path)
  if step is None and _store.holds(directory):
    config, arrays = _store.read(directory)
    description = from_json(config, where=str(directory / _store.CONFIG))
    return _filled(description, arrays, directory / _store.WEIGHTS, execution)
  _files.refuse_dangling(directory / RUN)
  if not (directory / RUN).exists():
    raise FileNotFoundError(
      f"{directory} does not contain a learner: no {_store.CONFIG} with "
      f"{_store.WEIGHTS}, and no {RUN} of a run; name a run directory, a directory "
      "written by jsharp.save, or a learner that comes with jsharp: "
      f"{', '.join(models_available())}"
    )
  description = _of_run(directory / RUN)
  checkpoint, arrays = _of_checkpoint(directory / "checkpoints", step)
  return _filled(description, arrays, checkpoint, execution)


def _filled(
  description: AnyDescription,
  arrays: dict[str, np.ndarray],
  path: pathlib.Path,
  execution: Execution | None,
) -> AnyLearner:
  learner: AnyLearner
  if isinstance(description, ClassifierDescription):
    learner = build_classifier(description, execution=execution or Execution())
  elif isinstance(description, PolicyDescription):
    learner = build_policy(description, execution=execution)
  else:
    learner = build(description, execution=execution)
  return learner.replace(_leaf_archive.fill(learner.params, arrays, path))


def _of_run(path: pathlib.Path) -> AnyDescription:
  try:
    learners = _files.read_table(path).get("learners")
    if not isinstance(learners, dict):
      raise ValueError(f"{path} is damaged: it describes no learner")
  except ValueError as error:
    raise ValueError(
      f"{error}; or let the run finish, which writes config.json"
    ) from error
  names = list(learners)
  if names != [""]:
    raise ValueError(
      f"{path.parent} contains {len(names)} learners; when the run has finished, load "
      f"one of them, such as {path.parent / names[0]}"
    )
  return from_json(learners[""], where=str(path))


def _of_checkpoint(
  directory: pathlib.Path, step: int | None
) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """The parameters of a checkpoint by name."""
  wanted = r"\d+" if step is None else f"{step:08d}"
  kinds = ("best", "step") if step is None else ("best", "top", "path", "step")
  names = _files.names_in(directory)
  for kind in kinds:
    for name in reversed(names):
      if re.fullmatch(rf"{kind}_{wanted}\.npz", name):
        return directory / name, _parameters(directory / name, kind)
  kept = [name for name in names if name.endswith(".npz")]
  what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
  raise ValueError(
    f"{directory} has {what}; it has {', '.join(kept) or 'none'}; let the run validate "
    "once, or name one of these steps"
  )


def _parameters(path: pathlib.Path, kind: str) -> dict[str, np.ndarray]:
  record, run = path.parents[1] / "run.json", None
  if record.exists():
    run = _files.digest_of(_files.read_table(record).get("identity", {}))
  try:
    step = int(path.stem.partition("_")[2])
    with _files.open_regular(path, most=_leaf_archive.MAX_BYTES) as file:
      metadata, arrays = _leaf_archive.read(file, step, run)
  except OSError:
    raise
  except Exception as error:  # Damaged bytes can fail in any way.
    raise ValueError(
      f"{path} is damaged ({error}); name another step, or restore it from a copy"
    ) from error
  if metadata["format"] != _leaf_archive.FORMAT:
    raise ValueError(
      f"{path} has format {metadata['format']}, but this version reads "
      f"{_leaf_archive.FORMAT}; use the version that wrote it"
    )
  if _leaf_archive.is_of_another(metadata, run):
    raise ValueError(
      f"{path} does not belong to the run {path.parents[1]}; name another step, or "
      "restore the checkpoints of this run"
    )
  if kind != "step":
    return arrays
  return {
    name.removeprefix("params/"): array
    for name, array in arrays.items()
    if name == "params" or name.startswith("params/")
  }
