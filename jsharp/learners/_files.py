"""Learners on disk: a directory with `config.json` and `model.safetensors`.

A run that has ended has both beside its records; so has whatever `save` wrote. Of a run
that goes on, `load` reads the description and a checkpoint.
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
"""Version of the description in `config.json`; a later jsharp reads earlier ones."""

AnyDescription = Description | ClassifierDescription | PolicyDescription
AnyLearner = Learner | Classifier | PolicyLearner
"""What `load` returns and `save` takes."""

_KINDS: dict[str, type[AnyDescription]] = {
  "learner": Description,
  "classifier": ClassifierDescription,
  "policy": PolicyDescription,
}
"""The key that a description stands under."""

RUN = "description.json"
"""What a run keeps of itself from its first step on."""


def to_json(description: AnyDescription) -> dict[str, Any]:
  """A description as JSON holds it, with the version of its format.

  Args:
    description: of a learner, an ordinary classifier or a policy.

  Returns:
    A table that `from_json` reads.

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
    content: from `to_json`.
    where: what is read, for messages.

  Returns:
    The description.

  Raises:
    ValueError: for a later format, a field that is unknown, missing, of another type or
      out of range, an algorithm, network or dataset that cannot be imported; the
      message names it and the fix.

  Example:
    >>> from_json({"learner_format": 9})
    Traceback (most recent call last):
    ValueError: config.json has learner_format 9, this version of jsharp reads 1; ...
  """
  version = content.get("learner_format")
  if version != FORMAT:
    raise ValueError(
      f"{where} has learner_format {version!r}, this version of jsharp reads {FORMAT}; "
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
  """Saves a learner, all or nothing: what was there before is intact until then.

  Args:
    learner: what is saved: its description and its parameters.
    path: a directory, made where it is missing; other files in it stay.

  Raises:
    ValueError: if a parameter is no array of numbers.
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
    step: of a run, the parameters of this meta-step, if a checkpoint of it was kept;
      None for the best validated ones, as it was tested.
    execution: how it is computed; `Execution()` if None.

  Returns:
    The learner or policy, ready to adapt, or the ordinary classifier, ready to predict.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: for a damaged file, one of a later version, arrays that do not fit the
      description, a step without checkpoint; the message names it and the fix.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: /nowhere holds no learner: no config.json with ...
  """
  directory = directory_of(path)
  if step is None and _store.holds(directory):
    config, arrays = _store.read(directory)
    description = from_json(config, where=str(directory / _store.CONFIG))
    return _filled(description, arrays, directory / _store.WEIGHTS, execution)
  _files.refuse_dangling(directory / RUN)
  if not (directory / RUN).exists():
    raise FileNotFoundError(
      f"{directory} holds no learner: no {_store.CONFIG} with {_store.WEIGHTS}, and no "
      f"{RUN} of a run; name a run directory, what jsharp.save wrote, or one of those "
      f"that come with jsharp: {', '.join(models_available())}"
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
      raise ValueError(f"{path} is damaged: it holds no learners")
  except ValueError as error:
    raise ValueError(
      f"{error}; or let the run end, which writes config.json"
    ) from error
  names = list(learners)
  if names != [""]:
    raise ValueError(
      f"{path.parent} holds {len(names)} learners side by side; when the run has "
      f"ended, load one of them by name, as {path.parent / names[0]}"
    )
  return from_json(learners[""], where=str(path))


def _of_checkpoint(
  directory: pathlib.Path, step: int | None
) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """The parameters of a checkpoint by their names."""
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
    f"{directory} has {what}; it has {', '.join(kept) or 'none'}: let the run validate "
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
      f"{path} has format {metadata['format']}, this version reads "
      f"{_leaf_archive.FORMAT}; use the version that wrote it"
    )
  if _leaf_archive.is_of_another(metadata, run):
    raise ValueError(
      f"{path} belongs to another run than {path.parents[1]}; name another step, or "
      "put the checkpoints of this run there"
    )
  if kind != "step":
    return arrays
  return {
    name.removeprefix("params/"): array
    for name, array in arrays.items()
    if name == "params" or name.startswith("params/")
  }
