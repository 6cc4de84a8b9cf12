"""Tests of ordinary classification as a program: results, resume, refusals."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import signal
import tempfile

import jax
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

import jsharp
from experiments import _program, supervised
from jsharp.data import examples, load_splits
from tests import toy_runs
from tests.data import fixtures
from tests.experiments.program_test import newest_checkpoint, records

SMALL = (
  "--image_size=8",
  "--batch_size=15",
  "--num_epochs=1",
  "--hessian_examples=16",
  "--hessian_steps=2",
)
OWN = "tests.experiments.own_parts"
OWN_NETWORK = f"--model={OWN}:NormalisedOptions"
THREE = ("--num_characters=3",)
TINY = (*SMALL, *THREE)


def run(run_dir, *arguments, build=supervised.build):
  """Returns exit code, standard output and standard error."""
  experiment = dataclasses.replace(supervised.EXPERIMENT, build=build)
  words = ["--compilation_cache_dir=", f"--run_dir={run_dir}", *arguments]
  out, err = io.StringIO(), io.StringIO()
  with (
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    toy_runs.suites_cache(),
  ):
    code = _program.start(experiment, words, flags.FlagValues())
  return code, out.getvalue(), err.getvalue()


class ProgramTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))  # optax's schedules
    self.run_dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_three_steps_with_everything(self):
    arguments = [
      *TINY,
      "--num_epochs=2",
      "--val_fraction=0.2",
      "--train_examples=32",
      "--label_noise=0.4",
      "--augment=cutout",
      "--clip_gradient=5",
      OWN_NETWORK,
      "--hessian_eigenvalues=2",
      "--sam_start=1",
    ]
    code, out, err = run(self.run_dir, *arguments)
    self.assertEqual(code, 0, err)
    result = json.loads((self.run_dir / "result.json").read_text())
    self.assertAlmostEqual(result["test_error"], 1 - result["test_accuracy"])
    self.assertBetween(result["test_error"], 0, 1)
    self.assertEqual(result["num_eval_examples"], 15)
    self.assertEqual((result["num_steps"], result["num_gradients"]), (4, 6))
    self.assertEqual(result["gradients_per_step"], 1.5)
    self.assertGreater(result["examples_per_second"], 0)
    for when in ("start", "end"):
      self.assertLen(result[f"hessian_eigenvalues_{when}"], 2)
      self.assertLen(result[f"hessian_residuals_{when}"], 2)
    self.assertContainsSubset(("train_error", "train_loss", "test_loss"), result)
    protocol = result["protocol"]
    self.assertEqual(protocol["algorithm"]["rho"], 0.05)
    self.assertEqual(protocol["checkpoint"]["chosen by"], "validation on 9 examples")
    # 13 of 32 labels are drawn anew from 3 classes.
    self.assertBetween(protocol["label noise"]["wrong labels"], 4, 13)
    self.assertEqual(protocol["data"]["training examples"], 32)
    self.assertEqual(protocol["data"]["chosen evenly from"], 36)
    self.assertEqual(result["settings"]["preparation.train_examples"], 32)
    self.assertContainsSubset(("train", "test"), protocol["data"])
    for name in ("curves.png", "flags.txt", "run.json", "description.json"):
      self.assertTrue((self.run_dir / name).exists(), name)
    self.assertRegex(out, r"test error +\d+\.\d\d ± .* %")
    self.assertRegex(out, r"Hessian, end +\S+, \S+")
    with self.subTest("the classifier"):
      classifier = jsharp.load(self.run_dir)
      self.assertLen(classifier.description.class_names, 3)
      source = classifier.description.source
      test = load_splits(source).test
      logits = classifier.predict(None, test.images / np.float32(255))
      right = np.argmax(logits, axis=-1) == test.labels
      self.assertAlmostEqual(right.mean(), result["test_accuracy"], places=6)
      self.assertLen(test.labels, 15)
      # As it was tested, on images that were normalised as in training.
      inputs = examples.inputs_of(test, test.images)
      batch = jsharp.Batch(inputs, test.labels)
      metrics, _ = classifier.loss_fn(classifier.params, batch, False)
      self.assertAlmostEqual(
        float(metrics["loss"].mean()), result["test_loss"], places=5
      )
      log_p = jax.nn.log_softmax(logits)[np.arange(15), test.labels]
      self.assertAlmostEqual(float(-log_p.mean()), result["test_loss"], places=4)
    with self.subTest("again"):
      before = (self.run_dir / "result.json").stat().st_mtime_ns
      again = run(self.run_dir, *arguments)
      self.assertEqual((again[0], again[1]), (0, out[out.index("supervised") :]))
      self.assertEqual((self.run_dir / "result.json").stat().st_mtime_ns, before)
    with self.subTest("another"):
      code, _, err = run(self.run_dir, *arguments, "--rho=0.5")
      self.assertEqual(code, 2)
      self.assertRegex(err, r"rho: 0\.05 there, 0\.5 now")

  def test_interrupted_and_resumed_equals_uninterrupted(self):
    arguments = (
      *TINY,
      OWN_NETWORK,
      "--num_epochs=3",
      "--val_fraction=0.2",
      "--augment=basic",
      "--hessian_eigenvalues=0",
      "--log_every=1",
    )
    whole, cut = self.run_dir / "whole", self.run_dir / "cut"
    self.assertEqual(run(whole, *arguments)[0], 0)

    def interrupting(description, execution):
      parts = supervised.build(description, execution)

      def validate_and_be_killed(params, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        return parts.validate(params, stop)

      return dataclasses.replace(parts, validate=validate_and_be_killed)

    code, _, err = run(cut, *arguments, build=interrupting)
    self.assertEqual(code, 143, err)
    self.assertEqual(newest_checkpoint(cut)[0], "step_00000002.npz")
    unfinished = jsharp.load(cut)
    self.assertFalse((cut / "config.json").exists())
    self.assertEqual(run(cut, *arguments)[0], 0)
    self.assertEqual(unfinished.description, jsharp.load(cut).description)
    self.assertEqual(newest_checkpoint(cut), newest_checkpoint(whole))
    self.assertEqual(records(cut), records(whole))
    results = [json.loads((path / "result.json").read_text()) for path in (whole, cut)]
    self.assertNotIn("hessian_eigenvalues_end", results[0])
    for name in results[0]:
      if name.startswith(("test_", "train_")):
        self.assertEqual(results[0][name], results[1][name])

  def test_momentum_sam_is_evaluated_at_the_centre(self):
    arguments = (*TINY, OWN_NETWORK, "--algorithm=momentum_sam")
    arguments = (*arguments, "--hessian_eigenvalues=0")
    code, _, err = run(self.run_dir, *arguments)
    self.assertEqual(code, 0, err)
    result = json.loads((self.run_dir / "result.json").read_text())
    self.assertEqual(result["gradients_per_step"], 1)
    self.assertEqual(
      result["protocol"]["checkpoint"]["chosen by"], "nothing: the last one"
    )

  def test_a_network_and_a_variant_of_ones_own(self):
    own = (OWN_NETWORK, f"--algorithm={OWN}:ShareOfSAM", "--share=0.25")
    arguments = (*TINY, *own, "--sam_every=3", "--hessian_eigenvalues=0")
    code, _, err = run(self.run_dir / "a", *arguments)
    self.assertEqual(code, 0, err)
    result = json.loads((self.run_dir / "a" / "result.json").read_text())
    self.assertEqual(result["protocol"]["algorithm"]["share"], 0.25)
    self.assertEqual((result["num_steps"], result["num_gradients"]), (3, 4))
    num_parameters = 4 * (64 + 1 + 2) + 3 * (4 + 1)
    self.assertEqual(result["protocol"]["model"]["num_parameters"], num_parameters)
    classifier = jsharp.load(self.run_dir / "a")
    self.assertEqual(classifier.description.network.name, f"{OWN}:NormalisedOptions")
    code, _, err = run(self.run_dir / "a", *arguments, "--share=0.5")
    self.assertEqual(code, 2)
    self.assertRegex(err, r"share: 0\.25 there, 0\.5 now")

  def test_folders_of_images(self):
    root = fixtures.temporary_dir(self)
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
      for name in "ab":
        images = fixtures.images(ord(name), count)
        names = {
          f"{split}/{name}/{i}.png": fixtures.png(x) for i, x in enumerate(images)
        }
        fixtures.write_files(root, names)
    arguments = (*SMALL, "--dataset=image_folder", f"--data_dir={root}")
    network = ("--model=wide_resnet", "--depth=10", "--widen=1")
    arguments = (*arguments, *network, "--hessian_eigenvalues=0")
    code, _, err = run(self.run_dir / "a", *arguments, "--algorithm=sgd")
    self.assertEqual(code, 0, err)
    classifier = jsharp.load(self.run_dir / "a")
    self.assertEqual(classifier.description.network.label, "wide_resnet10x1")
    result = json.loads((self.run_dir / "a" / "result.json").read_text())
    self.assertEqual(result["num_eval_examples"], 6)
    self.assertIn("4 examples", result["protocol"]["checkpoint"]["chosen by"])
    code, _, err = run(self.run_dir / "b", *arguments, "--val_fraction=0.5")
    self.assertEqual(code, 2)
    self.assertRegex(err, "--val_fraction=0.5, but the data have a val split")

  @parameterized.named_parameters(
    ("no_data", ["--dataset=image_folder"], "needs files.*train/.*characters"),
    ("no_tfds", ["--dataset=tfds:cifar10"], "needs files: pass the directory"),
    ("nowhere", ["--dataset=image_folder", "--data_dir=/nowhere"], "does not exist"),
    ("depth", ["--depth=9"], "depth must be 6n \\+ 2 .* got 9. Use 8"),
    ("batch", [*THREE, "--batch_size=46"], "batch_size is 46, but there are 45"),
    ("option", ["--algorithm=sgd", "--rho=1"], "--rho has no effect .*=sgd; .* sam,"),
    (
      "too_many",
      [*THREE, "--train_examples=46"],
      "--train_examples: .* 46, .* 45 examples, 15",
    ),
    (
      "too_few",
      [*THREE, "--train_examples=2"],
      "--train_examples: .* is 2, .* are 3 classes",
    ),
  )
  def test_refuses_before_training(self, arguments, message):
    run_dir = self.run_dir / "never_made"
    code, out, err = run(run_dir, *SMALL, *arguments)
    self.assertEqual((code, out), (2, ""))
    self.assertRegex(err, f"^supervised: .*{message}")
    self.assertFalse(run_dir.exists())


if __name__ == "__main__":
  absltest.main()
