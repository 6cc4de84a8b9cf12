"""Initial parameters from an earlier learner, or from a file of arrays."""

import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jsharp import _files, _leaf_archive
from jsharp.algorithms.fine_tuning import FineTuning, Initial, in_group
from jsharp.learners._classifier import Classifier
from jsharp.learners._files import AnyLearner, load
from jsharp.learners._learner import Learner
from jsharp.types import Params, Variables

_HEAD = "head"
_MAX_MAP_BYTES = 2**24
Names = dict[str, str]
"""Names of leaves, by the backbone's names for them."""


def initial(wanted: FineTuning, params: Variables) -> tuple[Variables, str | None]:
  """The parameters and statistics that ordinary training starts from.

  Args:
    wanted: where they come from.
    params: random initial parameters, which the head keeps.

  Returns:
    The variables to train, and a digest of what was read; None if nothing was read.

  Raises:
    ValueError: if the arrays do not fit; the message has all names and both shapes.
    OSError: if a file cannot be read.

  Example:
    >>> initial(FineTuning(), Variables({"w": np.ones(2)}, {}))[1] is None
    True
  """
  if wanted.init_from is None:
    return params, None
  ours = _leaf_archive.named_leaves(params)
  needed = {
    name: name
    for name in ours
    if wanted.init_head or not in_group(name, f"params/{_HEAD}")
  }

  def of_learner(learner: AnyLearner) -> dict[str, np.ndarray]:
    if not isinstance(learner, Classifier):
      raise ValueError(
        f"--init_from={wanted.init_from} is a few-shot learner; name an ordinary "
        "classifier, or a file of arrays"
      )
    return _leaf_archive.named_leaves(learner.params)

  return _taken(wanted, params, ours, needed, of_learner)


def initial_backbone(
  wanted: Initial,
  params: Params,
  *,
  head: str = _HEAD,
  within: str = "",
  anew: tuple[str, ...] = (),
) -> tuple[Params, str | None]:
  """The parameters that meta-learning starts from: a pretrained backbone's.

  From an ordinary classifier it takes the parameters and, if normalisation is "frozen",
  the running averages; from a few-shot learner with the same network the parameters.
  The head, and whatever else the algorithm learns, is initialised anew.

  Args:
    wanted: where they come from.
    params: random initial parameters, as in `Made.params`.
    head: the name of the network's head.
    within: as `Algorithm.backbone`.
    anew: as `Algorithm.beyond_backbone`.

  Returns:
    The parameters, and a digest of what was read; None if nothing was read.

  Raises:
    ValueError: if the arrays do not fit; the message has all names and both shapes.
    OSError: if a file cannot be read.

  Example:
    >>> initial_backbone(Initial(), {"w": np.ones(2)})[1] is None
    True
  """
  if wanted.init_from is None:
    return params, None
  ours = _leaf_archive.named_leaves(params)
  needed = {
    name: own
    for name, own in _of_backbone(ours, within).items()
    if not any(in_group(name, group) for group in (_HEAD, head, *anew))
  }
  return _taken(wanted, params, ours, needed, _backbone_of)


def _of_backbone(leaves: Iterable[str], within: str) -> Names:
  """The names of a backbone's leaves in a learner, by their names in the backbone."""
  found = {}
  for whole in leaves:
    if not within or in_group(whole, within):
      name = whole
      for prefix in ("embedding/", "params/", "statistics/"):
        name = name.removeprefix(prefix)
      found[name] = whole
  return found


def _backbone_of(learner: AnyLearner) -> dict[str, np.ndarray]:
  leaves = _leaf_archive.named_leaves(learner.params)
  within = ""
  if isinstance(learner, Learner):
    within = learner.description.algorithm.backbone
  return {name: leaves[own] for name, own in _of_backbone(leaves, within).items()}


