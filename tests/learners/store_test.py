"""Saved learners: every value comes back, every damage is named, no kill mixes two."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import ml_dtypes
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

import jsharp
from jsharp.learners._store import CONFIG, NAMES, WEIGHTS, holds, read, write

ROOT = pathlib.Path(__file__).parents[2]
DTYPES = (
  *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
  *("float16", "float32", "float64", "complex64"),
)
SHAPES = ((), (0,), (3, 0, 2), (1,), (7,), (2, 3), (2, 1, 3, 2))

# The two learners of the kills. Their sizes differ; no value of one is in the other.
LEARNERS = {
  kind: (
    {"kind": kind, "rate": rate, "layers": [64] * ways, "label": "é" * ways},
    {
      "conv/w": np.full((ways, 300), rate, np.float32),
      "b": np.full((3,), ways, np.int64),
    },
  )
  for kind, rate, ways in (("A", 0.25, 5), ("B", 0.5, 20))
}

WRITER = """
import itertools, os, signal, sys, time
from tests.learners.store_test import LEARNERS, write

os.fsync = lambda descriptor: None  # A kill needs no disk, which is slow.
for line in sys.stdin:
  child = os.fork()
  if not child:
    for kind in itertools.cycle("AB"):
      write(sys.argv[1], *LEARNERS[kind])
  time.sleep(float(line))
  os.kill(child, signal.SIGKILL)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def _bits(array: np.ndarray):
  return array.dtype.name, array.shape, array.tobytes()


def _same(learner, other) -> bool:
  (config, arrays), (other_config, other_arrays) = learner, other
  return (
    json.dumps(config) == json.dumps(other_config)
    and list(arrays) == list(other_arrays)
    and all(_bits(arrays[name]) == _bits(other_arrays[name]) for name in arrays)
  )


class _Folder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / "learner"

  def _names(self):
    return sorted(os.listdir(self.path))

  def _kind(self) -> str:
    """Which of the two learners is read; anything else fails."""
    learner = read(self.path)
    kind = learner[0]["kind"]
    self.assertTrue(_same(learner, LEARNERS[kind]))
    return kind

  def _refused(self, *words, error=ValueError):
    with self.assertRaises(error) as caught:
      read(self.path)
    for word in words:
      self.assertIn(word, str(caught.exception))
    return str(caught.exception)


