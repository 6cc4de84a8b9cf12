"""Counts the effects of kills, signals and damaged files on a run.

  python -m benchmarks.faults --kills=100 --terms=50 --flips=500 --truncations=50

A run of `experiments.sinusoid` is killed, or asked to stop, at random instants and
restarted until it ends. Its checkpoints and records must equal those of an
uninterrupted run bit for bit. Then a random bit is flipped in, or the end is cut off,
each kind of file that is read again: the records, checkpoints and learner of a finished
run, a prepared dataset, the list of an archive's members, compiled programs. After each
such damage everything is read again. Faults are

- silent: something different was read or trained without an error;
- tracebacks: an error that does not explain the damage, or an exit by another signal;
- hangs: no result within `--patience` seconds.

The exit code is 1 unless all three are 0.
"""

import collections
import contextlib
import io
import itertools
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from absl import app, flags, logging
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import jsharp
from jsharp import _leaf_archive, training
from jsharp._files import read_table
from jsharp.data import _tar_index, image_folder
from jsharp.evaluation import read_column
from jsharp.learners import to_json
from jsharp.options import to_json as options_to_json
from jsharp.training import RunDirectory, read_run

_KILLS = flags.DEFINE_integer("kills", 100, "SIGKILLs.")
_TERMS = flags.DEFINE_integer("terms", 50, "SIGTERMs.")
_FLIPS = flags.DEFINE_integer("flips", 500, "Flipped bits, each in a copy of the run.")
_CUTS = flags.DEFINE_integer("truncations", 50, "Files cut short.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of instants, files, bits and places.")
_STEPS = flags.DEFINE_integer("steps", 3000, "Meta-steps of the run.")
_PATIENCE = flags.DEFINE_float("patience", 300.0, "Seconds before it is a hang.")

_ROOT = pathlib.Path(__file__).parents[1]
_TIMES = ("wall_time", "tasks_per_second")
_READ_BACK = (
  *("result.json", "run.json", "description.json", "metrics.jsonl"),
  *("test_tasks.csv", "config.json", "model.safetensors"),
)
_PROGRAMS = 3
_FAULTS = ("silent", "tracebacks", "hangs")

Counts = collections.Counter[str]


def main(arguments: list[str]) -> int:
  """Injects, counts and prints; returns the exit code."""
  del arguments
  signal.signal(signal.SIGALRM, _ring)
  logging.set_verbosity(logging.WARNING)
  generator = random.Random(_SEED.value)
  counts: list[Counts] = []
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    started = time.monotonic()
    code, error = _finish(_start(root / "whole", root))
    if code:
      sys.exit(f"the uninterrupted run ended with {code}: {error}")
    seconds = time.monotonic() - started
    for flag, signum in ((_KILLS, signal.SIGKILL), (_TERMS, signal.SIGTERM)):
      counts.append(_interrupted(root, flag.value, signum, generator, seconds))
      print(flag.name, dict(counts[-1]), flush=True)
    stores = _stores(root)
    for flag, damage in ((_FLIPS, _flipped), (_CUTS, _cut)):
      for name, count in _damaged(stores, flag.value, damage, generator).items():
        counts.append(count)
        print(flag.name, name, dict(count), flush=True)
  return int(any(count[fault] for count in counts for fault in _FAULTS))


def _start(run: pathlib.Path, root: pathlib.Path) -> subprocess.Popen[str]:
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.sinusoid", f"--run_dir={run}"),
      *(f"--num_steps={_STEPS.value}", "--eval_every=500", "--checkpoint_seconds=0.2"),
      *("--val_tasks=20", "--eval_tasks=20", "--num_eval_inner_steps=2"),
      *("--num_devices=1", f"--compilation_cache_dir={root / 'cache'}"),
    ],
    cwd=_ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process: subprocess.Popen[str]) -> tuple[int | None, str]:
  """Exit code and messages; None for a process that hangs."""
  try:
    _, error = process.communicate(timeout=_PATIENCE.value)
  except subprocess.TimeoutExpired:
    process.kill()
    return None, process.communicate()[1]
  return process.returncode, error


