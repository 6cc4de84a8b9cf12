import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jsharp.training import run_directory
from jsharp.training.checkpoints import Checkpoints
from jsharp.training.run_directory import RunDirectory

_IDENTITY = {"way": 5, "inner_lr": 0.4, "dataset": "characters", "rhos": [0.1, None]}


@contextlib.contextmanager
def _unprivileged():
  """Permissions bind only those who are not root."""
  if os.geteuid():
    yield
    return
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


class RunDirectoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    self.path = self.root / "new" / "run"

  def _open(self, identity=_IDENTITY):
    run = RunDirectory.open(self.path, identity=identity)
    self.addCleanup(run.close)
    return run

  def test_opens_again_with_the_same_identity(self):
    with self._open() as run:
      self.assertEqual(run.path, self.path)
      self.assertEqual(run.read_json("run.json")["identity"], _IDENTITY)
    with self._open({**_IDENTITY, "rhos": (0.1, None)}):
      pass

  @parameterized.parameters(
    ({"way": 20}, "  way: 5 there, 20 now\nUse these"),
    ({"way": 20, "inner_lr": 0.01}, "inner_lr: 0.4 there, 0.01 now\n  way: 5 there, 2"),
    ({"shot": 1}, "shot: absent there, 1 now"),
    ({"dataset": None}, 'dataset: "characters" there, null now'),
    ({"way": "5"}, 'way: 5 there, "5" now'),
  )
  def test_another_identity_is_refused_with_both_values(self, changes, message):
    self._open().close()
    with self.assertRaisesRegex(ValueError, message):
      self._open({**_IDENTITY, **changes})
    self._open().close()

  def test_a_flag_that_is_gone_is_told(self):
    self._open().close()
    with self.assertRaisesRegex(ValueError, "way: 5 there, absent now"):
      self._open({k: v for k, v in _IDENTITY.items() if k != "way"})

  def test_two_writers(self):
    run = self._open()
    with self.assertRaisesRegex(
      BlockingIOError, f"run_dir={self.path} is in use by process {os.getpid()}"
    ):
      self._open()
    code = (
      "import sys; from jsharp.training.run_directory import RunDirectory\n"
      "try: RunDirectory.open(sys.argv[1], identity={})\n"
      "except BlockingIOError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(self.path)]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    self.assertIn(f"in use by process {os.getpid()}", other.stdout)
    run.close()
    self._open()

  def test_a_folder_with_other_things_is_refused(self):
    (self.root / "thesis.tex").write_text("precious")
    with self.assertRaisesRegex(ValueError, "has other files .thesis.tex"):
      RunDirectory.open(self.root, identity={})
    self.assertEqual([path.name for path in self.root.iterdir()], ["thesis.tex"])

  def test_a_kill_while_creating_leaves_a_usable_folder(self):
    self.path.mkdir(parents=True)
    (self.path / "lock").write_text("1\n")
    (self.path / "run.json.tmp").write_text('{"form')
    self._open()

  def test_an_unwritable_folder(self):
    self.root.chmod(0o555)
    with _unprivileged(), self.assertRaisesRegex(PermissionError, str(self.path)):
      self._open()
    self.root.chmod(0o755)
    with (
      _unprivileged(),
      self.assertRaisesRegex(PermissionError, f"run_dir={self.root} .*pass a dir"),
    ):
      RunDirectory.open(self.root, identity={})

  def test_a_file_in_the_place_of_the_folder(self):
    (self.root / "new").write_text("a file")
    with self.assertRaisesRegex(NotADirectoryError, f"run_dir={self.path}"):
      self._open()
    with self.assertRaisesRegex(FileExistsError, f"run_dir={self.root / 'new'}"):
      RunDirectory.open(self.root / "new", identity={})

  @parameterized.parameters((b"", "damaged"), (b'{"format": 9}', "format 9"))
  def test_a_damaged_identity(self, content, message):
    self._open().close()
    (self.path / "run.json").write_bytes(content)
    with self.assertRaisesRegex(ValueError, f"run.json.*{message}"):
      self._open()

  def test_metrics_are_strict_json_lines(self):
    run = self._open()
    self.assertEqual(run.read_metrics(), [])
    run.append_metrics({"step": 1, "loss": 0.1 + 0.2})
    run.append_metrics({"step": 2, "loss": float("nan"), "rate": float("inf")})
    lines = (self.path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=self.fail) for line in lines]
    self.assertLen({record.pop("sha256") for record in records}, 2)
    self.assertEqual(records[0], {"step": 1, "loss": 0.1 + 0.2})
    self.assertEqual(records[1], {"step": 2, "loss": None, "rate": None})
    self.assertEqual(run.read_metrics(), records)

  @parameterized.parameters(b'{"step": 3, "lo', b"\0" * 4096, b'{"step": 3}')
  def test_a_torn_last_line_is_dropped(self, torn):
    with self._open() as run:
      for step in (1, 2):
        run.append_metrics({"step": step})
    with (self.path / "metrics.jsonl").open("ab") as file:
      file.write(torn)
    with self.assertLogs("absl", "WARNING") as logs, self._open() as run:
      self.assertEqual(run.read_metrics(), [{"step": 1}, {"step": 2}])
      run.append_metrics({"step": 3})
      self.assertLen(run.read_metrics(), 3)
    self.assertIn("metrics.jsonl", logs.output[0])

  def test_a_damaged_line_is_named(self):
    run = self._open()
    for step in (1, 2, 3):
      run.append_metrics({"step": step})
    path = self.path / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 2,', '{"step: 2,'))
    with self.assertRaisesRegex(ValueError, r"line 2 of .*metrics.jsonl is damaged"):
      run.read_metrics()

  def test_no_flipped_bit_of_the_metrics_is_silent(self):
    records = [{"step": 1, "loss": 0.25}, {"step": 2, "val_loss": None}]
    with self._open() as run:
      for record in records:
        run.append_metrics(record)
    path = self.path / "metrics.jsonl"
    content = path.read_bytes()
    self.enter_context(mock.patch("os.fsync"))  # It takes most of the time.
    for place in range(0, 8 * len(content), 7):
      changed = bytearray(content)
      changed[place // 8] ^= 1 << place % 8
      path.write_bytes(changed)
      with mock.patch("absl.logging.warning") as warning, self._open() as run:
        found = run.read_metrics()
      if not warning.called:
        self.assertEqual(found, records)
        continue
      self.assertTrue(all(record in records for record in found))
      if "damaged" in warning.call_args.args[0]:
        aside = self.path / "metrics.jsonl.damaged"
        self.assertEqual(aside.read_bytes(), bytes(changed))

  def test_metrics_of_an_earlier_version(self):
    self._open().close()
    (self.path / "metrics.jsonl").write_text('{"step": 1}\n')
    with self._open() as run:
      run.append_metrics({"step": 2})
      self.assertEqual(run.read_metrics(), [{"step": 1}, {"step": 2}])

  def test_nothing_is_written_where_another_owner_is(self):
    run = self._open()
    run.append_metrics({"step": 1})
    checkpoints = Checkpoints(self.path / "checkpoints", run=run)
    checkpoints.save(1, {}, extra={})
    shutil.rmtree(self.path)
    writes = (
      lambda: run.append_metrics({"step": 2}),
      lambda: run.write_json("result.json", {}),
      lambda: checkpoints.save(2, {}, extra={}),
      lambda: checkpoints.save_best(2, {}, extra={}),
    )
    for other in (False, True):
      if other:
        self._open({"way": 20})
      for write in writes:
        with self.assertRaisesRegex(
          OSError, f"run_dir={self.path} was deleted or repl"
        ):
          write()
    self.assertCountEqual(os.listdir(self.path), ["lock", "run.json"])

  @parameterized.product(
    name=("lock", "run.json.tmp"),
    link=(os.symlink, os.link, lambda _, path: os.mkfifo(path)),
  )
  def test_what_lies_in_a_new_folder_is_not_followed(self, name, link):
    victim = self.root / "victim"
    victim.write_text("precious")
    self.path.mkdir(parents=True)
    link(victim, self.path / name)
    try:
      with self._open():
        self.assertFalse((self.path / name).is_symlink())
    except (OSError, ValueError) as error:
      self.assertRegex(
        str(error), f"run_dir={self.path} .it is a link|lock is not a regul"
      )
    self.assertEqual(victim.read_text(), "precious")

  def test_who_holds_it(self):
    self.assertIsNone(run_directory.holder(self.path))
    with self._open():
      self.assertEqual(run_directory.holder(self.path), str(os.getpid()))
    self.assertIsNone(run_directory.holder(self.path))

  def test_an_identity_out_of_sight_is_not_taken_for_none(self):
    self._open().close()
    os.rename(self.path / "run.json", self.root / "elsewhere")
    (self.path / "run.json").symlink_to("nowhere")
    with self.assertRaisesRegex(ValueError, "run.json is a link to nowhere"):
      self._open()

  def test_truncation(self):
    run = self._open()
    run.truncate_metrics(0)
    for step in range(5):
      run.append_metrics({"step": step})
    run.truncate_metrics(7)
    self.assertLen(run.read_metrics(), 5)
    run.truncate_metrics(2)
    self.assertEqual(run.read_metrics(), [{"step": 0}, {"step": 1}])

  def test_json_files(self):
    run = self._open()
    run.write_json("result.json", {"test_accuracy": 0.5, "names": ["ü"]})
    self.assertEqual(
      run.read_json("result.json"), {"test_accuracy": 0.5, "names": ["ü"]}
    )
    with self.assertRaises(ValueError):
      run.write_json("result.json", {"test_accuracy": float("nan")})
    self.assertEqual(run.read_json("result.json")["test_accuracy"], 0.5)
    with self.assertRaisesRegex(FileNotFoundError, r"other\.json"):
      run.read_json("other.json")


if __name__ == "__main__":
  absltest.main()
