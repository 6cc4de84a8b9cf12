"""Ordinary training on images in files: the program, a kill in it, its refusals."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl.testing import absltest, parameterized

import jsharp
from jsharp.data import load_splits
from tests.data import photographs
from tests.experiments.program_test import newest_checkpoint, records
from tests.experiments.supervised_test import OWN_NETWORK, run

CLASSES = tuple(f"n0000000{i}" for i in range(1, 8))
ARGUMENTS = (
  "--dataset=imagenet",
  "--image_size=16",
  "--num_workers=0",
  "--batch_size=8",
  "--num_epochs=2",
  "--augment=basic",
  "--hessian_eigenvalues=0",
  "--log_every=1",
  OWN_NETWORK,
)


class StreamedTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.data = pathlib.Path(folder.name, "data")
    contents = photographs.contents(CLASSES, num_train=(5,) * 7, num_val=3)
    photographs.write_folders(cls.data, contents)
    cls.root = pathlib.Path(folder.name)

  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))  # optax's schedules
    self.arguments = (*ARGUMENTS, f"--data_dir={self.data}")

  def test_both_errors_are_tested_and_a_killed_run_ends_with_the_same_bits(self):
    whole, cut = self.root / "whole", self.root / "cut"
    more = ("--num_epochs=30", "--val_fraction=0.2", "--eval_every=30")
    code, out, err = run(whole, *self.arguments, *more)
    self.assertEqual(code, 0, err)
    result = json.loads((whole / "result.json").read_text())
    with self.subTest("top 1 and top 5 of every test image"):
      self.assertEqual(result["num_eval_examples"], 21)
      self.assertEqual(result["num_train_eval_examples"], 21)
      classifier = jsharp.load(whole)
      splits = load_splits(classifier.description.source, self.data)
      logits = classifier.predict(
        None, np.asarray(splits.test.images) / np.float32(255)
      )
      own = np.take_along_axis(logits, splits.test.labels[:, None], axis=1)
      rank = (logits > own).sum(axis=1)
      self.assertAlmostEqual(result["test_error"], (rank > 0).mean(), places=6)
      self.assertAlmostEqual(result["test_top5_error"], (rank > 4).mean(), places=6)
      self.assertRegex(out, r"test error, top 5 +\d+\.\d\d ± ")
      header = (whole / "test_tasks.csv").read_text().splitlines()
      self.assertEqual(header[0], "task,error,loss,top5_error")
      self.assertLen(header, 22)
      self.assertIn("val_top5_accuracy", records(whole)[-1])
    with self.subTest("killed and resumed"):
      command = [sys.executable, "-m", "experiments.supervised", *self.arguments, *more]
      command += ["--num_workers=2", f"--run_dir={cut}", "--checkpoint_seconds=0.01"]
      command += ["--compilation_cache_dir="]
      process = subprocess.Popen(
        command,
        cwd=pathlib.Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
      )
      self.addCleanup(process.kill)
      deadline = time.monotonic() + 120
      while not list(cut.glob("checkpoints/step_*[1-9]*.npz")):
        self.assertIsNone(process.poll())
        self.assertLess(time.monotonic(), deadline)
        time.sleep(0.02)
      process.kill()
      process.wait()
      self.assertFalse((cut / "result.json").exists())
      while _alive(process.pid):  # The workers of its session.
        self.assertLess(time.monotonic(), deadline)
        time.sleep(0.05)
      code, out, err = run(cut, *self.arguments, *more)
      self.assertEqual(code, 0, err)
      self.assertIn("resuming from step", out)
      found, wanted = (newest_checkpoint(path) for path in (cut, whole))
      self.assertEqual(found[0], wanted[0])
      self.assertEqual(
        (cut / "model.safetensors").read_bytes(),
        (whole / "model.safetensors").read_bytes(),
      )

  def test_a_damaged_image_ends_the_run_with_its_name_and_is_mended(self):
    path = sorted((self.data / "train" / CLASSES[3]).iterdir())[2]
    content = path.read_bytes()
    self.addCleanup(path.write_bytes, content)
    path.write_bytes(content[:100])
    code, _, err = run(self.root / "damaged", *self.arguments)
    self.assertEqual(code, 1)
    self.assertIn(f"{path} cannot be decoded", err)

  @parameterized.parameters(
    ("--relabel=RUN", "--relabel=RUN stores the probability"),
    ("--data_dir=/nowhere", "data_dir=/nowhere does not exist"),
    ("--batch_size=36", "batch_size is 36, but there are 35"),
    ("--train_examples=36", "--train_examples: num_examples is 36"),
  )
  def test_refusals(self, argument, message):
    code, _, err = run(self.root / "refused", *self.arguments, argument)
    self.assertEqual(code, 2)
    self.assertIn(message, err)


def _alive(session):
  """Processes of a session that still run."""
  found = []
  for entry in os.listdir("/proc"):
    try:
      if entry.isdigit() and os.getsid(int(entry)) == session:
        state = pathlib.Path("/proc", entry, "stat").read_text().rpartition(")")[2]
        found += [entry] if state.split()[0] != "Z" else []
    except OSError:
      continue
  return found


if __name__ == "__main__":
  absltest.main()
