"""Checkpoints: one self-checking `.npz` file each, written all or nothing.

A file holds one `.npy` member per leaf, named by its place in the tree
(`params/conv_0/kernel`), so that `numpy.load` opens it anywhere, and
`metadata.json`: the step, the caller's record, and shape, dtype and SHA-256 of
every leaf; `metadata.sha256` is the digest of that. Nothing is pickled. Types that
NumPy does not have (bfloat16) are stored as unsigned integers of their width.

Restoring compares every digest. A file that fails is renamed to `*.damaged` with a
warning and the one before it is used.
"""

import hashlib
import io
import json
import os
import pathlib
import re
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jsharp.files import write_atomically

_FORMAT = 1


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

  Files are `step_<step>.npz` and `best_<step>.npz`. One process writes; any number
  may read.

  Args:
    directory: where the files are; created on the first save.
    keep: how many of the latest and how many of the best are kept, at least 1.
      With 2 there is one to fall back to.

  Raises:
    ValueError: if `keep` is less than 1.

  Example:
    >>> import tempfile
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

  def _files(self, kind: str) -> dict[int, pathlib.Path]:
    """Files of one kind by step, newest first."""
    found = {}
    for path in self.directory.glob(f"{kind}_*.npz"):
      if match := re.fullmatch(rf"{kind}_(\d+)\.npz", path.name):
        found[int(match.group(1))] = path
    return dict(sorted(found.items(), reverse=True))

  def _save(self, kind: str, step: int, tree: Any, extra: dict[str, Any]) -> None:
    arrays = _named_leaves(tree)
    self.directory.mkdir(parents=True, exist_ok=True)
    for leftover in self.directory.glob(f"{kind}_*.npz.tmp"):
      leftover.unlink()
    content = _to_bytes(step, arrays, extra)
    write_atomically(self.directory / f"{kind}_{step:08d}.npz", content)
    for old in list(self._files(kind).values())[self.keep :]:
      old.unlink()

  def _restore(self, kind: str, template: Any) -> Restored | None:
    for step, path in self._files(kind).items():
      content = path.read_bytes()
      try:
        metadata, arrays = _from_bytes(content, step)
      except Exception as error:  # Damaged bytes can fail in any way.
        aside = path.with_name(path.name + ".damaged")
        os.replace(path, aside)
        logging.warning(
          "checkpoint %s is damaged (%s); it is kept as %s and the one before it is "
          "used",
          path,
          str(error) or type(error).__name__,
          aside.name,
        )
        continue
      if metadata["format"] != _FORMAT:
        raise ValueError(
          f"{path} has format {metadata['format']}, this version reads {_FORMAT}; use "
          "the version that wrote it"
        )
      return Restored(step, _fill(template, arrays, path), metadata["extra"])
    if damaged := sorted(self.directory.glob(f"{kind}_*.npz.damaged")):
      raise RuntimeError(
        f"every '{kind}' checkpoint in {self.directory} is damaged (the last one: "
        f"{damaged[-1].name}); restore a copy of one, or start over in another "
        "directory"
      )
    return None


def _named_leaves(tree: Any) -> dict[str, np.ndarray]:
  named: dict[str, np.ndarray] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = _name(path)
    array = np.asarray(_without_key_type(leaf))
    if not _is_known(array.dtype):
      raise ValueError(f"leaf '{name}' ({array.dtype}) is no array of numbers")
    if name in named:
      raise ValueError(f"two leaves are called '{name}'; rename one of them")
    named[name] = array
  return named


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/") or "leaf"


def _without_key_type(leaf: Any) -> Any:
  """The numbers of a typed random key (some optimizers carry one)."""
  is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )
  return jax.random.key_data(leaf) if is_key else leaf


def _is_known(dtype: np.dtype) -> bool:
  """Whether the dtype's name says everything about it."""
  try:
    return not dtype.hasobject and jnp.dtype(dtype.name) == dtype
  except TypeError:
    return False


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(array.tobytes()).hexdigest()


def _to_bytes(step: int, arrays: dict[str, np.ndarray], extra: dict[str, Any]) -> bytes:
  leaves = {}
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
    for name, array in arrays.items():
      leaves[name] = {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "sha256": _digest(array),
      }
      # NumPy would write an extension type such as bfloat16 as opaque bytes.
      is_numpy_type = array.dtype.isbuiltin == 1
      stored = array if is_numpy_type else array.view(f"u{array.dtype.itemsize}")
      with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, stored, allow_pickle=False)
    metadata = json.dumps(
      {"format": _FORMAT, "step": step, "leaves": leaves, "extra": extra}
    ).encode()
    archive.writestr("metadata.json", metadata)
    archive.writestr("metadata.sha256", hashlib.sha256(metadata).hexdigest())
  return buffer.getvalue()


def _from_bytes(
  content: bytes, step: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads and verifies a file; any exception means that it is damaged.

  Of a file in a format that is not ours only the metadata are read.
  """
  arrays = {}
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    text = archive.read("metadata.json")
    if hashlib.sha256(text).hexdigest().encode() != archive.read("metadata.sha256"):
      raise ValueError("the digest of metadata.json differs")
    metadata = json.loads(text)
    if metadata["format"] != _FORMAT:
      return metadata, {}
    if metadata["step"] != step:
      raise ValueError(f"it holds step {metadata['step']}, its name says {step}")
    for name, expected in metadata["leaves"].items():
      try:
        member = io.BytesIO(archive.read(f"{name}.npy"))
        array = np.lib.format.read_array(member, allow_pickle=False)
        array = array.view(jnp.dtype(expected["dtype"]))
      except Exception as error:
        raise ValueError(f"leaf '{name}' is unreadable: {error}") from error
      if _digest(array) != expected["sha256"] or list(array.shape) != expected["shape"]:
        raise ValueError(f"the digest of leaf '{name}' differs")
      arrays[name] = array
  return metadata, arrays


def _fill(template: Any, arrays: dict[str, np.ndarray], path: pathlib.Path) -> Any:
  """Puts the arrays into the template's structure, each leaf compared with it."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(template)
  names = [_name(place) for place, _ in leaves]
  if set(names) != set(arrays):
    raise ValueError(
      f"{path} does not fit this program: it has {sorted(set(arrays) - set(names))} "
      f"where {sorted(set(names) - set(arrays))} is expected; use the settings that "
      "it was saved with"
    )
  filled: list[Any] = []
  for name, (_, expected) in zip(names, leaves, strict=True):
    array, data = arrays[name], _without_key_type(expected)
    dtype = data.dtype if hasattr(data, "dtype") else np.asarray(data).dtype
    if array.shape != np.shape(data) or array.dtype != dtype:
      raise ValueError(
        f"{path} does not fit this program: leaf '{name}' is {array.dtype.name}"
        f"{list(array.shape)}, expected {dtype.name}{list(np.shape(data))}; use the "
        "settings that it was saved with"
      )
    if not isinstance(expected, jax.Array | jax.ShapeDtypeStruct):
      filled.append(array)
      continue
    # A copy: JAX may otherwise share, and later donate, memory that NumPy owns.
    leaf = jnp.array(array, copy=True)
    if isinstance(expected, jax.Array) and data is not expected:
      leaf = jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(expected))
    filled.append(leaf)
  return jax.tree_util.tree_unflatten(structure, filled)
