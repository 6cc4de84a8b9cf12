"""Fuzzes the reader of mini-ImageNet's caches with mutated pickles.

Question: is there a file that makes the reader crash, hang, take gigabytes or raise
anything but a ValueError?

    python -m benchmarks.fuzz_pickles --seconds=600

The seeds are small caches of both families in every protocol and as Python 2 wrote
them, and arrays in forms that a reader has to refuse. With atheris (`pip install
atheris`) the coverage of the reader's lines guides the mutations; without it the
mutator in this file keeps inputs that give a new error message. The work is done in a
child process that may use 2 GB more than at its start, and 20 seconds per file. The
exit code is 1 after a finding, and the file that caused it stays in `--out`;
`--reproduce=FILE` reads one file.
"""

import importlib.util
import io
import pickle
import pickletools
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from absl import app, flags

_SECONDS = flags.DEFINE_float("seconds", 60.0, "How long to try.", lower_bound=0)
_ENGINE = flags.DEFINE_enum(
  "engine",
  "auto",
  ["auto", "atheris", "mutation"],
  "Source of mutations; auto: see above.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the mutations.")
_OUT = flags.DEFINE_string("out", "fuzz_pickles", "Directory for seeds and findings.")
_REPRODUCE = flags.DEFINE_string("reproduce", None, "A file to read instead, once.")
_WORKER = flags.DEFINE_string("worker", None, "Used by this program for its child.")

_ROOT = Path(__file__).parents[1]
_SIZE = 8
_MEMORY = 2 * 2**30
_SECONDS_PER_FILE = 20
_MAX_LENGTH = 4096
_INTERESTING = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


class _Python2Pickler(pickle._Pickler):
  """Writes text and bytes alike as Python 2's byte strings, which have no encoding."""

  write: Any
  memoize: Any
  dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

  def _save_string(self, value: str | bytes) -> None:
    data = value.encode("latin1", "replace") if isinstance(value, str) else value
    self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
    self.memoize(value)

  dispatch[str] = dispatch[bytes] = _save_string


class _Call:
  """Pickles as a call, and perhaps a state for its result."""

  def __init__(self, *call: Any):
    self._call = call

  def __reduce__(self) -> tuple:
    return self._call


def contents() -> list[Any]:
  """Caches of both families, and objects that resemble one."""
  images = np.random.default_rng(0).integers(0, 256, (3, _SIZE, _SIZE, 3), np.uint8)
  few = images[:, :1, :1]
  state = (3, "|", None, None, None, 1, 0, 0)  # numpy divides by the alignment
  return [
    {"image_data": images, "class_dict": {"n1": [0, 2], "n2": [1]}},
    {"data": images, "labels": [5, 7, 5], "catname2label": {"n1": 5, "n2": 7}},
    {"data": images, "labels": np.arange(3), "label2catname": {5: "n1"}},
    {"image_data": few, "class_dict": {"n1": np.array([0], ">i2"), "n2": (1,)}},
    {"image_data": np.asfortranarray(few), "class_dict": {"n1": [np.int64(0)]}},
    {"data": np.zeros((0, _SIZE, _SIZE, 3), np.uint8), "labels": []},
    [np.array(["a", "bc"]), np.array([b"a"]), np.array([True]), np.float32(0.5)],
    [None, True, 1.5, -1, 2**40, "\u20ac", b"\xff", (), {}, [[[]]]],
    np.array([None]),
    np.zeros(1, "i4,f8"),
    _Call(np.dtype, ("S1", False, True), state),
    _Call(np.ndarray, ((2,),)),
    _Call(print, ("a program",)),
  ]


def make_seeds() -> list[bytes]:
  """The contents in every form that a pickle can have."""
  seeds = []
  for content in contents():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
      data = pickle.dumps(content, protocol)
      seeds += [data, pickletools.optimize(data).replace(b"numpy._core", b"numpy.core")]
    buffer = io.BytesIO()
    _Python2Pickler(buffer, 2).dump(content)
    seeds.append(buffer.getvalue().replace(b"numpy._core", b"numpy.core"))
  return seeds


def make_tokens() -> list[bytes]:
  """Instructions and the words that follow them."""
  names = ["numpy\ndtype", "numpy\nndarray", "_codecs\nencode", "__builtin__\nbytes"]
  for name in (
    "multiarray\n_reconstruct",
    "multiarray\nscalar",
    "numeric\n_frombuffer",
  ):
    names.append(f"numpy.core.{name}")
  words = ("image_data", "class_dict", "data", "labels", "catname2label", "latin1")
  dtypes = ("u1", "i8", "f4", "b1", "S1", "U1", "O8", "V8")
  tokens = [f"c{name}\n".encode() for name in names]
  tokens += [b"U" + bytes([len(word)]) + word.encode() for word in (*words, *dtypes)]
  tokens += [code.code.encode("latin1") for code in pickletools.opcodes]
  tokens += [
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
    b"\x85R",
    b"tR",
  ]
  return tokens


def make_check(path: Path) -> Callable[[bytes], str]:
  """Returns a function that runs the reader on bytes, through a file at `path`.

  It returns the outcome as text, and raises any error except ValueError.
  """
  from jsharp.data import _pickles

  def check(data: bytes) -> str:
    path.write_bytes(data)
    try:
      arrays = _pickles.class_arrays(path, _SIZE)
    except ValueError as error:
      if str(path) not in str(error):
        raise RuntimeError(f"an error that does not name the file: {error}") from error
      return str(error)
    if any(images.shape[1:] != (_SIZE, _SIZE, 3) for images in arrays.values()):
      raise RuntimeError("images of another shape")
    return f"{len(arrays)} classes"

  return check


