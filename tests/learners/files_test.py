"""Saved learners: what is read back is what was saved, and nothing else is read."""

import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

import jsharp
from jsharp import learners
from jsharp._files import write_json
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.meta_sgd import MetaSGD
from jsharp.data.characters import Characters
from jsharp.learners import _store
from jsharp.models.mlp import SineNetwork
from jsharp.training import Checkpoints, RunDirectory
from jsharp.types import MetaState
from tests.learners import classifier_test
from tests.learners.elsewhere import outputs_elsewhere


def sines(algorithm=None, **parts):
  return learners.Description(
    algorithm=algorithm or MAML(inner_lr=0.02),
    network=SineNetwork(hidden_width=4),
    problem="regression",
    num_outputs=1,
    input_shape=(1,),
    **parts,
  )


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def saved(self, algorithm=None, seed=3):
    learner = learners.build(sines(algorithm), seed=seed)
    jsharp.save(learner, self.directory)
    return learner

  def edit(self, change):
    """Saves what another version, or another hand, could have written."""
    config, arrays = _store.read(self.directory)
    change(config)
    _store.write(self.directory, config, arrays)

  @parameterized.parameters(MAML(), MetaSGD())
  def test_what_was_saved_is_loaded_bit_for_bit(self, algorithm):
    learner = self.saved(algorithm)
    loaded = jsharp.load(self.directory)
    self.assertEqual(loaded.description, learner.description)
    assert_same(loaded.params, learner.params)

  def test_the_source_of_images_is_part_of_it(self):
    description = learners.Description(
      algorithm=MAML(),
      network=SineNetwork(hidden_width=4),
      num_outputs=3,
      input_shape=(16, 16, 1),
      source=Characters(image_size=16),
    )
    jsharp.save(learners.build(description), self.directory)
    self.assertEqual(jsharp.load(self.directory).description, description)

  def test_another_process_needs_nothing_but_the_library(self):
    learner, classifier = self.saved(), classifier_test.trained()
    jsharp.save(classifier, self.directory / "classifier")
    np.save(self.directory / "images.npy", classifier_test.images())
    outputs = outputs_elsewhere(
      "learner, classifier = jsharp.load('.'), jsharp.load('classifier')\n"
      "x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]\n"
      "adapted = learner.adapt(jsharp.Batch(x, x))\n"
      "images = np.load('images.npy') / np.float32(255)\n"
      "logits = np.asarray(classifier.predict(None, images))\n"
      "outputs = [*np.ravel(learner.predict(adapted, x)), *logits.ravel()]\n",
      self.directory,
    )
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    expected = learner.predict(learner.adapt(jsharp.Batch(x, x)), x)
    logits = classifier.predict(None, classifier_test.images() / np.float32(255))
    np.testing.assert_allclose(
      outputs, [*np.ravel(expected), *np.ravel(logits)], rtol=1e-5
    )

  @parameterized.parameters(
    (lambda c: c.update(learner_format=2), "learner_format 2, .* reads 1; upgrade"),
    (lambda c: c["learner"].update(depth=3), "learner: unknown field 'depth'"),
    (lambda c: c["learner"].pop("outer"), "learner: the field 'outer' .* is missing"),
    (
      lambda c: c["learner"]["algorithm"].update(inner_lr=-1),
      "learner.algorithm: inner_lr=-1.0: must be positive",
    ),
    (
      lambda c: c["learner"]["algorithm"].update(name="newton"),
      "no algorithm 'newton'; choose one of",
    ),
    (
      lambda c: c["learner"]["algorithm"].update(name="their_module:Theirs"),
      "their_module:Theirs cannot be imported",
    ),
    (
      lambda c: c["learner"]["network"].update(hidden_width=5),
      "does not fit .* expected float32",
    ),
    (
      lambda c: c["learner"].update(algorithm={"name": "protonet"}),
      "protonet classifies, but this is a regression",
    ),
  )
  def test_what_does_not_fit_is_refused_by_name(self, change, message):
    self.saved()
    self.edit(change)
    with self.assertRaisesRegex(ValueError, message):
      jsharp.load(self.directory)

  def test_nothing_there_is_said(self):
    with self.assertRaisesRegex(FileNotFoundError, "does not contain a learner"):
      jsharp.load(self.directory)


class RunTest(absltest.TestCase):
  """A run that has not ended: a description and checkpoints."""

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.learner = learners.build(sines())
    content = {"learners": {"": learners.to_json(self.learner.description)}}
    self.write(content)
    self.checkpoints = Checkpoints(self.directory / "checkpoints")

  def write(self, content):
    (self.directory / "description.json").write_text(json.dumps(content))

  def params(self, factor):
    return jax.tree.map(lambda x: factor * x, self.learner.params)

  def test_the_best_parameters_or_those_of_a_step(self):
    state = MetaState(np.int32(7), self.params(7.0), (np.zeros(3),))
    self.checkpoints.save(7, state, extra={})
    self.checkpoints.save_best(5, self.params(5.0), extra={"score": 0.5})
    assert_same(jsharp.load(self.directory).params, self.params(5.0))
    assert_same(jsharp.load(self.directory, step=7).params, self.params(7.0))
    with self.assertRaisesRegex(ValueError, "no checkpoint of step 6; it has best_"):
      jsharp.load(self.directory, step=6)
    jsharp.save(self.learner, self.directory)
    assert_same(jsharp.load(self.directory).params, self.params(1.0))

  def test_without_validation_the_newest(self):
    for step in (3, 4):
      state = MetaState(np.int32(step), self.params(float(step)), ())
      self.checkpoints.save(step, state, extra={})
    assert_same(jsharp.load(self.directory).params, self.params(4.0))

  def test_damage_and_absence_are_refused(self):
    with self.assertRaisesRegex(ValueError, "has no checkpoint; it has none"):
      jsharp.load(self.directory)
    self.checkpoints.save_best(5, self.params(5.0), extra={"score": 0.5})
    (path,) = (self.directory / "checkpoints").glob("best_*.npz")
    path.write_bytes(path.read_bytes()[:-50])
    with self.assertRaisesRegex(ValueError, "best_00000005.npz is damaged"):
      jsharp.load(self.directory)

  def test_a_checkpoint_of_another_run_is_refused(self):
    with RunDirectory.open(self.directory / "other", identity={"seed": 1}) as run:
      checkpoints = Checkpoints(run.path / "checkpoints", run=run)
      checkpoints.save_best(5, self.params(5.0), extra={"score": 0.5})
    write_json(self.directory / "run.json", {"identity": {"seed": 0}})
    shutil.copytree(
      self.directory / "other" / "checkpoints", self.checkpoints.directory
    )
    message = "best_00000005.npz does not belong to the run"
    with self.assertRaisesRegex(ValueError, message):
      jsharp.load(self.directory)

  def test_checkpoints_out_of_sight_are_refused(self):
    self.checkpoints.directory.symlink_to("nowhere")
    with self.assertRaisesRegex(ValueError, "checkpoints is a link to nowhere"):
      jsharp.load(self.directory)

  def test_learners_side_by_side_are_named(self):
    two = learners.to_json(self.learner.description)
    self.write({"learners": {"seed_0": two, "seed_1": two}})
    with self.assertRaisesRegex(ValueError, "contains 2 learners; .*seed_0"):
      jsharp.load(self.directory)
    shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
  absltest.main()