def _taken(
  wanted: Initial,
  params: Any,
  ours: dict[str, np.ndarray],
  needed: Names,
  of_learner: Callable[[Any], dict[str, np.ndarray]],
) -> tuple[Any, str]:
  """The parameters with the needed leaves replaced, and a digest."""
  where = pathlib.Path(wanted.init_from or "").expanduser()
  shapes = {name: ours[own] for name, own in needed.items()}
  if where.suffix in (".safetensors", ".npz"):
    arrays = _arrays(where, most=_most(shapes))
    found = _renamed(arrays, wanted.init_names, shapes, where)
  else:
    if wanted.init_names is not None:
      raise ValueError(
        f"--init_names is for a file of arrays, but {where} is a learner; leave it out"
      )
    found = of_learner(load(wanted.init_from or ""))
  _check_fit(shapes, found, where)
  taken = dict(ours)
  digest = hashlib.sha256()
  for name in sorted(needed):
    own = needed[name]
    taken[own] = np.ascontiguousarray(found[name], ours[own].dtype)
    digest.update(taken[own].tobytes())
  return _leaf_archive.fill(params, taken, where), digest.hexdigest()[:16]


def _most(needed: dict[str, np.ndarray]) -> int:
  """The largest plausible size of a file with these arrays and optimizer state."""
  return 16 * sum(array.nbytes for array in needed.values()) + 2**26


def _arrays(path: pathlib.Path, *, most: int) -> dict[str, np.ndarray]:
  content = _files.read_bytes(path, most=most)
  try:
    if path.suffix == ".npz":
      with zipfile.ZipFile(io.BytesIO(content)) as members:
        size = sum(member.file_size for member in members.infolist())
      if size > most:
        raise ValueError(f"its arrays take {size:,} bytes, more than {most:,}")
      with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
    from safetensors.numpy import load as parse

    return dict(parse(content))
  except Exception as error:  # A damaged file can raise anything.
    raise ValueError(
      f"{path} is not a file of arrays, or is damaged ({type(error).__name__}: {error})"
    ) from error


def _renamed(
  arrays: dict[str, np.ndarray],
  names: str | None,
  needed: dict[str, np.ndarray],
  where: pathlib.Path,
) -> dict[str, np.ndarray]:
  """The arrays by jsharp's names."""
  if names is None:
    return arrays
  try:
    table = json.loads(_files.read_bytes(pathlib.Path(names), most=_MAX_MAP_BYTES))
    entries = {
      ours: entry if isinstance(entry, dict) else {"name": entry}
      for ours, entry in table.items()
    }
    parts = {ours: _part(entry) for ours, entry in entries.items()}
  except (ValueError, AttributeError, KeyError, RecursionError) as error:
    raise ValueError(
      f"--init_names={names} must be a JSON object that maps jsharp's names to names "
      f"in {where}: {error}"
    ) from error
  unknown = sorted(parts.keys() - needed.keys())
  if unknown:
    raise ValueError(
      f"--init_names={names} has {_listed(unknown)}, which this network lacks; its "
      f"names are {_listed(sorted(needed))}"
    )
  found = {}
  for ours, (theirs, order) in parts.items():
    if theirs not in arrays:
      raise ValueError(
        f"--init_names={names}: {where} has no {theirs!r}; it has "
        f"{_listed(sorted(arrays))}"
      )
    array = arrays[theirs]
    if order is not None:
      if sorted(order) != list(range(array.ndim)):
        raise ValueError(
          f"--init_names={names}: {ours} transposes {list(array.shape)} by {order}"
        )
      array = array.transpose(order)
    found[ours] = array
  return found


def _part(entry: Any) -> tuple[str, list[int] | None]:
  """The name of an array in the file, and how to transpose it."""
  name, order = entry["name"], entry.get("transpose")
  if not isinstance(name, str):
    raise ValueError(f"{name!r} is not a name")
  is_order = isinstance(order, list) and all(type(axis) is int for axis in order)
  if order is not None and not is_order:
    raise ValueError(f"transpose must be a list of axes, got {order!r}")
  return name, order


def _check_fit(
  needed: dict[str, np.ndarray], found: dict[str, np.ndarray], where: pathlib.Path
) -> None:
  differing = []
  for name, ours in needed.items():
    theirs = found.get(name)
    if theirs is None:
      differing.append(f"  {name}: {list(ours.shape)} here, missing there")
    elif theirs.shape != ours.shape or theirs.dtype.kind not in "fV":
      there = f"{theirs.dtype.name}{list(theirs.shape)}"
      differing.append(f"  {name}: {list(ours.shape)} here, {there} there")
  if differing:
    raise ValueError(
      f"--init_from={where} does not fit this network:\n"
      + "\n".join(differing)
      + "\nUse the network options that it was trained with, or map the arrays by "
      "--init_names"
    )


def _listed(names: Any) -> str:
  names = list(names)
  rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ", ".join(names[:8]) + rest
