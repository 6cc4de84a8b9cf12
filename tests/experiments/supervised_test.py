"""Tests of ordinary classification as a program: every algorithm, resume, refusals."""

import contextlib
import inspect
import io
import json
import os
import pathlib
import signal
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from absl.testing import absltest, parameterized
from jax.experimental.compilation_cache import compilation_cache

import jsharp
from experiments import (
  program,
  session,
  supervised,
  supervised_flags,
  supervised_parts,
)
from tests.data import fixtures
from tests.experiments.program_test import newest_checkpoint, records

TINY = (
  "--num_characters=3",
  "--image_size=8",
  "--batch_size=15",
  "--num_epochs=1",
  "--hessian_examples=16",
  "--hessian_steps=2",
)
LINKS = sorted(set(supervised_flags.ALGORITHMS) - {"sgd", "momentum_sam"})


def parse(run_dir, *arguments):
  values = flags.FlagValues()
  supervised.define_flags(values)
  values(["program", "--compilation_cache_dir=", f"--run_dir={run_dir}", *arguments])
  return values


def settings(*arguments):
  values = parse("unused", *TINY, *arguments)
  chosen = {name: values[name].value for name in values}
  return program.resolve("supervised", chosen, supervised_flags.complete)


def run(run_dir, *arguments, build=supervised.build):
  """Returns exit code, standard output and standard error."""
  values = parse(run_dir, *arguments)
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = program.run(
      "supervised",
      supervised.define_flags,
      build,
      values,
      supervised_flags.complete,
    )
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
      "--model=wide_resnet",
      "--depth=10",
      "--widen=1",
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
    self.assertEqual(result["settings"]["train_examples"], 32)
    self.assertContainsSubset(("train", "test"), protocol["data"])
    for name in ("curves.png", "flags.txt", "run.json"):
      self.assertTrue((self.run_dir / name).exists(), name)
    self.assertRegex(out, r"test error +\d+\.\d\d ± .* %")
    self.assertRegex(out, r"Hessian, end +\S+, \S+")
    with self.subTest("again"):
      before = (self.run_dir / "result.json").stat().st_mtime_ns
      again = run(self.run_dir, *arguments)
      self.assertEqual((again[0], again[1]), (0, out[out.index("supervised") :]))
      self.assertEqual((self.run_dir / "result.json").stat().st_mtime_ns, before)
    with self.subTest("another"):
      code, _, err = run(self.run_dir, *arguments, "--rho=0.5")
      self.assertEqual(code, 2)
      self.assertRegex(err, r"rho: null there, 0\.5 now")

  def test_interrupted_and_resumed_equals_uninterrupted(self):
    arguments = (
      *TINY,
      "--num_epochs=3",
      "--val_fraction=0.2",
      "--augment=basic",
      "--hessian_eigenvalues=0",
      "--log_every=1",
    )
    # Compiled once for all three starts, which takes longer than the steps.
    arguments = (*arguments, f"--compilation_cache_dir={self.run_dir / 'cache'}")
    compilation_cache.reset_cache()
    self.addCleanup(compilation_cache.reset_cache)
    self.addCleanup(jax.config.update, "jax_compilation_cache_dir", None)
    whole, cut = self.run_dir / "whole", self.run_dir / "cut"
    self.assertEqual(run(whole, *arguments)[0], 0)

    def interrupting(settings):
      parts = supervised.build(settings)

      def validate_and_be_killed(params, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        return parts.validate(params, stop)

      return session.Parts(**{**vars(parts), "validate": validate_and_be_killed})

    code, _, err = run(cut, *arguments, build=interrupting)
    self.assertEqual(code, 143, err)
    self.assertEqual(newest_checkpoint(cut)[0], "step_00000002.npz")
    self.assertEqual(run(cut, *arguments)[0], 0)
    self.assertEqual(newest_checkpoint(cut), newest_checkpoint(whole))
    self.assertEqual(records(cut), records(whole))
    results = [json.loads((path / "result.json").read_text()) for path in (whole, cut)]
    self.assertNotIn("hessian_eigenvalues_end", results[0])
    for name in results[0]:
      if name.startswith(("test_", "train_")):
        self.assertEqual(results[0][name], results[1][name])

  def test_momentum_sam_is_evaluated_at_the_centre(self):
    arguments = (*TINY, "--algorithm=momentum_sam", "--hessian_eigenvalues=0")
    code, _, err = run(self.run_dir, *arguments)
    self.assertEqual(code, 0, err)
    result = json.loads((self.run_dir / "result.json").read_text())
    self.assertEqual(result["gradients_per_step"], 1)
    self.assertEqual(
      result["protocol"]["checkpoint"]["chosen by"], "nothing: the last one"
    )

  def test_folders_of_images(self):
    root = fixtures.temporary_dir(self)
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
      for name in "ab":
        images = fixtures.images(ord(name), count)
        names = {
          f"{split}/{name}/{i}.png": fixtures.png(x) for i, x in enumerate(images)
        }
        fixtures.write_files(root, names)
    arguments = (
      *TINY,
      "--dataset=image_folder",
      f"--data_dir={root}",
      "--image_size=8",
    )
    code, _, err = run(self.run_dir / "a", *arguments, "--algorithm=sgd")
    self.assertEqual(code, 0, err)
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
    ("depth", ["--depth=9"], "depth must be 6n \\+ 2 .* got 9. Take 8"),
    ("batch", ["--batch_size=46"], "batch_size is 46, but there are 45"),
    ("option", ["--algorithm=sgd", "--rho=1"], "--rho is no option"),
    (
      "too_many",
      ["--train_examples=46"],
      "--train_examples: .* 46, .* 45 examples, 15",
    ),
    ("too_few", ["--train_examples=2"], "--train_examples: .* is 2, .* are 3 classes"),
  )
  def test_refuses_before_training(self, arguments, message):
    run_dir = self.run_dir / "never_made"
    code, out, err = run(run_dir, *TINY, *arguments)
    self.assertEqual((code, out), (2, ""))
    self.assertRegex(err, f"^supervised: .*{message}")
    self.assertFalse(run_dir.exists())


