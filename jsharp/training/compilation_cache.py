"""Compiled programs that are kept between processes."""

import os
import pathlib
import stat

import jax


def use_compilation_cache(directory: str) -> None:
  """Keeps compiled programs in a directory that is this user's alone.

  Args:
    directory: created if needed; empty for no cache.

  Raises:
    OSError: if it cannot be created.
    ValueError: if it belongs to someone else or others can write to it: they could
      put native code there.

  Example:
    >>> use_compilation_cache("")
  """
  if not directory:
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
