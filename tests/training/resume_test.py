"""Real processes, really killed, and a run that goes on in another directory."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest

from jsharp.training.checkpoints import Checkpoints
from jsharp.training.run_directory import RunDirectory
from tests import toy_runs

_NUM_STEPS = 3000


class ResumeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)

  def _start(self, name):
    command = [sys.executable, "-m", "tests.toy_runs", str(self.root / name)]
    process = subprocess.Popen(
      [*command, str(_NUM_STEPS)],
      cwd=pathlib.Path(__file__).parents[2],
      env={**os.environ, "PYTHONFAULTHANDLER": "1"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    return process

  def _move(self, name, to):
    """Copies what a run needs to go on, as to another machine: no lock, no flags."""
    source, target = self.root / name, self.root / to
    (target / "checkpoints").mkdir(parents=True)
    checkpoints = source / "checkpoints"
    newest = max(checkpoints.glob("step_*.npz"))
    for path in (newest, *checkpoints.glob("best_*.npz")):
      shutil.copy(path, target / "checkpoints")
    for file in ("run.json", "metrics.jsonl"):
      shutil.copy(source / file, target)
    shutil.rmtree(source)

  def _finish(self, process):
    _, error = process.communicate(timeout=120)
    self.assertEqual(process.returncode, 0, error)

  def _end(self, name):
    """Final state, best parameters and records of a run that is over."""
    template = toy_runs.algorithm().init(toy_runs.params())
    checkpoints = Checkpoints(self.root / name / "checkpoints")
    last = checkpoints.restore(template)
    best = checkpoints.restore_best(template.params)
    with RunDirectory.open(self.root / name, identity={"toy": 1}) as run:
      records = toy_runs.steady(run.read_metrics())
    return (last.tree, best.tree), records

  def test_killed_at_random_instants_and_moved_it_ends_with_the_same_bits(self):
    whole = self._start("whole")
    generator = random.Random()
    codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    reached = [0]
    # Ctrl-C is ignored in background jobs; the children of such would inherit that.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, previous)
    for signum in (*codes, signal.SIGKILL):
      process = self._start("killed")
      self.assertEqual(process.stdout.readline(), "ready\n")
      time.sleep(generator.uniform(0, 0.2))
      process.send_signal(signum)
      _, error = process.communicate(timeout=60)
      self.assertEqual(process.returncode, codes[signum], error)
      with RunDirectory.open(self.root / "killed", identity={"toy": 1}) as run:
        reached.append(run.read_metrics()[-1]["step"])
    self._move("killed", to="elsewhere")
    self._finish(self._start("elsewhere"))
    self._finish(whole)
    self.assertLess(reached[-1], _NUM_STEPS)
    self.assertEqual(reached, sorted(reached))
    end, records = self._end("elsewhere")
    expected_end, expected_records = self._end("whole")
    self.assertTrue(toy_runs.same_bits(end, expected_end))
    self.assertEqual(records, expected_records)


if __name__ == "__main__":
  absltest.main()
