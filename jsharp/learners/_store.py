"""A saved learner: a directory with `config.json` and `model.safetensors`.

`model.safetensors` is complete on its own, and any safetensors reader can open it. Its
metadata has one entry, `jsharp`, the text of a JSON object: `format`, `version` (of
jsharp), `config`, `arrays` (a digest for each name, in the order given to `write`) and
`sha256`, the digest of the same object without that key. The digest of an array is
the SHA-256 of its dtype and shape as text, `float32[2, 3]`, followed by its bytes.

`config.json` has the keys of the config, then `jsharp`: `format`, `version` and
`sha256`, the digest of the whole `model.safetensors`.

`write` writes `config.json.tmp`, then replaces `model.safetensors`, then renames
`config.json.tmp` to `config.json`; each step is atomic. While `config.json.tmp` exists,
`read` uses only `model.safetensors`, of the old or the new learner. Otherwise the two
files must match exactly. One process writes; any number may read.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import reprlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jsharp._files import FileError, open_regular, write_atomically
from jsharp._version import __version__

FORMAT = 1
NAMES = CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_CONFIG_BYTES = 2**20
MAX_HEADER_BYTES = 2**24

# By name in safetensors.
_DTYPES = {"BOOL": np.dtype(bool), "BF16": np.dtype(jnp.bfloat16)} | {
  f"{kind[0].upper()}{8 * int(kind[1])}": np.dtype(f"<{kind}")
  for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8")
}
_KEY = "jsharp"
_PENDING = CONFIG + ".tmp"
_FIX = "restore it from a copy, or save the learner again"


def holds(directory: str | os.PathLike[str]) -> bool:
  """Whether either file of a learner exists, complete or not.

  Example:
    >>> holds("no/such/directory")
    False
  """
  return any(os.path.lexists(os.path.join(directory, name)) for name in NAMES)


def write(
  directory: str | os.PathLike[str],
  config: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
) -> None:
  """Saves a learner atomically, replacing an existing one.

  If the process dies at any time, `read` returns either the old or the new learner.
  Other files in the directory are not changed. The same learner always gives the same
  bytes.

  Args:
    directory: created with its parents if missing.
    config: a JSON object that reads back equal (no tuples), without the key `jsharp`.
    arrays: arrays by name, of any shape: `bool`, `bfloat16`, `complex64`, integers of 8
      to 64 and floats of 16 to 64 bits, in any memory layout and byte order.

  Raises:
    ValueError: if a value of the config, a name or a dtype cannot be stored, or a size
      exceeds its limit. The message names it, and nothing is written.
    OSError: if writing fails. `read` then returns the old learner, or the new one if
      only the last step failed. A `config.json.tmp` may remain; the next write removes
      it.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   write(directory, {"ways": 5}, {"w": np.ones((2, 3), np.float32)})
    ...   sorted(os.listdir(directory))
    ['config.json', 'model.safetensors']
  """
  from safetensors.numpy import save

  directory = pathlib.Path(directory)
  if _KEY in config or "__metadata__" in arrays:
    raise ValueError(f"rename key '{_KEY}' or array '__metadata__': it is reserved")
  for key, value in config.items():
    _check_json(f"config[{key!r}] = {reprlib.repr(value)}", {key: value})
  for name in arrays:
    _check_json(f"an array called {name!r}", {name: 0})
  stored = {name: _storable(name, array) for name, array in arrays.items()}
  record = {
    "format": FORMAT,
    "version": __version__,
    "config": dict(config),
    "arrays": {name: _array_digest(array) for name, array in stored.items()},
  }
  record["sha256"] = _digest(_dump(record))
  # One entry, since safetensors writes several in random order.
  weights = save(stored, {_KEY: _dump(record).decode()})
  text = _config_text(record, weights)
  _bound("config", len(text), MAX_CONFIG_BYTES)
  _bound("header", int.from_bytes(weights[:8], "little"), MAX_HEADER_BYTES)

  with _explained(f"cannot create {directory}", "choose another directory"):
    directory.mkdir(parents=True, exist_ok=True)
  write_atomically(directory / _PENDING, text)
  write_atomically(directory / WEIGHTS, weights)
  with _explained(f"cannot replace {directory / CONFIG}", "save the learner again"):
    os.replace(directory / _PENDING, directory / CONFIG)


def read(
  directory: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads a learner and verifies every digest; writes nothing.

  Args:
    directory: the directory that `write` saved to.

  Returns:
    The config, and the arrays by name in the original order: with shapes, dtypes and
    bits as saved, each writable, contiguous and little-endian.

  Raises:
    ValueError: if a file is damaged, was changed, is not a regular file, or has a later
      format. The message names the file, any damaged array, and the fix.
    OSError: if a file is missing or cannot be read.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   write(directory, {"ways": 5}, {"w": np.ones(2, np.float32)})
    ...   read(directory)
    ({'ways': 5}, {'w': array([1., 1.], dtype=float32)})
  """
  for _ in range(4):  # A write may happen between the reads of the two files.
    with contextlib.suppress(ValueError, OSError):
      return _read_once(pathlib.Path(directory))
  return _read_once(pathlib.Path(directory))


