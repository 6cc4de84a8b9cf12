import json
import os
import pathlib
import random
import shutil
import tempfile
import zipfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jsharp import _files
from jsharp.training.checkpoints import Checkpoints
from jsharp.training.run_directory import RunDirectory
from jsharp.types import MetaState
from tests.toy_runs import same_bits


def _tree(offset=0.0):
  return {"w": jnp.arange(600.0).reshape(20, 30) + offset, "b": jnp.ones(3) + offset}


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / "checkpoints"
    self.checkpoints = Checkpoints(self.path)

  def _save_two(self):
    self.checkpoints.save(1, _tree(), extra={"mark": "first"})
    self.checkpoints.save(2, _tree(0.5), extra={"mark": "second"})
    return self.path / "step_00000002.npz"

  def _restore_after(self, path, content):
    """Writes a changed file, restores, and says what came of it."""
    path.write_bytes(content)
    with mock.patch("absl.logging.warning") as warning:
      restored = self.checkpoints.restore(_tree())
    damaged = path.with_name(path.name + ".damaged")
    self.assertEqual(warning.called, damaged.exists())
    if damaged.exists():
      self.assertIn(path, warning.call_args.args)
      self.assertEqual(restored.extra, {"mark": "first"})
      self.assertTrue(same_bits(restored.tree, _tree()))
      damaged.unlink()
      return "detected"
    self.assertEqual((restored.step, restored.extra), (2, {"mark": "second"}))
    self.assertTrue(same_bits(restored.tree, _tree(0.5)))
    return "no effect"

  def test_every_kind_of_leaf_comes_back_bit_for_bit(self):
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    params = {
      "float": jnp.array([0.0, -0.0, jnp.inf, jnp.nan, 1e-40], jnp.float32),
      "bfloat16": jnp.arange(6.0, dtype=jnp.bfloat16).reshape(2, 3),
      "float8": jnp.ones((2, 2), jnp.float8_e4m3fn),
      "nothing": None,
      "empty": jnp.zeros((0, 3)),
      "bool": jnp.array([True, False]),
      "scalar": jnp.uint8(7),
    }
    tree = {
      "state": MetaState(jnp.int32(3), params, optimizer.init({"w": jnp.ones(2)})),
      "nan payload": np.array([0x7FC00123, 0xFFC00001], np.uint32).view(np.float32),
      "double": np.array([[1.0, 1e-300], [2.0, 3.0]]).T,
      "list": [np.int64(2**60), np.full((), 2**60), (jnp.ones(1),)],
    }
    self.checkpoints.save(3, tree, extra={"a": [1.5, None], "b": {"c": "ü"}})
    step, restored, extra = self.checkpoints.restore(tree)
    self.assertEqual((step, extra), (3, {"a": [1.5, None], "b": {"c": "ü"}}))
    self.assertTrue(same_bits(restored, tree))
    self.assertIsInstance(restored["double"], np.ndarray)
    self.assertIsInstance(restored["state"].params["float"], jax.Array)
    self.assertFalse(restored["state"].params["float"].weak_type)

  def test_a_single_leaf_and_a_random_key(self):
    self.checkpoints.save(1, jax.random.key(5), extra={})
    restored = self.checkpoints.restore(jax.random.key(0)).tree
    self.assertEqual(jax.random.bits(restored), jax.random.bits(jax.random.key(5)))

  def test_numpy_opens_a_file(self):
    self.checkpoints.save(1, {"layer": [_tree()]}, extra={})
    with np.load(self.path / "step_00000001.npz") as file:
      np.testing.assert_array_equal(file["layer/0/w"], _tree()["w"])

  def test_nothing_saved_is_none(self):
    self.assertIsNone(self.checkpoints.restore(_tree()))
    self.assertIsNone(self.checkpoints.restore_best(_tree()))

  def test_keeps_the_newest_of_both_kinds(self):
    for step in (5, 20, 100):
      self.checkpoints.save(step, _tree(), extra={})
      self.checkpoints.save_best(step - 1, _tree(), extra={})
    names = sorted(path.name for path in self.path.iterdir())
    steps = ["step_00000020.npz", "step_00000100.npz"]
    self.assertEqual(names, ["best_00000019.npz", "best_00000099.npz", *steps])
    self.assertEqual(self.checkpoints.restore(_tree()).step, 100)
    self.assertEqual(self.checkpoints.restore_best(_tree()).step, 99)
    with self.assertRaisesRegex(ValueError, "keep=0"):
      Checkpoints(self.path, keep=0)

  def test_saving_a_state_again_gives_the_same_file(self):
    path = self.path / "step_00000007.npz"
    self.checkpoints.save(7, _tree(), extra={"loss": 1.0})
    before = path.read_bytes()
    with mock.patch("time.time", lambda: 2e9):  # what a zip archive would date it by
      self.checkpoints.save(7, _tree(), extra={"loss": 1.0})
    self.assertEqual(path.read_bytes(), before)

  def test_keeps_the_best_scores_in_any_order_of_arrival(self):
    scores = {10: 0.3, 20: 0.9, 30: 0.5, 40: 0.9, 50: float("nan"), 60: 0.4, 70: 0.5}
    for step, score in scores.items():
      self.checkpoints.save_top(step, {"w": np.float32(step)}, score=score, num=3)
    for step in (20, 70):  # A resumed run may validate a step again.
      tree = {"w": np.float32(step)}
      self.checkpoints.save_top(step, tree, score=scores[step], num=3)
    kept = self.checkpoints.restore_top({"w": np.float32(0)})
    self.assertEqual([one.step for one in kept], [20, 40, 30])
    self.assertEqual([one.tree["w"] for one in kept], [20, 40, 30])
    self.assertEqual([one.extra["score"] for one in kept], [0.9, 0.9, 0.5])
    (self.path / "top_00000020.npz").write_bytes(b"cut")
    self.checkpoints.save_top(80, {"w": np.float32(80)}, score=0.1, num=3)
    kept = self.checkpoints.restore_top({"w": np.float32(0)})
    self.assertEqual([one.step for one in kept], [40, 30, 80])

  def test_a_path_keeps_every_point_in_the_order_of_steps(self):
    tree = lambda step: {"w": np.float32(step)}
    for step in (0, 20, 3, 100):
      self.checkpoints.save_path(step, tree(step))
      self.checkpoints.save(step, tree(-1), extra={})
    self.checkpoints.save_path(20, tree(20))  # A resumed run may save a step again.
    self.assertLen(list(self.path.glob("path_*")), 4)
    found = self.checkpoints.restore_path(tree(0))
    self.assertEqual(
      [(one.step, one.tree["w"]) for one in found], [(s, s) for s in (0, 3, 20, 100)]
    )
    (self.path / "path_00000003.npz").write_bytes(b"cut")
    for _ in range(2):
      with mock.patch("absl.logging.warning"):
        found = self.checkpoints.restore_path(tree(0))
      self.assertEqual([one.step for one in found], [0, 20, 100])
    self.assertTrue((self.path / "path_00000003.npz.damaged").exists())
    self.assertEqual(Checkpoints(self.path / "none").restore_path(tree(0)), [])

  def _of_run(self, **identity):
    root = self.path.parent / "-".join(map(str, identity.values()))
    run = self.enter_context(RunDirectory.open(root, identity=identity))
    return Checkpoints(root / "checkpoints", run=run)

  def test_those_of_another_run_are_refused(self):
    mine, other = self._of_run(seed=0), self._of_run(seed=1)
    for save in ("save", "save_best"):
      getattr(mine, save)(3, _tree(), extra={"score": 1.0})
      getattr(other, save)(3, _tree(0.5), extra={"score": 1.0})
    other.save_top(3, _tree(0.5), score=1.0, num=1)
    for path in other.directory.iterdir():
      shutil.copy(path, mine.directory)
    for restore in (mine.restore, mine.restore_best, mine.restore_top):
      with self.assertRaisesRegex(
        ValueError, "_00000003.npz belongs to a run with oth"
      ):
        restore(_tree())
    self.assertEmpty(list(mine.directory.glob("*.damaged")))
    # Whoever only looks may read any; those of earlier versions say no run.
    self.assertIsNotNone(Checkpoints(mine.directory).restore(_tree()))
    identity = _files.digest_of({"seed": 0})
    with self.assertRaisesRegex(ValueError, "belongs to a run with oth"):
      Checkpoints(mine.directory, identity=identity).restore(_tree())
    self.assertIsNotNone(
      Checkpoints(other.directory, identity=_files.digest_of({"seed": 1})).restore(
        _tree()
      )
    )
    self.checkpoints.save(4, _tree(), extra={})
    shutil.copy(self.path / "step_00000004.npz", mine.directory)
    self.assertEqual(mine.restore(_tree()).step, 4)

  @parameterized.parameters("dangling", "file")
  def test_checkpoints_out_of_sight_are_not_taken_for_none(self, what):
    if what == "dangling":
      self.path.symlink_to("nowhere")
    else:
      self.path.write_text("")
    calls = (
      self.checkpoints.restore,
      self.checkpoints.restore_best,
      lambda tree: self.checkpoints.save(1, tree, extra={}),
    )
    for call in calls:
      with self.assertRaisesRegex((ValueError, OSError), str(self.path)):
        call(_tree())

  def test_a_file_that_is_none(self):
    path = self._save_two()
    path.unlink()
    os.mkfifo(path)
    with self.assertLogs("absl", "WARNING") as logs:
      self.assertEqual(self.checkpoints.restore(_tree()).step, 1)
    self.assertIn("not a regular file", logs.output[0])

  def test_a_member_that_would_fill_the_memory(self):
    path = self._save_two()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
      archive.writestr("metadata.json", bytes(10**7))
    self.assertEqual(self._restore_after(path, path.read_bytes()), "detected")

  def test_flipped_bits_are_never_silent(self):
    path = self._save_two()
    content = path.read_bytes()
    generator = random.Random(0)
    # Every byte of the containers' records, every 16th of the arrays.
    start = content.index(_tree(0.5)["w"].tobytes())
    end = start + _tree()["w"].nbytes
    counts = {"detected": 0, "no effect": 0}
    for place in [*range(start), *range(start, end, 16), *range(end, len(content))]:
      changed = bytearray(content)
      changed[place] ^= 1 << generator.randrange(8)
      outcome = self._restore_after(path, bytes(changed))
      counts[outcome] += 1
      if start <= place < end:
        self.assertEqual(outcome, "detected")
    # Dates and attributes of zip entries are the only bytes without a check.
    self.assertGreater(counts["detected"], 4 * counts["no effect"])

  def test_a_flip_that_a_zip_checksum_would_not_notice(self):
    path = self._save_two()
    with zipfile.ZipFile(path) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
    members["b.npy"] = members["b.npy"][:-1] + b"\x01"
    with zipfile.ZipFile(path, "w") as archive:
      for name, content in members.items():
        archive.writestr(name, content)
    with self.assertLogs("absl", "WARNING") as logs:
      self.assertEqual(self.checkpoints.restore(_tree()).step, 1)
    self.assertRegex(logs.output[0], "step_00000002.*digest of leaf 'b' differs")

  def test_changed_metadata_are_noticed(self):
    path = self._save_two()
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
    members["metadata.json"] = members["metadata.json"].replace(b"second", b"secone")
    with zipfile.ZipFile(path, "w") as archive:
      for name, member in members.items():
        archive.writestr(name, member)
    self.assertNotEqual(path.read_bytes(), content)
    self.assertEqual(self._restore_after(path, path.read_bytes()), "detected")

  def test_truncated_files_are_noticed(self):
    path = self._save_two()
    content = path.read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
      self.assertEqual(self._restore_after(path, content[:length]), "detected")

  def test_zeroed_blocks_are_noticed(self):
    self.checkpoints.save(1, _tree(), extra={"mark": "first"})
    self.checkpoints.save(2, _tree(0.5), extra={"mark": "second"})
    path = self.path / "step_00000002.npz"
    content = path.read_bytes()
    for start in range(0, len(content), 512):
      block = content[start : start + 4096]
      changed = content[:start] + bytes(len(block)) + content[start + len(block) :]
      self.assertEqual(self._restore_after(path, changed), "detected")

  def test_a_file_of_another_step_and_a_deleted_one(self):
    path = self._save_two()
    content = (self.path / "step_00000001.npz").read_bytes()
    self.assertEqual(self._restore_after(path, content), "detected")
    self.assertFalse(path.exists())
    self.assertEqual(self.checkpoints.restore(_tree()).step, 1)

  def test_none_left_is_an_error_again_and_again(self):
    for _ in range(2):
      self._save_two()
      for path in self.path.glob("step_*.npz"):
        path.write_bytes(b"<html>")
      for _ in range(2):
        with (
          mock.patch("absl.logging.warning"),
          self.assertRaisesRegex(RuntimeError, "every 'step' checkpoint.*damaged"),
        ):
          self.checkpoints.restore(_tree())

  def test_a_file_from_the_future_is_refused_and_left_alone(self):
    path = self._save_two()
    with mock.patch("jsharp._leaf_archive.FORMAT", 2):
      self.checkpoints.save(3, _tree(), extra={})
    with self.assertRaisesRegex(ValueError, "has format 2, but this version reads 1"):
      self.checkpoints.restore(_tree())
    self.assertTrue((self.path / "step_00000003.npz").exists())
    self.assertTrue(path.exists())

  @parameterized.parameters(
    ({"w": jnp.zeros((20, 31)), "b": jnp.ones(3)}, r"'w' is float32\[20, 30\].*31\]"),
    ({"w": jnp.zeros((20, 30), jnp.bfloat16), "b": jnp.ones(3)}, "'w'.*bfloat16"),
    ({"w": np.zeros((20, 30)), "b": jnp.ones(3)}, "'w'.*float64"),
    ({"w": jnp.zeros((20, 30))}, r"it has \['b'\] where \[\] is expected"),
    ({"w": jnp.zeros((20, 30)), "b": [jnp.ones(3)]}, r"\['b'\] where \['b/0'\]"),
  )
  def test_another_program_is_refused(self, template, message):
    path = self._save_two()
    with self.assertRaisesRegex(ValueError, message):
      self.checkpoints.restore(template)
    self.assertTrue(path.exists())

  def test_what_is_no_array_is_refused(self):
    for leaf in ("text", object(), np.array([1.0], ">f4"), np.zeros(2, "f4,i4")):
      with self.assertRaisesRegex(ValueError, "leaf 'a'"):
        self.checkpoints.save(1, {"a": leaf}, extra={})
    with self.assertRaisesRegex(ValueError, "two leaves have the name 'a/b'"):
      self.checkpoints.save(1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, extra={})

  def test_leftovers_of_a_kill_are_cleared(self):
    self._save_two()
    leftover = self.path / "step_00000003.npz.tmp"
    leftover.write_bytes(b"half")
    self.assertEqual(self.checkpoints.restore(_tree()).step, 2)
    self.checkpoints.save(4, _tree(), extra={})
    self.assertFalse(leftover.exists())

  def test_the_metadata_say_what_is_inside(self):
    path = self._save_two()
    with zipfile.ZipFile(path) as archive:
      metadata = json.loads(archive.read("metadata.json"))
    self.assertEqual(metadata["leaves"]["w"]["shape"], [20, 30])
    self.assertEqual(metadata["leaves"]["w"]["dtype"], "float32")
    self.assertLen(metadata["leaves"]["w"]["sha256"], 64)

  def test_a_failing_write_leaves_the_last_good_one(self):
    self._save_two()
    with (
      mock.patch("os.fsync", side_effect=OSError(28, os.strerror(28))),
      self.assertRaisesRegex(OSError, "step_00000003.npz.*No space left"),
    ):
      self.checkpoints.save(3, _tree(), extra={})
    names = {path.name for path in self.path.iterdir()}
    self.assertEqual(names, {"step_00000001.npz", "step_00000002.npz"})
    self.assertEqual(self.checkpoints.restore(_tree()).step, 2)


if __name__ == "__main__":
  absltest.main()