def _interrupted(
  root: pathlib.Path, number: int, signum: int, generator: random.Random, seconds: float
) -> Counts:
  """Interrupts runs until the requested number of interruptions has taken effect."""
  count: Counts = collections.Counter(dict.fromkeys(_FAULTS, 0))
  run = root / "cut"
  while count["landed"] < number or run.exists():
    process = _start(run, root)
    if count["landed"] < number:
      time.sleep(generator.uniform(0.0, 1.2 * seconds))
      count["landed"] += process.poll() is None
      process.send_signal(signum)
    code, error = _finish(process)
    count["hangs"] += code is None
    if "Traceback" in error or code not in (0, None, -signum, 128 + signum):
      count["tracebacks"] += 1
      print(f"exit code {code}: {error}", file=sys.stderr)
    if code == 0:
      count["runs"] += 1
      same = _trained(run) == _trained(root / "whole")
      count["silent"] += not same
      shutil.rmtree(run)
  return count


def _trained(run: pathlib.Path) -> Any:
  """The bits of the checkpoints that a run ends with, and its records without times."""
  last = f"step_{_STEPS.value:08d}.npz"
  bits = {
    name: content[1]
    for name, content in _checkpoints(run).items()
    if name == last or name.startswith("best_")
  }
  records = [{k: v for k, v in r.items() if k not in _TIMES} for r in _metrics(run)]
  return bits, records


def _flipped(content: bytes, generator: random.Random) -> bytes:
  place = generator.randrange(len(content))
  changed = content[place] ^ 1 << generator.randrange(8)
  return content[:place] + bytes([changed]) + content[place + 1 :]


def _cut(content: bytes, generator: random.Random) -> bytes:
  return content[: generator.randrange(len(content))]


class _Store(NamedTuple):
  """Files that are read back.

  Attributes:
    directory: the directory of the files and of all that is read with them.
    files: the files to damage.
    readers: functions that read a copy of the directory.
  """

  directory: pathlib.Path
  files: list[pathlib.Path]
  readers: tuple[Callable[[pathlib.Path], Any], ...]


def _stores(root: pathlib.Path) -> dict[str, _Store]:
  """Everything that jsharp keeps and reads again, made below `root`."""
  whole = root / "whole"
  files = [whole / name for name in _READ_BACK]
  files += sorted((whole / "checkpoints").glob("*.npz"))
  readers = (_result, _table, _description, _learner, _metrics, _checkpoints)
  stores = {"run": _Store(whole, files, readers)}
  for name, make, read, pattern in (
    ("prepared", _make_images, _prepared_images, "tfds/**/*"),
    ("index", _make_archive, _members, "tfds/index-*.npz"),
    ("programs", lambda directory: None, _programs, "*-checked"),
  ):
    directory = root / name
    directory.mkdir(mode=0o700)
    make(directory)
    read(directory)
    files = [path for path in sorted(directory.glob(pattern)) if path.is_file()]
    assert files, name
    stores[name] = _Store(directory, files, (read,))
  return stores


def _damaged(
  stores: dict[str, _Store],
  number: int,
  damage: Callable[[bytes, random.Random], bytes],
  generator: random.Random,
) -> dict[str, Counts]:
  """Damages one file at a time, all kinds equally often, and reads everything back."""
  counts: dict[str, Counts] = {}
  for turn, (name, store) in enumerate(stores.items()):
    count = counts[name] = collections.Counter(dict.fromkeys(_FAULTS, 0))
    expected, told = _read_back(store, store.directory, count)
    assert not told, told
    for _ in range(turn, number, len(stores)):
      original = generator.choice(store.files)
      with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory, "copy")
        shutil.copytree(store.directory, copy)
        path = copy / original.relative_to(store.directory)
        path.write_bytes(damage(path.read_bytes(), generator))
        found, told = _read_back(store, copy, count)
      same = all(
        found[what] == value for what, value in expected.items() if what in found
      )
      count["told"] += bool(told)
      count["no effect"] += not told and same
      count["silent"] += not told and not same
  return counts


