"""A cache of compiled programs on disk, each verified before use."""

import hashlib
import os
import pathlib
import stat
from typing import Any

import jax
from absl import logging

from jsharp._files import FileError, read_bytes, write_atomically

_DIGEST_BYTES = 32
_MAX_BYTES = 2**32
_checked: set[str] = set()


def use_compilation_cache(directory: str) -> None:
  """Caches compiled programs in a directory that is private to this user.

  Every program is stored with a digest, which is verified before the program is used. A
  damaged program is removed and compiled again.

  Args:
    directory: created if needed; empty for no cache, whatever
      JAX_COMPILATION_CACHE_DIR says.

  Raises:
    OSError: if it cannot be created.
    ValueError: if it belongs to another user or others can write to it, since they
      could put native code there.

  Example:
    >>> before = jax.config.jax_compilation_cache_dir
    >>> use_compilation_cache("")
    >>> print(jax.config.jax_compilation_cache_dir)
    None
    >>> jax.config.update("jax_compilation_cache_dir", before)
  """
  if not directory:
    jax.config.update("jax_compilation_cache_dir", None)
    return
  path = pathlib.Path(directory).expanduser()
  path.mkdir(mode=0o700, parents=True, exist_ok=True)
  status = path.stat()
  if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise ValueError(
      f"--compilation_cache_dir={path} can be written to by others, and its files are "
      "run as native code; chmod 700 it, choose another directory or pass "
      "--compilation_cache_dir= for no cache"
    )
  jax.config.update("jax_compilation_cache_dir", str(path))
  # XLA would store its own GPU files with the programs, and read them without a digest.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
  _check_what_is_kept(str(path))


def _check_what_is_kept(directory: str) -> None:
  """Replaces JAX's cache by one that verifies digests."""
  # JAX has no public API for this. If its internals have moved, there is no cache.
  try:
    from jax._src import compilation_cache

    of_jax = compilation_cache.get_file_cache
  except (ImportError, AttributeError):
    logging.warning("compiled programs of this JAX cannot be verified; none are cached")
    jax.config.update("jax_compilation_cache_dir", None)
    return

  def get_file_cache(path: str) -> Any:
    return (CheckedCache(path), path) if path in _checked else of_jax(path)

  if not _checked:
    compilation_cache.get_file_cache = get_file_cache
  _checked.add(directory)


class CheckedCache:
  """Programs by key, each in a file that starts with its SHA-256.

  It has the methods of `jax._src.compilation_cache_interface.CacheInterface`.

  Args:
    path: the directory, which must exist.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   cache = CheckedCache(directory)
    ...   cache.put("key", b"program")
    ...   cache.get("key"), cache.get("other")
    (b'program', None)
  """

  def __init__(self, path: str):
    self._path = pathlib.Path(path)

  def _file(self, key: str) -> pathlib.Path:
    return self._path / f"{key}-checked"

  def get(self, key: str) -> bytes | None:
    """The program of a key; None if there is none, or if it is damaged."""
    try:
      content = read_bytes(self._file(key), most=_MAX_BYTES)
    except FileNotFoundError:
      return None
    except (OSError, FileError) as error:
      logging.warning("a cached program is compiled again: %s", error)
      return None
    digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(program).digest() == digest:
      return program
    logging.warning("%s is damaged; it is compiled again", self._file(key))
    return None

  def put(self, key: str, value: bytes) -> None:
    """Stores a program, replacing an earlier one."""
    own = self._path / f"{key}.{os.getpid()}"  # Several processes may write the same.
    try:
      write_atomically(own, hashlib.sha256(value).digest() + value)
      os.replace(own, self._file(key))
      (self._path / f"{key}-cache").unlink(missing_ok=True)  # From earlier versions.
    except OSError as error:  # A full disk costs another compilation, not the run.
      logging.warning("a compiled program is not cached: %s", error)