class RoundTripTest(_Folder):
  @parameterized.parameters(*DTYPES, "bfloat16")
  def test_every_dtype_and_shape_bit_for_bit(self, name):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    generator = np.random.default_rng(0)
    arrays = {}
    for shape in SHAPES:
      raw = generator.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
      if name == "bool":
        raw %= 2
      arrays[f"{name}/{shape}"] = np.ndarray(shape, dtype, raw.tobytes())  # NaNs too
    write(self.path, {}, arrays)
    config, found = read(self.path)
    self.assertTrue(_same((config, found), ({}, arrays)))
    for array in found.values():
      self.assertTrue(array.flags.writeable and array.flags.c_contiguous)
      self.assertTrue(array.dtype.isnative)

  def test_any_memory_layout_and_byte_order(self):
    base = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    half = base.astype(ml_dtypes.bfloat16)
    arrays = {
      "transposed": base.T,
      "fortran": np.asfortranarray(base[0]),
      "reversed": base[::-1, :, ::-2],
      "broadcast": np.broadcast_to(base[0, 0], (5, 4)),
      "big": base.astype(">f4"),
      "big and transposed": np.arange(6).astype(">i8").reshape(2, 3).T,
      "big complex": np.array([1 + 2j], ">c8"),
      "big scalar": np.array(7, ">u2"),
      "bfloat16": half.T[1:, ::2],
    }
    write(self.path, {}, arrays)
    _, found = read(self.path)
    self.assertEqual(list(found), list(arrays))
    for name, array in arrays.items():
      np.testing.assert_array_equal(found[name], array)
      self.assertEqual(found[name].dtype, array.dtype.newbyteorder("="))

  def test_configs(self):
    config = {
      "z": 1,
      "a": [1.5, -0.0, 1e300, 5e-324, None, True, {"ü": "\x00\n\u2028", "": []}],
      "integer": 2**200,
      "float": 3.0,
    }
    write(self.path, config, {})
    found, arrays = read(self.path)
    self.assertEqual((repr(found), arrays), (repr(config), {}))

  def test_config_is_for_people_too(self):
    write(self.path, {"ways": 5, "name": "Omniglot é", "a": [1]}, {})
    digest = hashlib.sha256((self.path / WEIGHTS).read_bytes()).hexdigest()
    expected = (
      '{\n  "ways": 5,\n  "name": "Omniglot é",\n  "a": [\n    1\n  ],\n'
      '  "jsharp": {\n    "format": 1,\n    "version": "'
      f'{jsharp.__version__}",\n    "sha256": "{digest}"\n  }}\n}}\n'
    )
    self.assertEqual((self.path / CONFIG).read_text(encoding="utf-8"), expected)

  def test_a_foreign_reader_reads_names_values_and_digests(self):
    arrays = LEARNERS["A"][1] | {"scalar": np.float16(2), "t": np.ones((2, 3)).T}
    write(self.path, LEARNERS["A"][0], arrays)
    with safetensors.safe_open(self.path / WEIGHTS, framework="np") as file:
      self.assertEqual(set(file.keys()), set(arrays))
      for name, array in arrays.items():
        np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)
      record = json.loads(file.metadata()["jsharp"])
    self.assertEqual((record["format"], record["config"]), (1, LEARNERS["A"][0]))
    digest = hashlib.sha256(b"int64[3]" + arrays["b"].tobytes()).hexdigest()
    self.assertEqual(record["arrays"]["b"], digest)

  def test_the_same_learner_gives_the_same_bytes_whatever_was_there(self):
    contents = set()
    for kind in "ABAA":
      write(self.path, *LEARNERS[kind])
      if kind == "A":
        contents.add(tuple((self.path / name).read_bytes() for name in NAMES))
    self.assertLen(contents, 1)

  def test_holds(self):
    self.assertFalse(holds(self.path))
    write(self.path, *LEARNERS["A"])
    self.assertTrue(holds(self.path))
    for name in NAMES:
      other = self.path.with_name(name + " alone")
      other.mkdir()
      self.assertFalse(holds(other))
      shutil.copy(self.path / name, other)
      self.assertTrue(holds(str(other)))

  def test_other_files_of_the_directory_stay(self):
    self.path.mkdir()
    others = {"config.yaml": b"x", "best_1.npz": b"y", "other.tmp": b"z", "lock": b""}
    for name, content in others.items():
      (self.path / name).write_bytes(content)
    write(self.path, *LEARNERS["A"])
    self.assertEqual(self._names(), sorted([*others, *NAMES]))
    for name, content in others.items():
      self.assertEqual((self.path / name).read_bytes(), content)

  @parameterized.parameters(
    ({"rate": float("nan")}, r"config\['rate'\] = nan"),
    ({"a": {"b": [float("inf")]}}, r"config\['a'\]"),
    ({"ways": (1, 2)}, r"config\['ways'\] = \(1, 2\)"),
    ({"a": [{1: 2}]}, r"config\['a'\] = .*text as keys"),
    ({1: 2}, r"config\[1\]"),
    ({"a": np.float32(1)}, r"config\['a'\]"),
    ({"a": "\ud800"}, r"config\['a'\]"),
    ({"jsharp": 1}, "rename key 'jsharp'"),
    ({"a": "x" * 2**20}, "config has .* bytes, but at most 1048576"),
    ({"a": eval("[" * 90 + "]" * 90), "b": {}}, None),
  )
  def test_what_a_config_cannot_hold(self, config, message):
    if message is None:
      write(self.path, config, {})
      self.assertEqual(read(self.path)[0], config)
      return
    with self.assertRaisesRegex(ValueError, message):
      write(self.path, config, {})
    self.assertFalse(self.path.exists())

  def test_a_config_too_deep_for_json(self):
    deep = []
    for _ in range(100_000):
      deep = [deep]
    with self.assertRaisesRegex(ValueError, r"config\['a'\] = \[\[.*recursion"):
      write(self.path, {"a": deep}, {})
    while deep:  # Freed from the outside, in steps.
      deep = deep[0]

  @parameterized.parameters(
    ("__metadata__", np.ones(1), "rename .*array '__metadata__'"),
    ("\ud800", np.ones(1), "array called"),
    (3, np.ones(1), "array called 3"),
    ("a", np.array([None]), "array 'a' is object; convert it"),
    ("a", np.array(["text"]), "array 'a' is <U4"),
    ("a", np.ones(1, complex), "array 'a' is complex128"),
    ("a", np.ones(1, np.longdouble), "array 'a' is"),
    ("a", np.ones(1, "i4,f4"), "array 'a' is"),
    ("a", np.ones(1, ml_dtypes.float8_e4m3fn), "array 'a' is float8_e4m3fn"),
    ("a", np.ones(1, "M8[s]"), "array 'a' is datetime64"),
    ("x" * 2**24, np.ones(1), "header has .* bytes, but at most 16777216"),
  )
  def test_what_an_array_cannot_be(self, name, array, message):
    with self.assertRaisesRegex(ValueError, message):
      write(self.path, {}, {name: array})
    self.assertFalse(self.path.exists())