def mutate(
  data: bytes, choose: random.Random, corpus: list[bytes], tokens: list[bytes]
):
  """Returns the data with one to eight changes."""
  changed = bytearray(data)
  for _ in range(1 << choose.randrange(4)):
    at = choose.randrange(len(changed) + 1)
    kind = choose.randrange(7)
    if kind == 0 and changed:
      changed[at - 1] ^= 1 << choose.randrange(8)
    elif kind == 1 and changed:
      changed[at - 1] = choose.randrange(256)
    elif kind == 2:
      changed[at:at] = choose.choice(tokens)
    elif kind == 3:
      del changed[at : at + choose.randrange(1, 17)]
    elif kind == 4:
      start = choose.randrange(len(changed) + 1)
      changed[at:at] = changed[start : start + choose.randrange(1, 65)]
    elif kind == 5:
      number = choose.choice(_INTERESTING)
      width = choose.choice([1, 2, 4, 8])
      changed[at : at + width] = number.to_bytes(8, "little")[:width]
    else:
      other = choose.choice(corpus)
      start = choose.randrange(len(other) + 1)
      changed[at:] = other[start:]
  return bytes(changed[:_MAX_LENGTH])


def run_mutation(check: Callable[[bytes], str], seeds: list[bytes]) -> None:
  """Mutates for `--seconds`; inputs with a new outcome are mutated further."""
  choose, tokens = random.Random(_SEED.value), make_tokens()
  corpus, outcomes = list(seeds), set()
  end = time.monotonic() + _SECONDS.value
  count = 0
  while count < len(seeds) or time.monotonic() < end:
    new = count >= len(seeds)
    data = mutate(choose.choice(corpus), choose, seeds, tokens) if new else seeds[count]
    signal.alarm(_SECONDS_PER_FILE)
    try:
      outcome = re.sub(r"\d+|'.*'", "0", check(data))
    finally:
      signal.alarm(0)
    if outcome not in outcomes:
      outcomes.add(outcome)
      corpus.append(data)
    count += 1
  print(f"Done {count} runs, {len(outcomes)} outcomes", file=sys.stderr)


def run_atheris(check: Callable[[bytes], str], out: Path) -> None:
  """Lets libFuzzer mutate for `--seconds`; does not return."""
  import atheris

  words = (
    b'"' + b"".join(b"\\x%02x" % byte for byte in t) + b'"' for t in make_tokens()
  )
  (out / "tokens.txt").write_bytes(b"\n".join(words) + b"\n")
  arguments = [
    f"-max_total_time={max(1, round(_SECONDS.value))}",
    f"-artifact_prefix={out / 'finding-'}",
    f"-dict={out / 'tokens.txt'}",
    f"-timeout={_SECONDS_PER_FILE}",
    f"-max_len={_MAX_LENGTH}",
    f"-seed={_SEED.value + 1}",
    "-rss_limit_mb=0",
    "-print_final_stats=1",
    str(out / "corpus"),
    str(out / "seeds"),
  ]
  atheris.Setup([sys.argv[0], *arguments], lambda data: check(data) and None)
  atheris.Fuzz()


def work(engine: str, out: Path, current: Path) -> None:
  """The work of the child process; it writes each input to the file `current`."""
  if engine == "atheris":
    import atheris

    with atheris.instrument_imports(include=["jsharp.data"]):
      check = make_check(current)
  else:
    check = make_check(current)
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  limit = pages * resource.getpagesize() + _MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  if engine == "atheris":
    run_atheris(check, out)
  else:
    run_mutation(
      check, [path.read_bytes() for path in sorted((out / "seeds").iterdir())]
    )


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  out = Path(_OUT.value).resolve()
  if _REPRODUCE.value is not None:
    with tempfile.TemporaryDirectory() as temporary:
      check = make_check(Path(temporary) / "file.pkl")
      print(check(Path(_REPRODUCE.value).read_bytes()))
    return
  engine = _ENGINE.value
  if engine == "auto":
    engine = "atheris" if importlib.util.find_spec("atheris") else "mutation"
  if _WORKER.value is not None:
    work(engine, out, Path(_WORKER.value))
    return
  for folder in (out / "seeds", out / "corpus"):
    folder.mkdir(parents=True, exist_ok=True)
  for number, seed in enumerate(make_seeds()):
    (out / "seeds" / f"{number:03}").write_bytes(seed)
  print(f"{engine}, {_SECONDS.value:g} seconds, in {out}", flush=True)
  memory = Path("/dev/shm")
  with (
    (out / "log.txt").open("w+") as log,
    tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary,
  ):
    current = Path(temporary) / "current.pkl"
    command = [sys.executable, "-m", "benchmarks.fuzz_pickles", f"--worker={current}"]
    command += [f"--engine={engine}", f"--out={out}", f"--seed={_SEED.value}"]
    command += [f"--seconds={_SECONDS.value}"]
    code = subprocess.run(command, cwd=_ROOT, stdout=log, stderr=log).returncode
    if code and current.exists():
      shutil.copy(current, out / "finding.pkl")
    log.seek(0)
    lines = log.read().splitlines()
  done = [line for line in lines if line.startswith(("Done ", "stat::number_of_exec"))]
  print("\n".join(done or lines[-20:]))
  if code:
    print(f"Exit code {code}: see finding.pkl and log.txt in {out}")
    sys.exit(1)
  print("Nothing but data and ValueError.")


if __name__ == "__main__":
  app.run(main)
