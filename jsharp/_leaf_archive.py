"""The files of checkpoints: leaves to bytes and back, with every digest verified.

A file holds one `.npy` member per leaf, named by its place in the tree
(`params/conv_0/kernel`), so that `numpy.load` opens it anywhere, and
`metadata.json`: the step, the caller's record, and shape, dtype and SHA-256 of
every leaf; `metadata.sha256` is the digest of that. A checkpoint also has a digest of
its run's identity. Nothing is pickled. Types that NumPy lacks (bfloat16) are stored as
unsigned integers of the same width.
"""

import hashlib
import io
import json
import pathlib
import zipfile
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = 1

MAX_BYTES = 2**36
"""The largest file that is read."""


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
  """The leaves of a tree as arrays, by their path."""
  named: dict[str, np.ndarray] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = name_of(path)
    array = np.asarray(_without_key_type(leaf))
    if not _is_known(array.dtype):
      raise ValueError(f"leaf '{name}' ({array.dtype}) is not an array of numbers")
    if name in named:
      raise ValueError(f"two leaves have the name '{name}'; rename one of them")
    named[name] = array
  return named


def name_of(path: Any) -> str:
  """The name of a leaf, by its path from `jax.tree_util`: `params/conv_0/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/") or "leaf"


def _without_key_type(leaf: Any) -> Any:
  """The numbers of a typed random key (some optimizers carry one)."""
  is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )
  return jax.random.key_data(leaf) if is_key else leaf


def _is_known(dtype: np.dtype) -> bool:
  """Whether the dtype's name determines the dtype."""
  try:
    return not dtype.hasobject and jnp.dtype(dtype.name) == dtype
  except TypeError:
    return False


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(array.tobytes()).hexdigest()


def to_bytes(
  step: int,
  arrays: dict[str, np.ndarray],
  extra: dict[str, Any],
  run: str | None = None,
) -> bytes:
  """The content of a file."""
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
    record = {"format": FORMAT, "step": step, "leaves": leaves, "extra": extra}
    if run is not None:
      record["run"] = run
    metadata = json.dumps(record).encode()
    archive.writestr(zipfile.ZipInfo("metadata.json"), metadata)
    archive.writestr(
      zipfile.ZipInfo("metadata.sha256"), hashlib.sha256(metadata).hexdigest()
    )
  return buffer.getvalue()


def read(
  file: BinaryIO, step: int, run: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads and verifies a file; any exception means that it is damaged.

  If the file has another format or belongs to another run, only its metadata are read.

  Args:
    file: the open file.
    step: the step in the file's name.
    run: the digest of the run's identity; None to read a file of any run.
  """
  try:
    return _read(file, step, run)
  except OSError as error:  # A bad disk, or an invalid offset in the file.
    raise ValueError(f"it cannot be read: {error}") from error


def _read(
  file: BinaryIO, step: int, run: str | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  arrays = {}
  with zipfile.ZipFile(file) as archive:
    infos = archive.infolist()
    size = file.seek(0, io.SEEK_END)
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
    if not stored or sum(info.file_size for info in infos) > size:
      raise ValueError("its members are larger than the file")
    text = archive.read("metadata.json")
    if hashlib.sha256(text).hexdigest().encode() != archive.read("metadata.sha256"):
      raise ValueError("the digest of metadata.json differs")
    metadata = json.loads(text)
    if metadata["format"] != FORMAT or is_of_another(metadata, run):
      return metadata, {}
    if metadata["step"] != step:
      raise ValueError(f"it holds step {metadata['step']}, but its name says {step}")
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


def is_of_another(metadata: dict[str, Any], run: str | None) -> bool:
  """Whether a file belongs to another run; files of earlier versions do not say."""
  return run is not None and metadata.get("run", run) != run


def fill(template: Any, arrays: dict[str, np.ndarray], path: pathlib.Path) -> Any:
  """Puts the arrays into the template's structure, after comparing each leaf."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(template)
  names = [name_of(place) for place, _ in leaves]
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
    # Copied, since JAX may otherwise share, and later donate, memory that NumPy owns.
    leaf = jnp.array(array, copy=True)
    if isinstance(expected, jax.Array) and data is not expected:
      leaf = jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(expected))
    filled.append(leaf)
  return jax.tree_util.tree_unflatten(structure, filled)