def _read_once(directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  path, text = directory / CONFIG, b""
  is_pending = os.path.lexists(directory / _PENDING)
  if not is_pending:
    with _opened(path) as (file, size):
      _bound("file", size, MAX_CONFIG_BYTES)
      text = file.read(size)
      _check_format(_parse(text).get(_KEY))
  expected, config, arrays = _read_weights(directory / WEIGHTS)
  if not is_pending and text != expected:
    raise ValueError(
      f"{path} does not match {directory / WEIGHTS}: one is damaged, changed, or from "
      "another learner; restore both from one copy, or save the learner again"
    )
  return config, arrays


def _read_weights(
  path: pathlib.Path,
) -> tuple[bytes, dict[str, Any], dict[str, np.ndarray]]:
  """The matching text of `config.json`, the config, and the arrays."""
  from safetensors import deserialize

  with _opened(path) as (file, size):
    header_bytes = int.from_bytes(file.read(8), "little")
    _bound("header", header_bytes, MAX_HEADER_BYTES)
    header = _parse(file.read(header_bytes))
    metadata = header.pop("__metadata__", {})
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + header_bytes + end:
      raise ValueError(
        f"it has {size} bytes, but its header says {8 + header_bytes + end}"
      )
    file.seek(0)
    content = file.read(size)

    record = _parse(metadata.get(_KEY, "{}").encode())
    _check_format(record)
    if record.pop("sha256") != _digest(_dump(record)):
      raise ValueError("the SHA-256 of its metadata differs")
    entries, arrays = dict(deserialize(content)), {}
    if entries.keys() != record["arrays"].keys():
      raise ValueError("the names of its arrays differ from those saved")
    for name, digest in record["arrays"].items():
      entry = entries[name]
      array = np.ndarray(entry["shape"], _DTYPES[entry["dtype"]], entry["data"])
      if _array_digest(array) != digest:
        raise ValueError(f"the SHA-256 of array '{name}' differs")
      arrays[name] = array
    return _config_text(record, content), dict(record["config"]), arrays


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[BinaryIO, int]]:
  """Opens a regular file, with its size; explains errors caused by its content."""
  dangles = os.path.islink(path) and not os.path.exists(path)
  with _explained(f"cannot read {path}", "the link is dangling; " * dangles + _FIX):
    try:
      with open_regular(path, most=sys.maxsize) as file:
        yield file, os.fstat(file.fileno()).st_size
    except (OSError, FileError):
      raise
    except NotImplementedError as error:
      raise ValueError(f"{path} was {error}: upgrade jsharp") from error
    except Exception as error:  # Damaged bytes can fail in any way.
      reason = error if isinstance(error, ValueError) else f"it is damaged ({error!r})"
      raise ValueError(f"cannot read {path}: {reason}; {_FIX}") from error


@contextlib.contextmanager
def _explained(what: str, fix: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise type(error)(error.errno, f"{what} ({error.strerror}); {fix}") from error


def _check_format(stamp: Any) -> None:
  found = stamp.get("format") if isinstance(stamp, dict) else None
  if type(found) is int and found > FORMAT:
    raise NotImplementedError(
      f"written by a later jsharp (format {found}); this version reads up to {FORMAT}"
    )
  if type(found) is not int or found != FORMAT:
    raise ValueError(f"its format is {found!r}: jsharp did not write it")


def _bound(what: str, size: int, most: int) -> None:
  if size > most:
    raise ValueError(f"the {what} has {size} bytes, but at most {most} can be read")


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _array_digest(array: np.ndarray) -> str:
  return _digest(f"{array.dtype.name}{list(array.shape)}".encode() + array.tobytes())


def _config_text(record: dict[str, Any], weights: bytes) -> bytes:
  stamp = {"format": FORMAT, "version": record["version"], "sha256": _digest(weights)}
  return _dump({**record["config"], _KEY: stamp}, indent=2) + b"\n"


def _dump(value: Any, indent: int | None = None) -> bytes:
  text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
  return text.encode()


def _parse(text: bytes) -> dict[str, Any]:
  def number(text: str) -> float:
    if not math.isfinite(value := float(text)):
      raise ValueError(f"{text} is not a finite number")
    return value

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
      if key in found:
        raise ValueError(f"the key {key!r} occurs twice")
      found[key] = value
    return found

  value = json.loads(
    text.decode(), parse_constant=number, parse_float=number, object_pairs_hook=unique
  )
  if not isinstance(value, dict):
    raise ValueError(f"its JSON is not an object but {reprlib.repr(value)}")
  return value


def _check_json(what: str, item: dict[str, Any]) -> None:
  try:
    if _parse(_dump({"": item}, indent=2)) != {"": item}:
      raise ValueError("it would not read back equal")
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(
      f"{what} cannot be saved ({error}); use text as keys and names, and text, finite "
      "Python numbers, booleans, None, lists and dicts as values"
    ) from error


def _storable(name: str, array: np.ndarray) -> np.ndarray:
  """The array as contiguous and little-endian, since safetensors writes raw memory."""
  dtype = np.asarray(array).dtype.newbyteorder("<")
  if dtype not in _DTYPES.values():
    raise ValueError(f"array '{name}' is {dtype}; convert it to {list(_DTYPES)}")
  return np.asarray(array, dtype, order="C")