class DataTest(absltest.TestCase):
  def test_a_part_of_the_training_images_is_chosen_after_validation_before_noise(self):
    held = ("--val_fraction=0.2", "--data_seed=5")
    whole = supervised_parts.load_splits(settings(*held))
    part = supervised_parts.load_splits(settings(*held, "--train_examples=20"))
    np.testing.assert_array_equal(part.val.images, whole.val.images)
    np.testing.assert_array_equal(part.train.mean, whole.train.mean)
    counts = np.bincount(part.train.labels)
    self.assertEqual((counts.sum(), np.ptp(counts)), (20, 1))
    known = {image.tobytes() for image in whole.train.images}
    chosen = {image.tobytes() for image in part.train.images}
    self.assertLen(chosen, 20)
    self.assertContainsSubset(chosen, known)
    others = ("--train_examples=20", "--seed=3", "--algorithm=sgd", "--label_noise=0.5")
    noisy = supervised_parts.load_splits(settings(*held, *others))
    np.testing.assert_array_equal(noisy.train.images, part.train.images)
    self.assertEqual((noisy.train.labels != part.train.labels).sum(), noisy.num_wrong)
    other = settings("--val_fraction=0.2", "--data_seed=6", "--train_examples=20")
    moved = supervised_parts.load_splits(other)
    self.assertFalse(np.array_equal(moved.train.images, part.train.images))


class OptimizerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  @staticmethod
  def descend(chosen, num_steps=6):
    """Steps on a quartic; returns the end and how often a gradient was computed."""
    optimizer = supervised_parts.make_optimizer(
      chosen, num_steps=num_steps, per_epoch=2
    )
    optimizer = optax.with_extra_args_support(optimizer)
    calls = []

    def gradient(w):
      jax.debug.callback(lambda: calls.append(1))
      return 4 * w**3

    w = jnp.array([1.0, -0.5])
    state = optimizer.init(w)
    for _ in range(num_steps):
      grads = gradient(w)
      updates, state = optimizer.update(grads, state, w, grad_fn=gradient, value=0.0)
      w = optax.apply_updates(w, updates)
    jax.effects_barrier()
    return np.asarray(w), len(calls)

  @parameterized.parameters(*supervised_flags.ALGORITHMS)
  def test_gradients_are_counted_as_they_are_computed(self, algorithm):
    chosen = settings(f"--algorithm={algorithm}", "--lr=0.01")
    w, calls = self.descend(chosen)
    self.assertTrue(np.all(np.isfinite(w)))
    counted = supervised_parts.count_gradients(chosen, num_steps=6, per_epoch=2)
    self.assertEqual(calls, counted["num_gradients"])

  @parameterized.product(
    algorithm=LINKS, arguments=(["--sam_every=2"], ["--sam_every=3", "--sam_start=1.5"])
  )
  def test_and_so_are_those_that_are_left_out(self, algorithm, arguments):
    chosen = settings(f"--algorithm={algorithm}", *arguments)
    _, calls = self.descend(chosen)
    counted = supervised_parts.count_gradients(chosen, num_steps=6, per_epoch=2)
    self.assertEqual(calls, counted["num_gradients"])
    self.assertLess(calls, 12)

  def test_how_often_looksam_looks_is_its_own_default(self):
    looksam = jsharp.looksam
    with mock.patch.object(
      jsharp, "looksam", lambda rho, every=2, **rest: looksam(rho, every=every, **rest)
    ):
      chosen = settings("--algorithm=looksam", "--rho=0.1")
      _, calls = self.descend(chosen)
      counted = supervised_parts.count_gradients(chosen, num_steps=6, per_epoch=2)
    self.assertEqual((calls, counted["num_gradients"]), (9, 9))

  def test_the_chain_is_sam_then_decay_then_clipping_then_nesterov(self):
    arguments = ("--lr=0.1", "--weight_decay=0.5", "--clip_gradient=2", "--rho=0.3")
    w, _ = self.descend(settings(*arguments), num_steps=4)
    expected, trace = np.array([1.0, -0.5]), np.zeros(2)
    for step in range(4):
      g = 4 * expected**3
      g = 4 * (expected + 0.3 * g / np.linalg.norm(g)) ** 3 + 0.5 * expected
      g *= min(1, 2 / np.linalg.norm(g))
      trace = g + 0.9 * trace
      rate = 0.1 * (1 + np.cos(np.pi * step / 4)) / 2
      expected = expected - rate * (g + 0.9 * trace)
    np.testing.assert_allclose(w, expected, rtol=1e-5)

  def test_characters_are_never_mirrored(self):
    self.assertIsNone(supervised_parts.make_augment(settings()))
    image = jnp.arange(64.0).reshape(8, 8, 1)
    keys = jax.random.split(jax.random.key(0), 50)
    for dataset, mirrored in (("characters", False), ("tfds:cifar10", True)):
      chosen = settings("--augment=basic", f"--dataset={dataset}")
      images = jax.vmap(supervised_parts.make_augment(chosen), (0, None))(keys, image)
      falling = np.diff(np.asarray(images)[:, 4, 3:6, 0], axis=1).min(axis=1) == -1
      self.assertEqual(falling.any(), mirrored)

  def test_every_option_is_an_argument_of_its_constructor(self):
    for algorithm, options in supervised_flags.ALGORITHMS.items():
      if algorithm == "sgd":
        continue
      parameters = inspect.signature(getattr(jsharp, algorithm)).parameters
      self.assertContainsSubset(("rho", *options), parameters, algorithm)
    arguments = supervised_parts.algorithm_arguments(
      settings("--algorithm=wsam", "--gamma=0.8")
    )
    self.assertEqual((arguments["gamma"], arguments["rho"]), (0.8, 0.05))


if __name__ == "__main__":
  absltest.main()