def _read_back(
  store: _Store, directory: pathlib.Path, count: Counts
) -> tuple[dict[str, Any], list[str]]:
  """The results of all readers, and the messages of those that fail."""
  found: dict[str, Any] = {}
  told: list[str] = []
  signal.setitimer(signal.ITIMER_REAL, _PATIENCE.value)
  with mock.patch("absl.logging.warning", lambda text, *_: told.append(text)):
    for reader in store.readers:
      try:
        found[reader.__name__] = reader(directory)
      except TimeoutError:
        count["hangs"] += 1
      except (ValueError, OSError) as error:
        told.append(str(error))
      except Exception as error:
        count["tracebacks"] += 1
        print(f"{reader.__name__}: {error!r}", file=sys.stderr)
  signal.setitimer(signal.ITIMER_REAL, 0)
  return found, told


def _ring(number: int, frame: object) -> None:
  raise TimeoutError("it hangs")


def _result(run: pathlib.Path) -> Any:
  return read_table(run / "result.json")


def _table(run: pathlib.Path) -> Any:
  digest = read_table(run / "result.json").get("test_tasks_sha256")
  return read_column(run / "test_tasks.csv", None, sha256=digest).tolist()


def _description(run: pathlib.Path) -> Any:
  read = read_run(run)
  return options_to_json(read.description), read.fingerprints, read.best_step


def _learner(run: pathlib.Path) -> Any:
  learner = jsharp.load(run)
  return to_json(learner.description), _bits(learner.params)


def _metrics(run: pathlib.Path) -> Any:
  identity = read_table(run / "run.json")["identity"]
  with RunDirectory.open(run, identity=identity) as directory:
    return directory.read_metrics()


def _checkpoints(run: pathlib.Path) -> Any:
  found = {}
  for path in sorted((run / "checkpoints").glob("*.npz")):
    with path.open("rb") as file:
      try:
        content = _leaf_archive.read(file, int(path.stem.partition("_")[2]))
      except Exception as error:  # All of them mean that it is damaged.
        raise ValueError(f"{path} is damaged") from error
    found[path.name] = content[0]["extra"], _bits(content[1])
  return found


def _make_images(directory: pathlib.Path) -> None:
  generator = np.random.default_rng(0)
  with zipfile.ZipFile(directory / "images.zip", "w") as archive:
    for split, number in itertools.product(("train", "val", "test"), range(6)):
      pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
      encoded = io.BytesIO()
      Image.fromarray(pixels).save(encoded, "PNG")
      name = f"{split}/{split}{number // 2}/{number}.png"
      archive.writestr(name, encoded.getvalue())


def _prepared_images(directory: pathlib.Path) -> Any:
  with contextlib.redirect_stderr(io.StringIO()):
    found = image_folder.load(directory, size=8)
  return {
    split: (data.class_names, data.counts.tolist(), _bits(data.images))
    for split, data in found.items()
  }


def _make_archive(directory: pathlib.Path) -> None:
  with tarfile.open(directory / "all.tar", "w") as archive:
    for number in range(20):
      info = tarfile.TarInfo(f"{number}.JPEG")
      info.size = 100 + number
      archive.addfile(info, io.BytesIO(bytes(info.size)))


def _members(directory: pathlib.Path) -> Any:
  with contextlib.redirect_stderr(io.StringIO()):
    index = _tar_index.index(directory / "all.tar", nested=False)
  return [index.names[number] for number in range(20)], _bits(
    (index.starts, index.sizes)
  )


def _programs(directory: pathlib.Path) -> Any:
  """Results of some programs, compiled or taken from the directory."""
  compilation_cache.reset_cache()
  jax.clear_caches()
  training.use_compilation_cache(str(directory))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  x = np.linspace(-1, 1, 16, dtype=np.float32)
  found = [
    jax.jit(lambda x, n=number: jax.numpy.tanh(n * x) @ x)(x)
    for number in range(_PROGRAMS)
  ]
  training.use_compilation_cache("")
  compilation_cache.reset_cache()
  return _bits(found)


def _bits(tree: Any) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


if __name__ == "__main__":
  app.run(main)
