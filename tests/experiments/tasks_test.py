"""Runs on tasks of several shapes, with noise, distortion, another test set."""

import contextlib
import io
import json
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

import jsharp
from jsharp.data import placement
from jsharp.data.image_folder import ImageFolder
from tests.experiments.program_test import SMALL_NETWORK, run

TINY = (
  "--dataset=characters",
  "--image_size=16",
  SMALL_NETWORK,
  "--algorithm=protonet",
  "--query_shot=2",
  "--num_tasks=2",
  "--val_tasks=2",
  "--eval_tasks=3",
  "--eval_every=1",
  "--num_steps=3",
)


class ProgramTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))
    self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_everything_at_once(self):
    """Two shapes in training, further tests, an ensemble; the figures are of tasks."""
    run_dir = self.directory / "run"
    arguments = (
      *TINY,
      "--train_way=4,6",
      "--support_label_noise=0.2",
      "--eval_support_label_noise=0",
      "--ensemble=2",
    )
    code, out, err = run("omniglot", run_dir, *arguments)
    self.assertEqual(code, 0, err)
    result = json.loads((run_dir / "result.json").read_text())
    self.assertLen(result["ensemble_steps"], 2)
    self.assertIn("ensemble of 2", out)
    self.assertLen(result["test_variations"], 1)
    table = np.genfromtxt(run_dir / "test_tasks.csv", delimiter=",", names=True)
    self.assertLen(table, 3)
    self.assertAlmostEqual(table["accuracy"].mean(), result["test_accuracy"], places=6)
    tops = sorted((run_dir / "checkpoints").glob("top_*.npz"))
    self.assertLen(tops, 2)

  def test_seeds_side_by_side_are_the_seeds_by_themselves(self):
    def finish(name, *arguments):
      code, _, err = run("omniglot", self.directory / name, *TINY, *arguments)
      self.assertEqual(code, 0, err)
      result = json.loads((self.directory / name / "result.json").read_text())
      path = self.directory / name / "test_tasks.csv"
      return result, np.genfromtxt(path, delimiter=",", names=True)

    result, both = finish("both", "--seed=4", "--num_seeds=2", "--eval_every=3")
    _, alone = finish("alone", "--seed=5", "--eval_every=3")
    np.testing.assert_allclose(both["accuracy_1"], alone["accuracy"], atol=1e-6)
    np.testing.assert_allclose(both["loss_1"], alone["loss"], rtol=1e-3)
    self.assertGreater(np.abs(both["loss_0"] - both["loss_1"]).max(), 1e-3)
    by_seed = [both[f"accuracy_{i}"].mean() for i in range(2)]
    np.testing.assert_allclose(result["test_accuracy_by_seed"], by_seed, atol=1e-6)
    self.assertAlmostEqual(result["test_accuracy"], np.mean(by_seed), places=6)

  def _write(self, data_dir, classes, shape):
    generator = np.random.default_rng(0)
    for label in classes:
      folder = data_dir / label
      folder.mkdir(parents=True)
      for i in range(3):
        pixels = generator.integers(0, 255, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")

  def test_classes_without_splits_and_a_test_on_another_dataset(self):
    """That the first are divided is recorded; of the other only a test split exists.

    Its images are larger and in colour.
    """
    data_dir, test_data_dir = self.directory / "data", self.directory / "other"
    self._write(data_dir, [f"{label:02d}" for label in range(15)], (16, 16))
    self._write(test_data_dir, [f"test/{label}" for label in range(5)], (20, 24, 3))
    run_dir = self.directory / "run"
    arguments = (
      *TINY[1:],
      "--dataset=image_folder",
      f"--data_dir={data_dir}",
      "--test_dataset=image_folder",
      f"--test_data_dir={test_data_dir}",
      "--way=2",
    )
    code, out, err = run("omniglot", run_dir, *arguments)
    self.assertEqual(code, 0, err)
    said = "15 classes, divided 10 / 2 / 3 by split_seed=0"
    self.assertIn(f"data has {said}.", err)
    self.assertIn(said, out)
    self.assertIn("16x16 colour to 16x16 gray, lanczos filter", out)
    result = json.loads((run_dir / "result.json").read_text())
    facts = result["protocol"]["data"]
    self.assertEqual(facts["tested on"], "image_folder")
    self.assertEqual(facts["classes"], "10 / 2 / 5")
    self.assertEqual(result["settings"]["data.split_seed"], 0)
    with contextlib.redirect_stderr(io.StringIO()):
      loaded = placement.load_with_test(
        jsharp.load(run_dir).description.source,
        str(data_dir),
        test_source=ImageFolder(image_size=16),
        test_data_dir=str(test_data_dir),
      )
    self.assertEqual(facts["prepared"], placement.origins(loaded))
    for split, dataset in loaded.items():
      self.assertEqual(facts[split], dataset.fingerprint())
    code, _, err = run("omniglot", run_dir, *arguments, "--split_seed=1")
    self.assertEqual(code, 2)
    self.assertIn("split_seed", err)

  @parameterized.parameters(
    (["--algorithm=anil", "--proximity=3"], "proximity has no effect.*imaml"),
    (["--algorithm=protonet", "--sharpness=low"], "protonet has none; .*=up"),
    (["--algorithm=sharp_maml_up", "--sharpness=up"], "already determines"),
    (["--inner_rho=0.3"], "--inner_rho=0.3 has no effect.*--sharpness=low"),
    (["--outer_schedule=cosine"], "needs --outer_schedule_steps"),
    (["--num_seeds=2", "--train_way=3,5"], "--num_seeds=2 supports only one kind"),
    (["--algorithm=maml_plus_plus", "--num_eval_inner_steps=9"], "at most"),
    (["--eval_way=99999"], "way is 99999, but split 'test' has only"),
    (["--train_shot=99999"], "shot .*99999"),
  )
  def test_contradictions_are_refused(self, arguments, message):
    code, _, err = run(
      "omniglot", self.directory / "run", "--dataset=characters", *arguments
    )
    self.assertEqual(code, 2)
    self.assertRegex(err, message)


if __name__ == "__main__":
  absltest.main()
