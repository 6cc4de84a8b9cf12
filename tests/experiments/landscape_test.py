"""The landscape program: files, resuming, the table, refusals."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import signal
import tempfile
import types
from unittest import mock

import jax
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from jax.flatten_util import ravel_pytree

import jsharp
from experiments import (
  _landscape_runs,
  _program,
  landscape,
  omniglot,
  sinusoid,
)
from jsharp import analysis, options, training
from jsharp._files import read_table, write_json
from jsharp.analysis import plane
from jsharp.training import Checkpoints
from tests import toy_runs
from tests.experiments.program_test import SMALL_NETWORK

TRAINING = (
  "--dataset=characters",
  SMALL_NETWORK,
  "--image_size=8",
  "--algorithm=protonet",
  "--way=2",
  "--num_tasks=2",
  "--num_steps=2",
  "--query_shot=3",
  "--compilation_cache_dir=",
)
MEASURING = (
  "--num_tasks=3",
  "--grid=3",
  "--extent=0.5",
  "--trace_samples=2",
  "--average_samples=2",
  "--hessian_steps=2",
  "--radii=",
  "--adaptive_radii=",
  "--average_radii=",
  "--gap_tasks=3",
  "--compilation_cache_dir=",
)
NAMES = ("loss", "accuracy")
EVALUATE = jax.jit(lambda function, params: function(params))


def untrained(algorithm, params, sample_tasks, data, *, run, **_):
  """In place of `jsharp.training.train`: leaves what a run of two steps leaves."""
  state = algorithm.init(params)
  checkpoints = Checkpoints(run.path / "checkpoints")
  checkpoints.save(2, state, extra={})
  checkpoints.save_best(2, state.params, extra={"score": 0.0})
  return types.SimpleNamespace(
    state=state._replace(step=2),
    best_step=2,
    best_params=state.params,
    interrupted=False,
    tasks_per_second=1.0,
    damaged=(),
  )


def build(description, execution):
  parts = omniglot.EXPERIMENT.build(description, execution)
  return dataclasses.replace(parts, test=lambda trained, stop: {"num_eval_tasks": 2})


@functools.cache
def finished():
  """The directory of a run, as the program writes it, which the tests only read."""
  directory = tempfile.TemporaryDirectory()
  experiment = dataclasses.replace(omniglot.EXPERIMENT, build=build)
  arguments = [*TRAINING, f"--run_dir={directory.name}/run", "--eval_tasks=2"]
  with (
    jax.numpy_dtype_promotion("standard"),
    contextlib.redirect_stdout(io.StringIO()),
    mock.patch.object(training, "train", untrained),
    toy_runs.suites_cache(),
  ):
    assert _program.start(experiment, arguments, flags.FlagValues()) == 0
  return directory


def measure(runs, out, *arguments):
  """Returns exit code, standard output and standard error."""
  words = [f"--runs={','.join(map(str, runs))}", f"--out={out}", *arguments]
  stdout, stderr = io.StringIO(), io.StringIO()
  with (
    contextlib.redirect_stdout(stdout),
    contextlib.redirect_stderr(stderr),
    jax.numpy_dtype_promotion("standard"),
    toy_runs.suites_cache(),
  ):
    code = landscape.start(words, flags.FlagValues())
  return code, stdout.getvalue(), stderr.getvalue()


def described(experiment, *arguments):
  """What a run with these flags is."""
  given = experiment.program.parse(arguments, flags.FlagValues())
  return _program.described(experiment, given)


class LandscapeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.run = pathlib.Path(finished().name) / "run"

  def sibling(self, name, *arguments, scale=1.0):
    """A copy of the run with other flags and other best parameters."""
    path = self.root / name
    shutil.copytree(self.run, path)
    description = described(omniglot.EXPERIMENT, *TRAINING, *arguments)
    self.describe(path, description)
    size = description.data.image_size
    with jax.numpy_dtype_promotion("standard"):
      learner = jsharp.build(
        description.learner(
          problem="classification",
          num_outputs=description.tasks.largest_way,
          input_shape=(size, size, 1),
          source=description.data,
        )
      )
      params = jax.tree.map(lambda x: x * scale, learner.params)
    jsharp.save(learner.replace(params), path)
    return path

  def describe(self, path, description):
    """Makes a run pass for another one."""
    record = read_table(path / "description.json")
    record["run"] = options.to_json(description)
    write_json(path / "description.json", record)

  def maml(self):
    """A copy of the run that passes for one of MAML."""
    arguments = ("--algorithm=maml", "--num_eval_inner_steps=1", "--inner_lr=0.1")
    return self.sibling("maml", *arguments)

  def load(self, path=None, **changes):
    """What is measured of the run."""
    asked = landscape.Landscape(
      runs=(str(path or self.run),), out="out", num_tasks=3, measure=False, **changes
    )
    (run,) = _landscape_runs.read(asked, analysis.Plane())
    with jax.numpy_dtype_promotion("standard"):
      return _landscape_runs.load(run, asked)

  def with_path(self, path, points):
    """Gives a run a kept path: `points` are distances along two directions."""
    centre = self.load(path).params
    flat, unravel = ravel_pytree(centre)
    along = np.zeros((2, flat.size), np.float32)
    along[0, :2], along[1, 2:4] = [0.6, 0.8], [0.8, -0.6]
    checkpoints = Checkpoints(path / "checkpoints")
    moved = np.asarray(points, np.float32) @ along
    for step, point in enumerate(moved):
      checkpoints.save_path(step, unravel(flat + point))
    return path, lambda alpha, beta: unravel(flat + np.float32([alpha, beta]) @ along)

  def centre_losses(self, path=None, **changes):
    """The objective of each task at the trained parameters."""
    parts = self.load(path, **changes)
    with jax.numpy_dtype_promotion("standard"):
      return np.asarray(EVALUATE(parts.metrics, parts.params)["loss"])

  def test_pictures_table_and_resuming(self):
    runs = [
      self.run,
      self.sibling("b", "--seed=1", scale=0.5),
      self.sibling("c", "--seed=2", scale=2.0),
    ]
    self.with_path(runs[1], [(1, 0), (0, 1), (0, 0)])
    whole, cut = self.root / "whole", self.root / "cut"
    code, out, err = measure(runs, whole, *MEASURING)
    self.assertEqual(code, 0, err)
    for name in ("contours.png", "surfaces.png", "sharpness.md", "sharpness.json"):
      self.assertTrue((whole / name).exists(), name)
      self.assertIn(name, out)

    with self.subTest("numbers"):
      arrays = np.load(whole / "landscape.npz")
      self.assertEqual(arrays["loss"].shape, (3, 3, 3))
      self.assertEqual(arrays["runs"][1], "protonet, seed 1")
      np.testing.assert_allclose(arrays["axis"], [-0.5, 0, 0.5])
      found = json.loads((whole / "sharpness.json").read_text())
      first, _, last = found["runs"]
      gap = first["gap"]
      self.assertAlmostEqual(gap["loss_gap"], gap["train_loss"] - gap["test_loss"])
      self.assertNotEqual(first["trace"], last["trace"])
      tau = found["rank_correlations"]["trace"]["accuracy_gap"]
      self.assertEqual(tau["num_runs"], 3)
      self.assertIn("| largest eigenvalue |", out)
      self.assertIn("Kendall's tau-b over 3 runs", out)

    with self.subTest("a path that random directions do not show"):
      share = found["runs"][1]["path_share"]
      self.assertBetween(share, 0, 0.01)
      self.assertEqual(arrays["path_1"].shape, (3, 2))
      self.assertNotIn("path_0", arrays)
      shown = f"{100 * share:.2g} %"
      self.assertIn(
        f"protonet, seed 1: {shown} of its path in the plane; it is not", out
      )
      self.assertIn(f"| path within the plane | not kept | {shown} | not kept |", out)

    with self.subTest("centre"):
      np.testing.assert_allclose(
        arrays["loss"][0, 1, 1], self.centre_losses().mean(), rtol=1e-5
      )

    with self.subTest("resuming"):
      code, _, err = self.interrupted(runs, cut)
      self.assertEqual(code, 143)
      self.assertIn("resume with the same command", err)
      records = (cut / "metrics.jsonl").read_text()
      self.assertLen(records.splitlines(), 3)  # A path and two rows.
      with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"run": 0, "row": 2, "lo')  # A kill while writing.
      self.assertEqual(measure(runs, cut, *MEASURING)[0], 0)
      again = np.load(cut / "landscape.npz")
      for name in NAMES:
        np.testing.assert_array_equal(again[name], arrays[name])
      for name in ("runs", "rank_correlations"):
        after = json.loads((cut / "sharpness.json").read_text())
        self.assertEqual(after[name], found[name])

    with (
      self.subTest("drawing again computes nothing"),
      mock.patch.object(_landscape_runs, "load", side_effect=AssertionError),
    ):
      self.assertEqual(measure(runs, whole, *MEASURING, "--ceiling=2")[0], 0)
    with self.subTest("other settings are refused"):
      code, _, err = measure(runs, whole, *MEASURING, "--seed=5")
      self.assertEqual(code, 2)
      self.assertRegex(err, "--out=.*other settings")
      self.assertIn("seed: 0 there, 5 now", err)

  def test_the_planes_of_paths(self):
    bend = np.array([(-3.0, -1.0), (-2.0, 0.5), (1.0, -0.25)])
    later = [(9.0, 9.0)]  # Of a longer run that is not finished.
    one, at = self.with_path(self.sibling("one", "--seed=1"), [*bend, *later])
    two, _ = self.with_path(self.sibling("two", "--seed=2"), [*(-0.5 * bend), *later])
    arguments = (*MEASURING, "--plane=path", "--nomeasure", "--extent=1")
    whole, cut = self.root / "whole", self.root / "cut"
    plot_contours = analysis.plot_contours
    with mock.patch.object(analysis, "plot_contours", wraps=plot_contours) as plot:
      code, out, err = measure([one, two], whole, *arguments)
    self.assertEqual(code, 0, err)
    arrays = np.load(whole / "landscape.npz")
    path, alphas, betas = (arrays[name] for name in ("path_0", "alphas", "betas"))

    with self.subTest("the plane is that of the path"):
      # Their principal directions are not those of `bend`, distances are the same.
      np.testing.assert_allclose(
        np.linalg.norm(path, axis=1), np.linalg.norm(bend, axis=1), rtol=1e-4
      )
      self.assertLess(path[0].max(), 0)
      turn = np.linalg.lstsq(path, bend, rcond=None)[0]
      metrics = self.load(one).metrics
      point = at(*(np.array([alphas[0, 2], betas[0, 0]]) @ turn))
      with jax.numpy_dtype_promotion("standard"):
        expected = EVALUATE(metrics, point)["loss"].mean()
      np.testing.assert_allclose(arrays["loss"][0, 2, 0], expected, rtol=1e-5)
      np.testing.assert_allclose(np.abs(arrays["path_1"]), np.abs(path) / 2, rtol=1e-3)

    with self.subTest("the whole path lies inside squares of one size"):
      for name, x, y in zip(("path_0", "path_1"), alphas, betas, strict=True):
        self.assertTrue((np.abs(arrays[name] - [x[1], y[1]]) < x[2] - x[1]).all())
      sides = np.stack([alphas, betas])[..., -1] - np.stack([alphas, betas])[..., 0]
      np.testing.assert_allclose(sides, 1.24 * np.ptp(path[:, 0]), rtol=1e-6)
      lines = (whole / "metrics.jsonl").read_text().splitlines()
      records = [json.loads(line) for line in lines]
      paths = [np.array(r["path"]["coordinates"]) for r in records if "path" in r]
      (nearer, _), _ = analysis.Plane(plane="path", extent=0.5, grid=3).axes(2, paths)
      np.testing.assert_allclose(nearer, alphas[0] / 2)

    with self.subTest("what the picture says"):
      self.assertIn("protonet, seed 1: 100 % of its path in the plane\n", out)
      self.assertLen(plot.call_args.kwargs["trajectories"], 2)
      self.assertIn("each run's own path", plot.call_args.kwargs["title"])

    with self.subTest("resuming"):
      code, _, _ = self.interrupted([one, two], cut, *arguments)
      self.assertEqual(code, 143)
      (last := one / "checkpoints" / "path_00000001.npz").rename(self.root / "aside")
      self.assertLen((cut / "metrics.jsonl").read_text().splitlines(), 4)
      code, _, err = measure([one, two], cut, *arguments)
      self.assertEqual(code, 2)
      self.assertRegex(err, "path saved in .*one is not the one.*restore its files")
      (self.root / "aside").rename(last)
      self.assertEqual(measure([one, two], cut, *arguments)[0], 0)
      again = np.load(cut / "landscape.npz")
      np.testing.assert_array_equal(again["loss"], arrays["loss"])

  def test_refuses_planes_without_a_path(self):
    straight, _ = self.with_path(self.sibling("straight"), [(1, 1), (0, 0)])
    for run, argument, message in (
      (
        self.run,
        "--plane=path",
        "no saved path.*random, or train again:\n.*keep_path",
      ),
      (straight, "--plane=path", "straight does not span a plane; .*eval_every"),
      (straight, "--dimensions=1", "not a line; use --dimensions=2"),
      (straight, "--orthogonal", "leave --orthogonal out"),
      (straight, "--keep_vectors", "leave --keep_vectors out"),
    ):
      out = self.root / "never"
      code, _, err = measure([run], out, *MEASURING, "--plane=path", argument)
      self.assertEqual(code, 2)
      self.assertRegex(err, f"(?s){message}")
      self.assertFalse((out / "run.json").exists())

  def test_runs_that_never_left_their_start_span_no_plane(self):
    arguments = (*MEASURING, "--plane=minima", "--nomeasure")
    runs = [self.run, self.sibling("twin")]
    code, _, err = measure(runs, self.root / "never", *arguments)
    self.assertEqual(code, 2)
    self.assertIn("the parameters of these runs lie on one line; use others", err)

  def interrupted(self, runs, out, *arguments):
    """A start that gets a SIGTERM while it computes its second row."""
    surface, calls = plane.surface, []

    def counting(*arguments, **options):
      calls.append(1)
      if len(calls) == 2:
        signal.raise_signal(signal.SIGTERM)
      return surface(*arguments, **options)

    with mock.patch.object(plane, "surface", counting):
      return measure(runs, out, *(arguments or MEASURING))

  def test_lines_around_adapted_parameters(self):
    arguments = ("--objective=adapted", "--dimensions=1", "--nomeasure")
    run, out = self.maml(), self.root / "out"
    code, stdout, err = measure([run], out, *MEASURING, *arguments)
    self.assertEqual(code, 0, err)
    self.assertTrue((out / "lines.png").exists())
    self.assertNotIn("sharpness", stdout)
    arrays = np.load(out / "landscape.npz")
    self.assertEqual(arrays["loss"].shape, (1, 3, 3))
    # At the centre it is the meta-objective itself.
    losses = self.centre_losses(run)
    np.testing.assert_allclose(arrays["loss"][0, 1], losses, rtol=1e-3)
    before = self.centre_losses(run, objective="task")
    self.assertFalse(np.allclose(before, losses, rtol=1e-2))
    code, _, err = measure([self.run], self.root / "out2", *MEASURING, *arguments)
    self.assertEqual(code, 2)
    self.assertIn("take --objective=meta", err)

  def test_the_last_checkpoint(self):
    best, last = self.load(), self.load(checkpoint="last", split="val")
    self.assertTrue(toy_runs.same_bits(last.params, best.params))

  def test_refuses_what_is_no_finished_run(self):
    unfinished = self.sibling("unfinished")
    (unfinished / "result.json").unlink()
    sines = self.sibling("sines")
    self.describe(sines, described(sinusoid.EXPERIMENT))
    for runs, message in (
      ([self.root], "is not a run directory .*name the --run_dir"),
      ([unfinished], "(?s)is not finished.*python -m experiments.omniglot --flagfile="),
      ([self.sibling("implicit", "--algorithm=imaml")], "run of imaml.*--nomeasure"),
      ([self.sibling("seeds", "--num_seeds=2")], "has 2 seeds in one run"),
      (
        [self.sibling("adam", "--algorithm=reptile", "--inner_optimizer=adam")],
        "inner Adam has no derivative.*--nomeasure",
      ),
      ([sines], "only few-shot tasks of images"),
      ([self.run, self.run], "names a directory twice"),
      (
        [self.run, self.sibling("other", "--shot=2", "--image_size=16")],
        "(?s)other tasks or another network.*image_size: 8 there, 16 here.*shot: 1 "
        "there, 2 here",
      ),
      (
        [self.run, self.sibling("wider", "--model=conv4_strided")],
        "network: jsharp.models.mlp:SineNetwork there, conv4_strided here",
      ),
    ):
      code, stdout, err = measure(runs, self.root / "never", *MEASURING)
      self.assertEqual((code, stdout), (2, ""))
      self.assertStartsWith(err, "landscape: --runs: ")
      self.assertRegex(err, message)
    self.assertFalse((self.root / "never").exists())

  def test_refuses_other_data_and_a_missing_checkpoint(self):
    path = self.sibling("b")
    for file in (path / "config.json", *(path / "checkpoints").glob("*.npz")):
      file.unlink()
    code, _, err = measure([path], self.root / "out", *MEASURING)
    self.assertEqual(code, 2)
    self.assertRegex(
      err, "step 2 as its best checkpoint, .*has no checkpoint of step 2.*=last"
    )
    record = read_table(path / "run.json")
    record["identity"]["fingerprints"]["test"] = "0"
    write_json(path / "run.json", record)
    code, _, err = measure([path], self.root / "out2", *MEASURING)
    self.assertEqual(code, 2)
    self.assertRegex(err, "the data in .* differ from those .*--data_dir")

  @parameterized.parameters("fomaml", "sharp_maml_low")
  def test_derivatives_are_exact_whatever_training_left_out(self, algorithm):
    arguments = (f"--algorithm={algorithm}", "--nodifferentiate_perturbation")
    path = self.sibling("first_order", *arguments)
    with (
      mock.patch.object(
        _landscape_runs, "_built", side_effect=InterruptedError
      ) as made,
      self.assertRaises(InterruptedError),
    ):
      self.load(path)
    (description,) = made.call_args.args
    exact = {"fomaml": "maml"}.get(algorithm, algorithm)
    self.assertEqual(description.algorithm.name, exact)
    self.assertTrue(description.sharpness.differentiate_perturbation)

  @parameterized.parameters(
    ("--grid=0", "grid=0: .*at least 1"),
    ("--extent=-1", "extent=-1.0: must be positive"),
    ("--radii=a", "radii.*must be positive numbers"),
    ("--trace_samples=1", "trace_samples=1: .*at least 2"),
    ("--objective=both", "objective"),
  )
  def test_refuses_flags(self, argument, message):
    arguments = [f"--runs={self.run}", "--out=out", argument]
    with self.assertRaisesRegex(flags.Error, message):
      landscape.PROGRAM.parse(arguments, flags.FlagValues())


if __name__ == "__main__":
  absltest.main()
