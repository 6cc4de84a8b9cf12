"""Compiled programs that are kept between processes, each checked before its use."""

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
  """Keeps compiled programs in a directory that is this user's alone.

  Every program is kept with a digest, which is compared before the program is used.
  One that is damaged is removed and compiled anew.

  Args:
    directory: created if needed; empty for no cache, whatever
      JAX_COMPILATION_CACHE_DIR says.

  Raises:
    OSError: if it cannot be created.
    ValueError: if it belongs to someone else or others can write to it: they could
      put native code there.

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
      f"--compilation_cache_dir={path} can be written to by others, and what lies "
      "there is run as native code; chmod 700 it, choose another one or pass "
      "--compilation_cache_dir= for none"
    )
  jax.config.update("jax_compilation_cache_dir", str(path))
  # XLA's own files for GPUs would lie beside the programs, read without a digest.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
  _check_what_is_kept(str(path))


def _check_what_is_kept(directory: str) -> None:
  """Puts a cache that compares digests in the place of JAX's own."""
  # JAX has no public way to do so. Where it has moved its own, there is no cache.
  try:
    from jax._src import compilation_cache

    of_jax = compilation_cache.get_file_cache
  except (ImportError, AttributeError):
    logging.warning("this JAX keeps no programs that can be checked; none are kept")
    jax.config.update("jax_compilation_cache_dir", None)
    return

  def get_file_cache(path: str) -> Any:
    return (CheckedCache(path), path) if path in _checked else of_jax(path)

  if not _checked:
    compilation_cache.get_file_cache = get_file_cache
  _checked.add(directory)


class CheckedCache:
  """Programs by their keys, each in a file with its SHA-256 in front.

  It has the methods of `jax._src.compilation_cache_interface.CacheInterface`.

  Args:
    path: the directory, which exists.

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
    """What was put under a key; None if nothing, or if it is damaged."""
    try:
      content = read_bytes(self._file(key), most=_MAX_BYTES)
    except FileNotFoundError:
      return None
    except (OSError, FileError) as error:
      logging.warning("a compiled program is compiled anew: %s", error)
      return None
    digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(program).digest() == digest:
      return program
    logging.warning("%s is damaged; it is compiled anew", self._file(key))
    return None

  def put(self, key: str, value: bytes) -> None:
    """Keeps a program; what was there before is replaced."""
    own = self._path / f"{key}.{os.getpid()}"  # Several processes may write the same.
    try:
      write_atomically(own, hashlib.sha256(value).digest() + value)
      os.replace(own, self._file(key))
      (self._path / f"{key}-cache").unlink(missing_ok=True)  # of earlier versions
    except OSError as error:  # A full disk costs another compilation, no run.
      logging.warning("a compiled program is not kept: %s", error)
