"""Landscapes of ordinary training: batches of images in place of tasks."""

import functools
import json
import pathlib
import tempfile

import jax
import jax.flatten_util
import numpy as np
from absl.testing import absltest, parameterized

import jsharp
from jsharp.algorithms.supervised import estimate_statistics
from jsharp.data import Preparation, examples, load_splits
from jsharp.learners import build_classifier
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


NOISY = Preparation(label_noise=0.4)


def _flat(tree):
  return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


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
      splits = load_splits(source, preparation=NOISY)
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

  def test_the_plane_through_both_minima_and_their_start(self):
    out = self.root / "out"
    words = ("--plane=minima", "--nomeasure", "--grid=3", "--extent=1")
    code, said, err = measure(self.runs, out, *words, *BATCHES)
    self.assertEqual(code, 0, err)
    self.assertNotIn("path", said)
    with np.load(out / "landscape.npz") as drawn:
      self.assertEqual(drawn["runs"].tolist(), ["sgd, seed 0"])
      names, places = drawn["path_steps_0"].tolist(), drawn["path_0"]
      loss, alphas, betas = drawn["loss"][0], drawn["alphas"][0], drawn["betas"][0]
    self.assertEqual(names, ["sam, seed 0", "start"])
    sgd, sam = (jsharp.load(path) for path in self.runs)
    start = build_classifier(sgd.description, seed=0)
    points = [_flat(each.params.params) for each in (sgd, sam, start)]
    # Distances within the plane are those of the parameters.
    for place, point in zip(places, points[1:], strict=True):
      np.testing.assert_allclose(
        np.linalg.norm(place), np.linalg.norm(point - points[0]), rtol=1e-4
      )
    np.testing.assert_allclose(
      np.linalg.norm(places[0] - places[1]),
      np.linalg.norm(points[1] - points[2]),
      rtol=1e-4,
    )
    # At a corner: the parameters there, with running averages that fit them.
    frame = np.linalg.solve(places, np.stack(points[1:]) - points[0])
    corner = points[0] + alphas[2] * frame[0] + betas[0] * frame[1]
    _, unflatten = jax.flatten_util.ravel_pytree(sgd.params.params)
    splits = load_splits(sgd.description.source, preparation=NOISY)
    size = read_run(self.runs[0]).description.training.batch_size
    with jax.numpy_dtype_promotion("standard"):
      batches = examples.in_batches(splits.train, 20 * size, size, seed=0)
      point = Variables(unflatten(np.float32(corner)), sgd.params.statistics)
      fitting = estimate_statistics(sgd.loss_fn, point, batches)
      expected = [
        sgd.loss_fn(Variables(point.params, fitting), batch, False)[0]["loss"].mean()
        for batch in (jax.tree.map(lambda x, i=i: x[i], batches) for i in range(2))
      ]
    np.testing.assert_allclose(loss[2, 0], np.mean(expected), rtol=1e-3)

  def test_no_plane_goes_through_one_run(self):
    words = ("--plane=minima", "--nomeasure", *BATCHES)
    code, _, err = measure(self.runs[:1], self.root / "out", *words)
    self.assertEqual(code, 2)
    self.assertIn(
      "two runs of the same seed with common initial parameters; there are 1", err
    )

  @parameterized.parameters(
    (("--objective=task",), "has one loss and saves no path; leave out --obj"),
    (("--plane=path",), "has one loss and saves no path; leave out --obj"),
    (("--split=val",), "there are no validation images; choose another"),
  )
  def test_refuses_what_ordinary_training_has_not(self, words, message):
    code, _, err = measure(self.runs, self.root / "out", *MEASURING, *words)
    self.assertEqual(code, 2)
    self.assertRegex(err, message)


if __name__ == "__main__":
  absltest.main()