class DamageTest(_Folder):
  def setUp(self):
    super().setUp()
    write(self.path, *LEARNERS["A"])
    self.contents = {name: (self.path / name).read_bytes() for name in NAMES}

  def _result_of(self, name, content, pending=False):
    """Reads with one file changed."""
    (self.path / name).write_bytes(content)
    try:
      learner = read(self.path)
    except (ValueError, OSError) as error:
      # The file that fails; where only the two together do, both are named.
      self.assertIn(str(self.path / name), str(error))
      return "refused"
    finally:
      (self.path / name).write_bytes(self.contents[name])
    return "right" if _same(learner, LEARNERS["A"]) else "silent"

  def _damages(self, name, flips, truncations):
    content, generator = self.contents[name], random.Random(name)
    header = 8 + int.from_bytes(self.contents[WEIGHTS][:8], "little")
    for i in range(flips):
      # Half of the flips of the weights are in the few bytes of the header.
      size = header if name == WEIGHTS and i % 2 else len(content)
      place = generator.randrange(8 * size)
      changed = bytearray(content)
      changed[place // 8] ^= 1 << place % 8
      yield bytes(changed)
    for size in (0, 1, 7, 8, 9, len(content) - 1):
      yield content[:size]
    for _ in range(truncations - 6):
      yield content[: generator.randrange(len(content))]

  @parameterized.parameters(*NAMES)
  def test_every_flip_and_truncation_is_refused(self, name):
    damages = list(self._damages(name, 300, 80))
    outcomes = [self._result_of(name, content) for content in damages]
    self.assertEqual(outcomes, ["refused"] * 380)

  def test_after_a_kill_the_weights_alone_detect_every_flip(self):
    (self.path / "config.json.tmp").touch()
    damages = list(self._damages(WEIGHTS, 300, 80))
    outcomes = [self._result_of(WEIGHTS, content) for content in damages]
    self.assertNotIn("silent", outcomes)
    # A flip in what is no value (the spaces behind the header) may go unnoticed.
    self.assertGreater(outcomes.count("refused"), 370)

  @parameterized.parameters(*NAMES)
  def test_arbitrary_bytes(self, name):
    generator = random.Random(0)
    contents = [generator.randbytes(generator.randrange(300)) for _ in range(60)]
    texts = [
      *(
        b"",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"{",
        b"\xff\xfe{\x00",
        b"\xef\xbb\xbf{}",
      ),
      *(b"[" * 200_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 5000 + b"}"),
      *(b'{"__metadata__":' + value + b"}" for value in (b"1", b"[]", b'{"jsharp":1}')),
      *(b'{"a":' + value + b"}" for value in (b"1", b"{}", b'{"data_offsets":[]}')),
      b'{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}',
      b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,1e999]}}',
      b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,"x"]}}',
    ]
    contents += texts + [len(text).to_bytes(8, "little") + text for text in texts]
    outcomes = {self._result_of(name, content) for content in contents}
    self.assertEqual(outcomes, {"refused"})

  def _with_record(self, **changes):
    """The weights with changed metadata, whose digest is right."""
    with safetensors.safe_open(self.path / WEIGHTS, framework="np") as file:
      record = json.loads(file.metadata()["jsharp"])
    del record["sha256"]
    record.update(changes)
    for key in [key for key, value in record.items() if value is ...]:
      del record[key]
    text = json.dumps(record, ensure_ascii=False)
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    text = json.dumps(record, ensure_ascii=False)
    return safetensors.numpy.save(LEARNERS["A"][1], {"jsharp": text})

  @parameterized.product(
    key=("config", "arrays", "version", "format"),
    value=(..., None, 1.5, "x", [], [1], {}, {"b": "x"}),
  )
  def test_metadata_of_the_wrong_kind(self, key, value):
    self.assertEqual(self._with_record(), self.contents[WEIGHTS])
    (self.path / "config.json.tmp").touch()
    (self.path / WEIGHTS).write_bytes(self._with_record(**{key: value}))
    if key == "version" and value is not ...:  # Any will do.
      self.assertEqual(self._kind(), "A")
    elif key == "config" and isinstance(value, dict):
      self.assertEqual(read(self.path)[0], value)
    else:
      self._refused(str(self.path / WEIGHTS))

  def test_the_damaged_array_is_named(self):
    content = bytearray(self.contents[WEIGHTS])
    with safetensors.safe_open(self.path / WEIGHTS, framework="np") as file:
      last = list(file.offset_keys())[-1]
    content[-1] ^= 1
    (self.path / WEIGHTS).write_bytes(content)
    self._refused(
      str(self.path / WEIGHTS), f"SHA-256 of array '{last}' differs", "copy"
    )

  def test_sizes_are_compared_before_anything_is_read(self):
    content = self.contents[WEIGHTS]
    (self.path / WEIGHTS).write_bytes(content + b"\0")
    self._refused(f"{len(content) + 1} bytes, but its header says {len(content)}")
    os.truncate(self.path / WEIGHTS, 2**40)  # 1 TiB of nothing
    self._refused(f"{2**40} bytes, but its header says {len(content)}")
    (self.path / WEIGHTS).write_bytes((2**24 + 1).to_bytes(8, "little") + content[8:])
    self._refused("header has 16777217 bytes, but at most 16777216")
    os.truncate(self.path / CONFIG, 2**20 + 1)
    self._refused(str(self.path / CONFIG), "1048577 bytes, but at most 1048576")

  @parameterized.parameters(
    ('"kind": "A"', '"kind": "C"', "does not match"),
    (f'"version": "{jsharp.__version__}"', '"version": "9.9"', "does not match"),
    ('"rate": 0.25', '"rate": 0.250', "does not match"),
    ('"rate": 0.25', '"rate": NaN', "NaN is not a finite number"),
    ('"rate": 0.25', '"rate": -Infinity', "-Infinity is not a finite number"),
    ('"rate": 0.25', '"rate": 1e999', "1e999 is not a finite number"),
    ('"rate": 0.25', '"rate": 0.25, "kind": "A"', "the key 'kind' occurs twice"),
    ('"format": 1', '"format": 1, "format": 1', "the key 'format' occurs twice"),
    ('"format": 1', '"format": true', "format is True"),
    ('"format": 1', '"format": 0', "format is 0"),
    ('"format": 1', '"format": "1"', "format is '1'"),
    ('"jsharp"', '"other"', "format is None: jsharp did not write it"),
  )
  def test_a_changed_config(self, old, new, message):
    text = (self.path / CONFIG).read_text()
    self.assertEqual(text.count(old), 1)
    (self.path / CONFIG).write_text(text.replace(old, new))
    self._refused(str(self.path / CONFIG), message, "save the learner again")

  def test_a_later_format(self):
    later = "written by a later jsharp (format 3); this version reads up to 1: upgrade"
    text = (self.path / CONFIG).read_text()
    (self.path / CONFIG).write_text(text.replace('"format": 1', '"format": 3'))
    self._refused(str(self.path / CONFIG), later)
    (self.path / CONFIG).write_text('{"jsharp": {"format": 3}}\n')
    self._refused(str(self.path / CONFIG), later)
    (self.path / CONFIG).write_text(text)
    (self.path / WEIGHTS).write_bytes(self._with_record(format=3))
    self._refused(str(self.path / WEIGHTS), later)

  def test_a_learner_of_another_version_in_this_format(self):
    for version in ("0.0.1", "9.0"):
      with mock.patch("jsharp.learners._store.__version__", version):
        write(self.path, *LEARNERS["A"])
      self.assertIn(f'"version": "{version}"', (self.path / CONFIG).read_text())
      self.assertEqual(self._kind(), "A")

  @parameterized.parameters(*NAMES)
  def test_a_file_of_another_learner(self, name):
    write(self.path.with_name("B"), *LEARNERS["B"])
    shutil.copy(self.path.with_name("B") / name, self.path)
    self._refused(*(str(self.path / name) for name in NAMES), "does not match")

  def test_a_foreign_weights_file(self):
    content = safetensors.numpy.save({"a": np.ones(2)}, {"format": "pt"})
    (self.path / WEIGHTS).write_bytes(content)
    self._refused(str(self.path / WEIGHTS), "jsharp did not write it")

  @parameterized.parameters(*NAMES)
  def test_what_is_no_regular_file(self, name):
    path = self.path / name
    path.unlink()
    self._refused(
      f"cannot read {path}", "No such file", "copy", error=FileNotFoundError
    )
    path.symlink_to("nothing")
    self.assertTrue(holds(self.path))
    self._refused(str(path), "the link is dangling", error=FileNotFoundError)
    path.unlink()
    path.symlink_to(name)
    self._refused(str(path), "the link is dangling", error=OSError)
    path.unlink()
    path.symlink_to("/dev/zero")
    self._refused(str(path), "not a regular file")
    path.unlink()
    path.mkdir()
    self._refused(str(path), "Is a directory", error=IsADirectoryError)
    path.rmdir()
    os.mkfifo(path)
    start = time.monotonic()
    self._refused(str(path), "not a regular file")
    self.assertLess(time.monotonic() - start, 5)
    path.unlink()
    path.with_name("real").write_bytes(self.contents[name])
    path.symlink_to("real")  # as in the caches of Hugging Face
    self.assertEqual(self._kind(), "A")

  def test_a_directory_that_is_none(self):
    shutil.rmtree(self.path)
    self._refused(str(self.path / CONFIG), error=FileNotFoundError)
    self.path.write_bytes(b"")
    self._refused(str(self.path / CONFIG), error=NotADirectoryError)
    with self.assertRaisesRegex(OSError, f"cannot create {self.path} .*choose another"):
      write(self.path, {}, {})

  def test_a_disk_that_fails_while_reading(self):
    error = OSError(errno.EIO, "Input/output error")
    with mock.patch("os.fstat", side_effect=error):
      self._refused(f"cannot read {self.path / CONFIG} (Input/output", error=OSError)


