"""Landscapes of ordinary training: batches of images in place of tasks."""

import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

import jsharp
from jsharp.data import Preparation, examples, load_splits
from jsharp.training import read_run
from jsharp.types import Variables
from tests.experiments.landscape_test import MEASURING, measure
from tests.experiments.supervised_test import OWN_NETWORK, TINY, run

BATCHES = ("--split=train", "--num_tasks=2", "--gap_tasks=2")


@functools.cache
def trained():
  directory = tempfile.TemporaryDirectory()
  arguments = (*TINY, OWN_NETWORK, "--hessian_eigenvalues=0", "--label_noise=0.4")
  for algorithm in ("sgd", "sam"):
    path = pathlib.Path(directory.name, algorithm)
    with jax.numpy_dtype_promotion("standard"):
      code, _, err = run(path, *arguments, f"--algorithm={algorithm}")
    assert code == 0, err
  return directory


class LandscapeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.runs = [pathlib.Path(trained().name, name) for name in ("sgd", "sam")]

  def test_side_by_side_around_both_minima(self):
    out = self.root / "out"
    code, said, err = measure(self.runs, out, *MEASURING, *BATCHES)
    self.assertEqual(code, 0, err)
    self.assertIn("Cross-entropy, 2 train batches", said)
    with np.load(out / "landscape.npz") as drawn:
      self.assertEqual(drawn["runs"].tolist(), ["sgd, seed 0", "sam, seed 0"])
      losses = drawn["loss"]
    figures = json.loads((out / "sharpness.json").read_text())["runs"]
    for path, loss, row in zip(self.runs, losses, figures, strict=True):
      classifier = jsharp.load(path)
      source = classifier.description.source
      splits = load_splits(source, preparation=Preparation(label_noise=0.4))
      size = read_run(path).description.training.batch_size
      batches = examples.in_batches(splits.train, 2 * size, size, seed=0)
      with jax.numpy_dtype_promotion("standard"):
        point = Variables(*classifier.params)
        expected = [
          classifier.loss_fn(point, jax.tree.map(lambda x: x[i], batches), False)[0][  # noqa: B023
            "loss"
          ].mean()
          for i in range(len(batches.targets))
        ]
      np.testing.assert_allclose(loss[1, 1], np.mean(expected), rtol=1e-5)
      gap = row["gap"]
      np.testing.assert_allclose(gap["train_loss"], np.mean(expected), rtol=1e-5)
      self.assertGreater(loss[0, 0], 0)
    for name in ("contours.png", "surfaces.png", "sharpness.md"):
      self.assertTrue((out / name).exists(), name)

  @parameterized.parameters(
    (("--objective=task",), "has one loss and keeps no path; leave --objective"),
    (("--plane=path",), "has one loss and keeps no path; leave --objective"),
    (("--split=val",), "there are no validation images; choose another"),
  )
  def test_refuses_what_ordinary_training_has_not(self, words, message):
    code, _, err = measure(self.runs, self.root / "out", *MEASURING, *words)
    self.assertEqual(code, 2)
    self.assertRegex(err, message)


if __name__ == "__main__":
  absltest.main()
