"""What --precision makes of every algorithm, and of a run."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments import omniglot
from jsharp import _catalogue, learners
from jsharp.algorithms import OuterLoop
from jsharp.core.execution import Execution
from jsharp.models.mlp import MLPOptions, SineNetwork
from jsharp.types import Batch, Task
from tests.experiments import supervised_test
from tests.experiments.flags_test import describe, identity
from tests.experiments.program_test import TINY_IMAGES, TINY_SINES, run

# maml, fomaml, anil, boil and Sharp-MAML at one loop are given their network's function
# by the same lines as Sharp-MAML at both; maml_plus_plus has a test of its own, and
# imaml is refused.
ALGORITHMS = (
  "black_box",
  "cavia",
  "meta_sgd",
  "proto_maml",
  "protonet",
  "reptile",
  "ridge",
  "sharp_maml_both",
)


def steps_of(algorithm, precision, **options):
  """A meta-step of SGD; the change of the parameters is minus the meta-gradient."""
  algorithm = _catalogue.find("algorithm", algorithm)(**options)
  common = {
    "algorithm": algorithm,
    "precision": precision,
    "outer": OuterLoop(outer_optimizer="sgd", outer_lr=1.0),
  }
  normalises = "running_statistics" in options
  if algorithm.classifies or normalises:
    inputs = jax.random.normal(jax.random.key(0), (2, 2, 9, 4, 4, 1))
    labels = jnp.tile(jnp.arange(3), (2, 3))
    sets = [Batch(x, labels) for x in inputs]
    task = {"problem": "classification", "num_outputs": 3, "input_shape": (4, 4, 1)}
  else:
    inputs = jnp.linspace(-2, 2, 12).reshape(2, 6, 1)
    sets = [Batch(inputs + moved, jnp.sin(inputs + moved)) for moved in (0.0, 0.3)]
    task = {"problem": "regression", "num_outputs": 1, "input_shape": (1,)}
  network = SineNetwork(hidden_width=8, activation="tanh")
  network = MLPOptions() if normalises else network
  description = learners.Description(network=network, **task, **common)
  learner = learners.build(description)
  built = learner.algorithm()

  @jax.jit
  def step(params, tasks):
    state = built.init(params)
    moved, metrics = built.step(state, tasks)
    change = jax.tree.map(jnp.subtract, moved.params, state.params)
    return change, metrics

  return step(learner.made.params, Task(*sets))


class PrecisionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  @parameterized.parameters(*ALGORITHMS)
  def test_a_step_of_every_algorithm(self, algorithm):
    options = {}
    if algorithm == "black_box":
      options = {"width": 8, "num_layers": 1, "num_heads": 2}
    elif algorithm not in ("protonet", "ridge"):
      options = {"num_inner_steps": 1}
    (expected, losses), (actual, narrow_losses) = (
      steps_of(algorithm, precision, **options) for precision in ("float32", "bfloat16")
    )
    for leaf in jax.tree.leaves((actual, narrow_losses)):
      self.assertEqual(leaf.dtype, jnp.float32)
    np.testing.assert_allclose(narrow_losses["loss"], losses["loss"], rtol=0.05)
    a, b = (
      np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
      for tree in (actual, expected)
    )
    self.assertGreater(np.linalg.norm(b), 1e-3)
    self.assertGreater(np.linalg.norm(a - b), 1e-6 * np.linalg.norm(b))
    self.assertLess(np.linalg.norm(a - b), 0.1 * np.linalg.norm(b))

  def test_running_statistics(self):
    options = {"running_statistics": True, "num_inner_steps": 1}
    change, _ = steps_of("maml_plus_plus", "bfloat16", **options)
    for leaf in jax.tree.leaves(change):
      self.assertEqual(leaf.dtype, jnp.float32)
      self.assertTrue(np.isfinite(leaf).all())
    self.assertGreater(np.abs(change.statistics["norm_0"]["mean"]).max(), 0)

  def test_conjugate_gradients_are_refused(self):
    message = "bfloat16 cannot be combined .*imaml.*float32"
    with self.assertRaisesRegex(ValueError, message):
      describe("sinusoid", "--algorithm=imaml", "--precision=bfloat16")
    chosen = describe("sinusoid", "--algorithm=imaml", "--precision=tf32")
    self.assertEqual(chosen.run.precision, "tf32")

  @parameterized.parameters("tf32", "bfloat16")
  def test_belongs_to_what_a_run_is(self, precision):
    other = identity("sinusoid", f"--precision={precision}")
    self.assertEqual(other, {**identity("sinusoid"), "run.precision": precision})

  def test_two_steps(self):
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory)
      arguments = (*TINY_SINES, "--num_steps=2")
      code, out, err = run("sinusoid", path, *arguments, "--precision=bfloat16")
      self.assertEqual(code, 0, err)
      self.assertRegex(out, r"precision +bfloat16")
      result = json.loads((path / "result.json").read_text())
      self.assertEqual(result["protocol"]["precision"], "bfloat16")
      code, _, err = run("sinusoid", path, *arguments)
      self.assertEqual(code, 2)
      self.assertRegex(err, "precision: .?bfloat16.? there, .?float32.? now")

  def test_ordinary_training(self):
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory)
      arguments = [*supervised_test.TINY, "--hessian_eigenvalues=0"]
      arguments.append(supervised_test.OWN_NETWORK)
      code, out, err = supervised_test.run(path, *arguments, "--precision=bfloat16")
      self.assertEqual(code, 0, err)
      self.assertRegex(out, r"precision +bfloat16")

  @parameterized.parameters("float32", "tf32")
  def test_the_program_that_is_compiled(self, precision):
    given = (*TINY_IMAGES, "--model=mlp", f"--precision={precision}")
    chosen = describe("omniglot", *given)
    parts = omniglot.EXPERIMENT.build(chosen, Execution())
    state = parts.algorithm.init(parts.params)

    def step(state):
      return parts.algorithm.step(state, parts.sample_tasks(state.step, parts.data))

    lines = [
      line
      for line in jax.jit(step).lower(state).as_text().splitlines()
      if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    self.assertGreater(len(lines), 20)
    word = {"float32": "HIGHEST, HIGHEST", "tf32": "HIGH, HIGH"}[precision]
    for line in lines:
      self.assertRegex(line.replace("#stablehlo<precision ", "").replace(">", ""), word)


if __name__ == "__main__":
  absltest.main()
