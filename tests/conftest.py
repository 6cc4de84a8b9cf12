"""Strict numerics for every test, set before JAX starts."""

import gc
import importlib.metadata
import itertools
import os
import pathlib
import platform
import sys
from unittest import mock

# Several virtual CPU devices on few cores deadlock with a smaller thread pool.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Most of the suite's time is compilation, half of which goes into optimising machine
# code for programs that then run once. `.ci/run` repeats the tests of numerics without
# this; any other value of XLA_FLAGS, the empty one too, is left alone. Of jaxlib
# 0.10.0's two ways to emit a fusion the older one compiles in half the time; later
# versions have one way, and stop at a flag that they do not know.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  * (importlib.metadata.version("jaxlib") == "0.10.0"),
)

# The longer ones are kept between runs of the suite, by version of Python: to write
# the many short ones would cost a first run more than it saves.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".xla_cache" / platform.python_version()),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
  """Keeps the garbage collector off what was imported, which it finds alive anyway.

  Tracing makes so many small objects that walking through all of JAX every few hundred
  of them was a fifth of its time.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)
  if sys.platform == "linux":
    _let_xla_finish_fusions()


def _let_xla_finish_fusions():
  """Lowers this thread's priority below that of XLA's threads.

  This thread hands fusions to them one by one, and makes another MLIR context, which is
  costly, for each that waits to be compiled. With one core to a process all would wait.
  On Linux threads have priorities of their own; those of XLA exist after a compilation.
  """
  jax.block_until_ready(jax.jit(lambda x: jax.numpy.sin(x) + 1)(jax.numpy.ones(2)))
  os.nice(10)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Leaves the tests of a file to one process, as they share what is compiled.

  Files go in the order of collection, so the short examples of docstrings come last and
  all processes end together. By number of tests the long runs, one or two to a file,
  would come last.
  """
  if config.getvalue("dist") == "load":
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
  return None


_MOST_MAPS = 30_000  # Linux lets a process have 65,530; XLA dies of one more.
_tests_run = itertools.count(1)


def pytest_runtest_teardown():
  """Drops compiled programs before they use up a process's memory maps."""
  if next(_tests_run) % 50 == 0 and os.path.exists("/proc/self/maps"):
    with open("/proc/self/maps", "rb") as maps:
      num_maps = sum(1 for _ in maps)
    if num_maps > _MOST_MAPS:
      jax.clear_caches()
      gc.collect()


@pytest.fixture(autouse=True)
def _same_environment():
  """Gives no test what a program asked of XLA in another one, by the environment."""
  with mock.patch.dict(os.environ):
    yield
