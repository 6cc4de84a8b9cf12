"""Tests of the experiments as programs: two steps each, resume, refusals."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import tempfile
import zipfile
from unittest import mock

import jax
from absl import flags
from absl.testing import absltest, parameterized
from jax.experimental.compilation_cache import compilation_cache

import jsharp
from experiments import _program, miniimagenet, omniglot, sinusoid
from jsharp._commands import evaluate
from jsharp.training import RunDirectory, processes
from tests import toy_runs

EXPERIMENTS = {
  module.EXPERIMENT.name: module.EXPERIMENT
  for module in (miniimagenet, omniglot, sinusoid)
}
TINY = ("--num_tasks=2", "--val_tasks=3", "--eval_tasks=4", "--eval_every=2")
TINY_SINES = (*TINY, "--num_eval_inner_steps=1")
TINY_IMAGES = (
  *TINY,
  "--dataset=characters",
  "--way=3",
  "--query_shot=2",
  "--num_filters=4",
  "--image_size=16",
  "--num_inner_steps=1",
  "--num_eval_inner_steps=1",
)
SMALL_NETWORK = "--model=jsharp.models.mlp:SineNetwork"
TWO_STEPS = (*TINY_IMAGES, "--model=mlp", "--algorithm=fomaml", "--num_steps=2")


def run(experiment, run_dir, *arguments, build=None):
  """Returns exit code, standard output and standard error."""
  chosen = EXPERIMENTS[experiment]
  chosen = dataclasses.replace(chosen, build=build or chosen.build)
  words = ["--compilation_cache_dir=", f"--run_dir={run_dir}", *arguments]
  out, err = io.StringIO(), io.StringIO()
  with (
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    toy_runs.suites_cache(),
  ):
    code = _program.start(chosen, words, flags.FlagValues())
  return code, out.getvalue(), err.getvalue()


def newest_checkpoint(run_dir):
  path = sorted((run_dir / "checkpoints").glob("step_*.npz"))[-1]
  with zipfile.ZipFile(path) as archive:
    leaves = json.loads(archive.read("metadata.json"))["leaves"]
  return path.name, leaves


def records(run_dir):
  timing = ("wall_time", "tasks_per_second", "examples_per_second", "sha256")
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  return [
    {name: value for name, value in json.loads(line).items() if name not in timing}
    for line in lines
  ]


class ProgramTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # optax's Adam multiplies floats by its integer count.
    self.enter_context(jax.numpy_dtype_promotion("standard"))
    self.run_dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  @parameterized.named_parameters(
    ("omniglot", "omniglot", []),
    ("miniimagenet", "miniimagenet", [SMALL_NETWORK]),
  )
  def test_two_steps_of_classification(self, experiment, arguments):
    arguments = [*TWO_STEPS, *arguments]
    code, out, err = run(experiment, self.run_dir, *arguments)
    self.assertEqual(code, 0, err)
    self.assertIn("%  transductive", out)
    result = json.loads((self.run_dir / "result.json").read_text())
    for name in ("test_accuracy", "test_accuracy_inductive"):
      self.assertBetween(result[name], 0, 1)
      self.assertGreaterEqual(result[f"{name}_ci95"], 0)
    self.assertEqual(result["num_eval_tasks"], 4)
    self.assertGreater(result["tasks_per_second"], 0)
    protocol = result["protocol"]
    self.assertEqual(protocol["algorithm"]["name"], "fomaml")
    self.assertEqual(protocol["checkpoint"]["step"], 2)
    self.assertStartsWith(protocol["checkpoint"]["as good"], "0 of 0 others, within ")
    self.assertEqual(protocol["inner loop"]["num_eval_inner_steps"], 1)
    self.assertContainsSubset(
      ("normalisation", "model", "data", "device", "versions", "git_commit", "command"),
      protocol,
    )
    self.assertLen({protocol["data"][split] for split in ("train", "val", "test")}, 3)
    for name in ("curves.png", "flags.txt", "run.json", "description.json"):
      self.assertTrue((self.run_dir / name).exists(), name)
    with self.subTest("the learner"):
      learner = jsharp.load(self.run_dir)
      self.assertEqual(learner.description.algorithm.name, "fomaml")
      self.assertEqual(learner.description.input_shape, (16, 16, 1))
      saved = jax.tree.leaves(jsharp.load(self.run_dir, step=2).params)
      for leaf, other in zip(jax.tree.leaves(learner.params), saved, strict=True):
        self.assertTrue((leaf == other).all())
    with self.subTest("measured again"):
      if experiment == "omniglot":
        self.check_measured_again(result)
    with self.subTest("again"):
      before = (self.run_dir / "result.json").stat().st_mtime_ns
      again = run(experiment, self.run_dir, *arguments)
      self.assertEqual((again[0], again[1]), (0, out[out.index(experiment) :]))
      self.assertEqual((self.run_dir / "result.json").stat().st_mtime_ns, before)

  def check_measured_again(self, result):
    """A finished run is measured as it was tested unless something else is asked."""
    for policy, name in (("transductive", ""), ("per_query", "_inductive")):
      evaluate.start(
        [f"--model={self.run_dir}", f"--policy={policy}", f"--eval_name={policy}"],
        flags.FlagValues(),
      )
      path = self.run_dir / "evaluations" / f"{policy}.json"
      figures = json.loads(path.read_text())["figures"]
      expected = result[f"test_accuracy{name}"]
      self.assertAlmostEqual(figures["test_accuracy"], expected, places=6)

  def test_two_steps_of_regression(self):
    arguments = (*TINY, "--num_steps=2", "--num_eval_inner_steps=3")
    code, out, err = run("sinusoid", self.run_dir, *arguments)
    self.assertEqual(code, 0, err)
    result = json.loads((self.run_dir / "result.json").read_text())
    self.assertLen(result["test_mse_by_step"], 4)
    self.assertLen(result["test_mse_by_step_ci95"], 4)
    self.assertLen(set(result["test_mse_by_step"]), 4)
    self.assertIn("test mse, 3 steps", out)

  def test_interrupted_and_resumed_equals_uninterrupted(self):
    arguments = (*TINY_IMAGES, SMALL_NETWORK, "--algorithm=fomaml", "--log_every=1")
    # Compiled anew for one run, loaded for the other: the bits must not differ.
    cache = self.run_dir / "cache"
    arguments = (*arguments, f"--compilation_cache_dir={cache}")
    compilation_cache.reset_cache()
    self.addCleanup(compilation_cache.reset_cache)
    before = jax.config.jax_compilation_cache_dir
    self.addCleanup(jax.config.update, "jax_compilation_cache_dir", before)
    whole, cut = self.run_dir / "whole", self.run_dir / "cut"
    self.assertEqual(run("omniglot", whole, *arguments, "--num_steps=4")[0], 0)

    def interrupting(description, execution):
      parts = omniglot.EXPERIMENT.build(description, execution)

      def draw_and_be_killed(params, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        return parts.validate(params, stop)

      return dataclasses.replace(parts, validate=draw_and_be_killed)

    code, _, err = run("omniglot", cut, *arguments, "--num_steps=4", build=interrupting)
    self.assertEqual(code, 143)
    self.assertIn("resume with the same command", err)
    self.assertFalse((cut / "result.json").exists())
    self.assertEqual(newest_checkpoint(cut)[0], "step_00000002.npz")
    self.assertEqual(run("omniglot", cut, *arguments, "--num_steps=4")[0], 0)

    self.assertNotEmpty(list(cache.iterdir()))
    self.assertEqual(newest_checkpoint(cut), newest_checkpoint(whole))
    self.assertEqual(records(cut), records(whole))
    results = [json.loads((path / "result.json").read_text()) for path in (whole, cut)]
    for name in results[0]:
      if name.startswith("test_"):
        self.assertEqual(results[0][name], results[1][name])

  def test_flags_txt_reproduces_and_a_longer_run_goes_on(self):
    self.assertEqual(
      run("sinusoid", self.run_dir / "a", *TINY_SINES, "--num_steps=2")[0], 0
    )
    again = f"--flagfile={self.run_dir / 'a' / 'flags.txt'}"
    # The flagfile names its own run directory, which the later flag overrides.
    b = f"--run_dir={self.run_dir / 'b'}"
    self.assertEqual(run("sinusoid", "unused", again, b)[0], 0)
    self.assertEqual(
      newest_checkpoint(self.run_dir / "a"), newest_checkpoint(self.run_dir / "b")
    )
    code, out, _ = run("sinusoid", "unused", again, b, "--num_steps=4")
    self.assertEqual(code, 0)
    self.assertEqual(newest_checkpoint(self.run_dir / "b")[0], "step_00000004.npz")
    longer = "--num_steps=4"
    code, out, _ = run("sinusoid", "unused", again, b, longer, "--eval_tasks=6")
    self.assertRegex(out, r"test tasks +6\b")
    before = (self.run_dir / "b" / "result.json").read_bytes()
    code, _, err = run("sinusoid", "unused", again, b, "--eval_tasks=6")
    self.assertEqual(code, 1)
    self.assertRegex(
      err, "run_dir=.*b has already taken 4 steps, more than num_steps=2"
    )
    self.assertEqual((self.run_dir / "b" / "result.json").read_bytes(), before)

  def test_refuses_another_run(self):
    run("sinusoid", self.run_dir, *TINY_SINES, "--num_steps=2")
    code, _, err = run(
      "sinusoid", self.run_dir, *TINY_SINES, "--num_steps=2", "--inner_lr=0.5"
    )
    self.assertEqual(code, 2)
    self.assertRegex(err, r"algorithm\.inner_lr: 0\.01 there, 0\.5 now")

  @parameterized.named_parameters(
    ("no_data", "omniglot", (), "images_background.zip.*--dataset=characters"),
    ("no_photographs", "miniimagenet", (), "(?s)CSV.*--dataset=characters"),
    ("empty_path", "omniglot", ("--data_dir=/nowhere",), "/nowhere does not exist"),
    ("way", "omniglot", (*TINY_IMAGES, "--way=61"), "way is 61.*'val'.*60"),
    ("shot", "omniglot", (*TINY_IMAGES, "--shot=19"), "shot.*19 \\+ 2.*20"),
    (
      "reuse_without_outer",
      "omniglot",
      (*TINY_IMAGES, "--algorithm=sharp_maml_low", "--reuse_perturbation"),
      "reuse_perturbation",
    ),
    ("pooling", "miniimagenet", (*TINY_IMAGES, "--image_size=8"), "at least 16"),
  )
  def test_refuses_before_training(self, experiment, arguments, message):
    run_dir = self.run_dir / "never_made"
    code, out, err = run(experiment, run_dir, *arguments)
    self.assertEqual((code, out), (2, ""))
    self.assertRegex(err, f"^{experiment}: ")
    self.assertRegex(err, message)
    self.assertFalse(run_dir.exists())

  def test_refuses_a_run_directory_that_cannot_be_made(self):
    (self.run_dir / "file").write_text("")
    code, _, err = run("sinusoid", self.run_dir / "file" / "run", *TINY_SINES)
    self.assertEqual(code, 2)
    self.assertStartsWith(err, "sinusoid: cannot write to run_dir=")

  def test_what_becomes_of_a_run_when_its_disk_or_directory_fails(self):
    arguments = ("sinusoid", self.run_dir, *TINY_SINES, "--num_steps=2")
    fsync = os.fsync
    # In the order in which they are written: each start gets further.
    for name, code in (("flags.txt", 2), ("test_tasks.csv", 1), ("curves.png", 1)):

      def full(descriptor, name=name):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
          raise OSError(28, "No space left on device")
        fsync(descriptor)

      with mock.patch("os.fsync", full):
        found, _, err = run(*arguments)
      self.assertEqual(found, code, err)
      self.assertRegex(
        err, f"sinusoid: cannot write .*/{name} .No space left on device"
      )
    path = self.run_dir / "result.json"
    result = json.loads(path.read_text())
    self.assertEqual(run(*arguments)[0], 0)
    path.write_text(path.read_text().replace('"num_steps": 2', '"num_steps": 3'))
    code, _, err = run(*arguments)
    self.assertEqual(code, 0, err)
    self.assertIn("result.json is damaged: its SHA-256 differs", err)
    anew = json.loads(path.read_text())
    self.assertEqual(anew["test_mse_by_step"], result["test_mse_by_step"])
    with self.subTest("a damaged learner"):
      path = self.run_dir / "model.safetensors"
      whole = path.read_bytes()
      path.write_bytes(whole[:-1] + b"x")
      code, _, err = run(*arguments)
      self.assertEqual(code, 0, err)
      self.assertIn("model.safetensors is missing, damaged or from", err)
      self.assertEqual(path.read_bytes(), whole)
      path = self.run_dir / "result.json"
    with self.subTest("in use"):
      identity = json.loads((self.run_dir / "run.json").read_text())["identity"]
      path.unlink()
      with RunDirectory.open(self.run_dir, identity=identity):
        code, _, err = run(*arguments)
      self.assertEqual(code, processes.GIVEN_UP)
      self.assertIn(f"is in use by process {os.getpid()}", err)
    with self.subTest("replaced while it trained"):
      self.check_replaced()

  def check_replaced(self):
    """A run whose directory became another's writes nothing there."""

    def replacing(description, execution):
      parts = sinusoid.EXPERIMENT.build(description, execution)

      def test(trained, stop):
        shutil.rmtree(self.run_dir / "a")
        with RunDirectory.open(self.run_dir / "a", identity={}):
          return parts.test(trained, stop)

      return dataclasses.replace(parts, test=test)

    words = ("sinusoid", self.run_dir / "a", *TINY_SINES, "--num_steps=2")
    code, _, err = run(*words, build=replacing)
    self.assertEqual(code, 1)
    self.assertRegex(err, "run_dir=.*a was deleted or replaced while this run")
    self.assertCountEqual(os.listdir(self.run_dir / "a"), ["lock", "run.json"])

  def test_a_loss_that_is_not_finite_stops_the_run(self):
    code, _, err = run(
      "sinusoid", self.run_dir, *TINY_SINES, "--inner_lr=1e30", "--num_steps=5"
    )
    self.assertEqual(code, 1)
    self.assertRegex(err, "loss of task [01].* is not finite at meta-step 1;")


if __name__ == "__main__":
  absltest.main()