class _Killed(BaseException):
  pass


class KillTest(_Folder):
  CALLS = ("open", "fsync", "replace", "close", "unlink", "mkdir")

  @contextlib.contextmanager
  def _failing(self, at, error, after):
    """The `at`-th call of the system fails, before or after it did its work."""
    count = itertools.count()
    calls = []

    def wrap(name, function):
      def call(*args, **kwargs):
        number = next(count)
        result = function(*args, **kwargs) if after or number != at else None
        calls.append(name)
        if number == at:
          if hasattr(result, "close"):
            result.close()
          raise error
        return result

      return call

    with contextlib.ExitStack() as stack:
      # Nothing here depends on the disk, which is slow.
      stack.enter_context(mock.patch("os.fsync", lambda descriptor: None))
      for name in self.CALLS:
        stack.enter_context(mock.patch(f"os.{name}", wrap(name, getattr(os, name))))
      opened = wrap("Path.open", pathlib.Path.open)
      stack.enter_context(mock.patch("pathlib.Path.open", opened))
      yield calls

  @parameterized.product(
    error=(_Killed(), OSError(errno.ENOSPC, "No space left on device")),
    after=(False, True),
    first=(False, True),
  )
  def test_a_failure_of_every_call(self, error, after, first):
    """Each write is cut short in turn; the next one starts from what that left."""
    seen = []
    for at in itertools.count():
      if first:
        shutil.rmtree(self.path, ignore_errors=True)
      before = self._kind() if holds(self.path) else None
      new = "A" if before == "B" else "B"
      try:
        with self._failing(at, error, after) as calls:
          write(self.path, *LEARNERS[new])
      except (_Killed, OSError) as caught:
        self.assertIs(type(caught), type(error))
        if isinstance(caught, OSError):
          self.assertIn(str(self.path), str(caught))
      else:
        if at >= len(calls):  # There was no such call.
          break
      found = self._kind() if holds(self.path) else None
      self.assertIn(found, (before, new))
      seen.append(found == new)
    self.assertGreater(at, 9)
    self.assertEqual(set(seen), {False, True})
    self.assertEqual(calls.count("replace"), 3)
    self.assertEqual(self._kind(), new)
    self.assertEqual(self._names(), list(NAMES))

  def test_any_two_failures_in_a_row(self):
    for one, two in itertools.product(range(14), repeat=2):
      with self._failing(-1, None, after=False):
        shutil.rmtree(self.path, ignore_errors=True)
        write(self.path, *LEARNERS["A"])
      for at, kind in ((one, "B"), (two, "A")):
        error = _Killed() if (one + two) % 2 else OSError(errno.EIO, "I/O error")
        with (
          contextlib.suppress(_Killed, OSError),
          self._failing(at, error, after=one % 3 == 0),
        ):
          write(self.path, *LEARNERS[kind])
        self._kind()
    write(self.path, *LEARNERS["B"])
    self.assertEqual((self._kind(), self._names()), ("B", list(NAMES)))

  def test_a_full_disk(self):
    write(self.path, *LEARNERS["A"])
    for room in (0, 1, 200, 700, 5000, 20_000):
      left = [room]

      class Full:
        def __init__(self, file, left=left):
          self.file, self.left = file, left

        def __getattr__(self, name):
          return getattr(self.file, name)

        def __enter__(self):
          return self

        def __exit__(self, *_):
          self.file.close()

        def write(self, content):
          self.file.write(content[: self.left[0]])
          self.left[0] -= len(content)
          if self.left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

      real = pathlib.Path.open
      with (
        mock.patch("pathlib.Path.open", lambda *args, r=real, f=Full: f(r(*args))),
        self.assertRaisesRegex(OSError, "cannot write .*No space left.*free space"),
      ):
        write(self.path, *LEARNERS["B"])
      self.assertEqual(self._kind(), "A")
      self.assertNotIn(WEIGHTS + ".tmp", self._names())
    write(self.path, *LEARNERS["B"])
    self.assertEqual((self._kind(), self._names()), ("B", list(NAMES)))

  def test_what_kills_left_is_removed(self):
    self.path.mkdir()
    leftovers = ("config.json.tmp", "config.json.tmp.tmp", "model.safetensors.tmp")
    for name in leftovers:
      (self.path / name).write_bytes(b"half")
    self.assertFalse(holds(self.path))
    write(self.path, *LEARNERS["A"])
    self.assertEqual(self._names(), list(NAMES))

  def test_reading_writes_nothing(self):
    write(self.path, *LEARNERS["A"])
    (self.path / "config.json.tmp").write_bytes(b"half")
    before = {name: os.stat(self.path / name) for name in self._names()}
    self.assertEqual(self._kind(), "A")
    after = {name: os.stat(self.path / name) for name in self._names()}
    for name in before:
      self.assertEqual(before[name].st_mtime_ns, after[name].st_mtime_ns)
    self.assertEqual(before.keys(), after.keys())

  @contextlib.contextmanager
  def _writer(self):
    """A process that forks one that writes A and B in turn, and kills it."""
    process = subprocess.Popen(
      [sys.executable, "-W", "ignore", "-c", WRITER, str(self.path)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
      yield process
      process.stdin.close()
    self.assertEqual(process.returncode, 0)

  def test_kills_at_any_instant(self):
    generator = random.Random(0)
    seen = {"A": 0, "B": 0, None: 0, "cut short": 0}
    with self._writer() as process:
      for number in range(60):
        if number % 3 == 0:
          shutil.rmtree(self.path, ignore_errors=True)
          self.path.mkdir()
          (self.path / "other").write_bytes(b"")
        print(generator.uniform(0, 0.02), file=process.stdin, flush=True)
        self.assertEqual(process.stdout.readline(), f"{-signal.SIGKILL}\n")
        seen[self._kind() if holds(self.path) else None] += 1
        seen["cut short"] += self._names() != [CONFIG, WEIGHTS, "other"]
    self.assertEqual(sum(seen.values()) - seen["cut short"], 60)
    self.assertGreater(min(seen["A"], seen["B"], seen["cut short"]), 0, seen)
    write(self.path, *LEARNERS["B"])
    self.assertEqual((self._kind(), self._names()), ("B", [*NAMES, "other"]))

  def test_reading_while_another_process_writes(self):
    write(self.path, *LEARNERS["A"])
    seen = set()
    with self._writer() as process:
      print(1.0, file=process.stdin, flush=True)
      finished = threading.Thread(target=process.stdout.readline)
      finished.start()
      while finished.is_alive():
        seen.add(self._kind())
      finished.join()
    self.assertEqual(seen, {"A", "B"})


if __name__ == "__main__":
  absltest.main()
