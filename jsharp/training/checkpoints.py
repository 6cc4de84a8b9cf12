"""Checkpoints: one `.npz` file each, written atomically and verified by digests.

`jsharp._leaf_archive` defines the format, which NumPy can read anywhere. Restoring
verifies every digest. A file that fails is renamed to `*.damaged` with a warning, and
the previous one is used. A file of another run is an error.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from jsharp import _files, _leaf_archive
from jsharp._files import FileError, write_atomically
from jsharp.training.run_directory import RunDirectory


class NoCheckpointLeftError(FileError, RuntimeError):
  """Every checkpoint of a kind is damaged."""


class Restored(NamedTuple):
  """A verified checkpoint.

  Attributes:
    step: the number of meta-steps before it was saved.
    tree: the saved pytree, with the structure of the template.
    extra: the JSON record saved with it.
  """

  step: int
  tree: Any
  extra: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run: the latest and the best, a few of each.

  Files are `step_<step>.npz`, `best_<step>.npz`, for ensembles `top_<step>.npz`, and
  `path_<step>.npz`, which are all kept. One process writes; any number may read.

  Args:
    directory: the directory of the files; created on the first save.
    keep: how many of the latest and how many of the best are kept, at least 1. With 2
      there is one to fall back to.
    run: the run that they belong to. Files store its identity, and files with another
      identity are errors. None: files of any run are read, and no identity is stored.
    identity: the digest of the identity, instead of `run`, if only reading.

  Raises:
    ValueError: if `keep` is less than 1.

  Example:
    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   checkpoints = Checkpoints(directory)
    ...   checkpoints.save(3, {"w": jnp.arange(2.0)}, extra={"note": "hello"})
    ...   step, tree, extra = checkpoints.restore({"w": jnp.zeros(2)})
    >>> step, tree, extra
    (3, {'w': Array([0., 1.], dtype=float32)}, {'note': 'hello'})
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int = 2,
    run: RunDirectory | None = None,
    identity: str | None = None,
  ):
    if keep < 1:
      raise ValueError(f"keep={keep}: must be at least 1")
    self.directory = pathlib.Path(directory)
    self.keep = keep
    self._run = run
    self._identity = identity if run is None else run.digest

  def save(self, step: int, tree: Any, *, extra: dict[str, Any]) -> None:
    """Saves the latest state; older ones beyond `keep` are deleted afterwards.

    Args:
      step: the number of meta-steps taken; a larger number is newer.
      tree: a pytree of arrays.
      extra: any JSON value; NaN and infinity are allowed.

    Raises:
      ValueError: if a leaf is not an array of numbers, or two leaves have one name.
      OSError: if the file cannot be written; earlier checkpoints remain.
    """
    self._save("step", step, tree, extra)

  def save_best(self, step: int, tree: Any, *, extra: dict[str, Any]) -> None:
    """As `save`, for the best state so far, which is kept in addition to the latest."""
    self._save("best", step, tree, extra)

  def save_top(self, step: int, tree: Any, *, score: float, num: int) -> None:
    """Saves the state if it is among the `num` with the highest scores.

    Saving a step again changes nothing; among equal scores the earlier one is kept.

    Args:
      step: the number of meta-steps taken.
      tree: a pytree of arrays.
      score: larger is better; NaN is never among the best.
      num: the number of states to keep.

    Raises:
      ValueError: as for `save`.
      OSError: as for `save`.
    """
    ranks = {step: (-score, step)} if score == score else {}
    for other, path in self._files("top").items():
      if other != step:
        try:
          metadata, _ = self._content(path, other)
          ranks[other] = (-metadata["extra"]["score"], other)
        except Exception:  # A damaged file is set aside when it is restored.
          continue
    best = sorted(ranks, key=ranks.__getitem__)[:num]
    if step in best:
      self._save("top", step, tree, {"score": score}, keep=best)

  def save_path(self, step: int, tree: Any) -> None:
    """Saves a point of the training trajectory; all points are kept.

    Saving a step again replaces it.

    Args:
      step: the number of meta-steps taken.
      tree: a pytree of arrays.

    Raises:
      ValueError: as for `save`.
      OSError: as for `save`.
    """
    self._save("path", step, tree, {}, keep=[*self._files("path"), step])

  def restore(self, template: Any) -> Restored | None:
    """Restores the newest undamaged state, bitwise.

    Args:
      template: a pytree with the expected structure, shapes and dtypes. JAX arrays and
        `jax.ShapeDtypeStruct` are restored as JAX arrays, all others as NumPy arrays.

    Returns:
      The saved state; None if nothing was saved.

    Raises:
      ValueError: if structure, shape or dtype of a leaf differ from the template (the
        message names the leaf and both), if the file belongs to another run, or if the
        directory is a dangling link.
      RuntimeError: if every checkpoint is damaged.
      OSError: if the directory or a file cannot be read.
    """
    return self._restore("step", template)

  def restore_best(self, template: Any) -> Restored | None:
    """As `restore`, for the state that `save_best` saved last."""
    return self._restore("best", template)

  def restore_top(self, template: Any) -> list[Restored]:
    """As `restore`, for the states that `save_top` kept, best first."""
    read = [
      self._read(step, path, template) for step, path in self._files("top").items()
    ]
    found = [restored for restored in read if restored is not None]
    return sorted(found, key=lambda restored: (-restored.extra["score"], restored.step))

  def restore_path(self, template: Any) -> list[Restored]:
    """As `restore`, for all points that `save_path` saved, oldest first.

    Damaged points are set aside and left out.
    """
    read = [
      self._read(step, path, template) for step, path in self._files("path").items()
    ]
    return [restored for restored in reversed(read) if restored is not None]

  def last_step(self) -> int:
    """The step of the newest state; 0 if none was saved."""
    return next(iter(self._files("step")), 0)

  def damaged(self, kind: str) -> dict[int, pathlib.Path]:
    """Files that were set aside, by step, newest first.

    Args:
      kind: "step", "best", "top" or "path".
    """
    return self._files(kind, ".damaged")

  def _files(self, kind: str, suffix: str = "") -> dict[int, pathlib.Path]:
    """Files of one kind by step, newest first."""
    found = {}
    for name in self._names():
      if match := re.fullmatch(rf"{kind}_(\d+)\.npz{re.escape(suffix)}", name):
        found[int(match.group(1))] = self.directory / name
    return dict(sorted(found.items(), reverse=True))

  def _names(self) -> list[str]:
    """The names in the directory; an unreadable directory is an error, not empty."""
    try:
      return _files.names_in(self.directory)
    except OSError as error:
      raise type(error)(
        error.errno,
        f"cannot read {self.directory} ({error.strerror}); fix its permissions, or "
        "remove it to start over",
      ) from error

  def _save(
    self,
    kind: str,
    step: int,
    tree: Any,
    extra: dict[str, Any],
    keep: Sequence[int] | None = None,
  ) -> None:
    """Writes a file, then deletes all of its kind except `keep` or the latest ones."""
    arrays = _leaf_archive.named_leaves(tree)
    if self._run is not None:
      self._run.check_owned()
    self.directory.mkdir(parents=True, exist_ok=True)
    for leftover in self._files(kind, ".tmp").values():
      leftover.unlink()
    content = _leaf_archive.to_bytes(step, arrays, extra, self._identity)
    write_atomically(self.directory / f"{kind}_{step:08d}.npz", content)
    files = self._files(kind)
    for kept in list(files)[: self.keep] if keep is None else keep:
      files.pop(kept, None)
    for old in files.values():
      old.unlink()

  def _restore(self, kind: str, template: Any) -> Restored | None:
    for step, path in self._files(kind).items():
      if restored := self._read(step, path, template):
        return restored
    for path in self.damaged(kind).values():
      raise NoCheckpointLeftError(
        f"every '{kind}' checkpoint in {self.directory} is damaged (the last one: "
        f"{path.name}); restore one from a copy, or start over in another directory"
      )
    return None

  def _read(self, step: int, path: pathlib.Path, template: Any) -> Restored | None:
    """Reads and verifies a file; sets a damaged file aside and returns None."""
    try:
      metadata, arrays = self._content(path, step)
    except OSError:
      raise
    except Exception as error:  # Damaged bytes can fail in any way.
      logging.warning(
        "checkpoint %s is damaged (%s); it is kept as %s and the others are used",
        path,
        str(error) or type(error).__name__,
        _files.set_aside(path).name,
      )
      return None
    if metadata["format"] != _leaf_archive.FORMAT:
      raise FileError(
        f"{path} has format {metadata['format']}, but this version reads "
        f"{_leaf_archive.FORMAT}; use the version that wrote it"
      )
    if _leaf_archive.is_of_another(metadata, self._identity):
      raise FileError(
        f"{path} belongs to a run with other settings or data than {path.parents[1]}; "
        "restore the checkpoints of this run, or start over with another run_dir"
      )
    try:
      tree = _leaf_archive.fill(template, arrays, path)
    except ValueError as error:
      raise FileError(str(error)) from error
    return Restored(step, tree, metadata["extra"])

  def _content(self, path: pathlib.Path, step: int) -> tuple[dict[str, Any], Any]:
    with _files.open_regular(path, most=_leaf_archive.MAX_BYTES) as file:
      return _leaf_archive.read(file, step, self._identity)
