"""Checkpoints: one self-checking `.npz` file each, written all or nothing.

`jsharp._leaf_archive` has the format, which NumPy reads anywhere.

Restoring compares every digest. A file that fails is renamed to `*.damaged` with a
warning and the one before it is used.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from jsharp._files import write_atomically
from jsharp._leaf_archive import FORMAT, fill, from_bytes, named_leaves, to_bytes


class Restored(NamedTuple):
  """A verified checkpoint.

  Attributes:
    step: the number of meta-steps it was saved after.
    tree: the saved pytree, in the structure of the template it was restored into.
    extra: the JSON record saved beside it.
  """

  step: int
  tree: Any
  extra: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run: the latest and the best, a few of each.

  Files are `step_<step>.npz`, `best_<step>.npz`, for ensembles `top_<step>.npz` and,
  all of them kept, `path_<step>.npz`. One process writes; any number may read.

  Args:
    directory: where the files are; created on the first save.
    keep: how many of the latest and how many of the best are kept, at least 1.
      With 2 there is one to fall back to.

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

  def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2):
    if keep < 1:
      raise ValueError(f"keep={keep}: at least 1 checkpoint must be kept")
    self.directory = pathlib.Path(directory)
    self.keep = keep

  def save(self, step: int, tree: Any, *, extra: dict[str, Any]) -> None:
    """Saves the latest state; older ones beyond `keep` are deleted afterwards.

    Args:
      step: the number of meta-steps taken; the larger is the newer.
      tree: a pytree of arrays.
      extra: anything that JSON holds; NaN and infinity too.

    Raises:
      ValueError: if a leaf is no array of numbers, or two leaves have one name.
      OSError: if the file cannot be written; the checkpoints before it remain.
    """
    self._save("step", step, tree, extra)

  def save_best(self, step: int, tree: Any, *, extra: dict[str, Any]) -> None:
    """Saves the best state so far, beside the latest; otherwise as `save`."""
    self._save("best", step, tree, extra)

  def save_top(self, step: int, tree: Any, *, score: float, num: int) -> None:
    """Saves the state if it is among the `num` with the highest scores.

    Saving a step again changes nothing; of equal scores the earlier one stays.

    Args:
      step: the number of meta-steps taken.
      tree: a pytree of arrays.
      score: larger is better; NaN is never among the best.
      num: how many are kept.

    Raises:
      ValueError: as for `save`.
      OSError: as for `save`.
    """
    ranks = {step: (-score, step)} if score == score else {}
    for other, path in self._files("top").items():
      if other != step:
        try:
          metadata, _ = from_bytes(path.read_bytes(), other)
          ranks[other] = (-metadata["extra"]["score"], other)
        except Exception:  # A damaged one is set aside when it is read.
          continue
    best = sorted(ranks, key=ranks.__getitem__)[:num]
    if step in best:
      self._save("top", step, tree, {"score": score}, keep=best)

  def save_path(self, step: int, tree: Any) -> None:
    """Saves a point of the way that training takes; all of them are kept.

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
    """Restores the newest undamaged state, bit for bit.

    Args:
      template: a pytree with the structure, shapes and dtypes that are expected.
        JAX arrays and `jax.ShapeDtypeStruct` come back as JAX arrays, all others
        as NumPy arrays.

    Returns:
      What was saved; None where nothing ever was.

    Raises:
      ValueError: if structure, shape or dtype of a leaf differ from the template;
        the message names the leaf and both.
      RuntimeError: if every checkpoint is damaged.
    """
    return self._restore("step", template)

  def restore_best(self, template: Any) -> Restored | None:
    """Restores what `save_best` saved last; otherwise as `restore`."""
    return self._restore("best", template)

  def restore_top(self, template: Any) -> list[Restored]:
    """Restores the states that `save_top` kept, the best first; else as `restore`."""
    read = [
      self._read(step, path, template) for step, path in self._files("top").items()
    ]
    found = [restored for restored in read if restored is not None]
    return sorted(found, key=lambda restored: (-restored.extra["score"], restored.step))

  def restore_path(self, template: Any) -> list[Restored]:
    """Restores all that `save_path` saved, the oldest first; otherwise as `restore`.

    Damaged points are set aside and left out.
    """
    read = [
      self._read(step, path, template) for step, path in self._files("path").items()
    ]
    return [restored for restored in reversed(read) if restored is not None]

  def _files(self, kind: str) -> dict[int, pathlib.Path]:
    """Files of one kind by step, newest first."""
    found = {}
    for path in self.directory.glob(f"{kind}_*.npz"):
      if match := re.fullmatch(rf"{kind}_(\d+)\.npz", path.name):
        found[int(match.group(1))] = path
    return dict(sorted(found.items(), reverse=True))

  def _save(
    self,
    kind: str,
    step: int,
    tree: Any,
    extra: dict[str, Any],
    keep: Sequence[int] | None = None,
  ) -> None:
    """Writes a file, then deletes all of its kind but `keep`, else the latest ones."""
    arrays = named_leaves(tree)
    self.directory.mkdir(parents=True, exist_ok=True)
    for leftover in self.directory.glob(f"{kind}_*.npz.tmp"):
      leftover.unlink()
    content = to_bytes(step, arrays, extra)
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
    if damaged := sorted(self.directory.glob(f"{kind}_*.npz.damaged")):
      raise RuntimeError(
        f"every '{kind}' checkpoint in {self.directory} is damaged (the last one: "
        f"{damaged[-1].name}); restore a copy of one, or start over in another "
        "directory"
      )
    return None

  def _read(self, step: int, path: pathlib.Path, template: Any) -> Restored | None:
    """Reads and verifies a file; a damaged one is set aside, and None returned."""
    content = path.read_bytes()
    try:
      metadata, arrays = from_bytes(content, step)
    except Exception as error:  # Damaged bytes can fail in any way.
      aside = path.with_name(path.name + ".damaged")
      os.replace(path, aside)
      logging.warning(
        "checkpoint %s is damaged (%s); it is kept as %s and the others are used",
        path,
        str(error) or type(error).__name__,
        aside.name,
      )
      return None
    if metadata["format"] != FORMAT:
      raise ValueError(
        f"{path} has format {metadata['format']}, this version reads {FORMAT}; use "
        "the version that wrote it"
      )
    return Restored(step, fill(template, arrays, path), metadata["extra"])
