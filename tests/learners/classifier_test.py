"""Ordinary classifiers: described, saved, loaded and used on images."""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import jsharp
from jsharp import _leaf_archive, learners
from jsharp.data.characters import LabelledCharacters
from jsharp.learners import _store
from jsharp.models.resnet import ResNetOptions, WideResNetOptions
from jsharp.training import Checkpoints
from jsharp.types import Batch, MetaState


def description(**parts):
  values = {
    "network": ResNetOptions(),
    "class_names": ("cat", "dog", "hen"),
    "input_shape": (8, 8, 3),
    "pixel_mean": (100.25, 120.5, 110.125),
    "pixel_scale": (0.01, 0.02, 0.015),
    **parts,
  }
  return learners.ClassifierDescription(**values)


def images(count=4):
  return np.random.RandomState(0).randint(0, 256, (count, 8, 8, 3)).astype(np.uint8)


@functools.cache
def trained(**parts):
  """A classifier whose parameters and running statistics are no initial ones."""
  classifier = learners.build_classifier(description(**parts), seed=3)
  random = np.random.RandomState(1)
  return classifier.replace(
    jax.tree.map(
      lambda x: jnp.asarray(x + 0.1 * random.rand(*x.shape), x.dtype),
      classifier.params,
    )
  )


class ClassifierTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_images_are_normalised_as_in_training(self):
    classifier = trained()
    pixels = images()
    mean, scale = (
      np.asarray(numbers, np.float32)
      for numbers in (
        classifier.description.pixel_mean,
        classifier.description.pixel_scale,
      )
    )
    logits = classifier.predict(None, pixels / np.float32(255))
    batch = Batch(jnp.asarray((pixels - mean) * scale), jnp.array([0, 1, 2, 0]))
    metrics, _ = classifier.loss_fn(classifier.params, batch, False)
    expected = -jax.nn.log_softmax(logits)[jnp.arange(4), batch.targets]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    # Each image by itself: the running statistics normalise, not the batch.
    alone = classifier.predict(None, pixels[1:2] / np.float32(255))
    np.testing.assert_allclose(alone, logits[1:2], rtol=1e-4, atol=1e-5)
    initial = learners.build_classifier(classifier.description).params
    other = classifier.predict(initial, pixels / np.float32(255))
    self.assertFalse(np.allclose(other, logits))

  @parameterized.parameters(
    (np.zeros((4, 9, 8, 3), np.float32), r"\[n, 8, 8, 3\], got \[4, 9, 8, 3\]"),
    (np.zeros((8, 8, 3), np.float32), r"must be \[n, 8, 8, 3\], got \[8, 8, 3\]"),
    (images(), r"float in \[0, 1\], got uint8; divide"),
  )
  def test_refuses_other_images(self, inputs, message):
    with self.assertRaisesRegex(ValueError, message):
      trained().predict(None, inputs)

  def test_adapts_to_nothing(self):
    with self.assertRaisesRegex(ValueError, "resnet .* of 3 classes .*call predict"):
      trained().adapt(Batch(images() / np.float32(255), np.zeros(4, np.int32)))

  @parameterized.parameters(
    ({"class_names": ("cat",)}, "class_names=.*at least 2 names"),
    ({"class_names": ("cat", 3)}, "class_names=3: must be a string"),
    ({"pixel_mean": (0.0,)}, "one number per channel, got .0.0,. for 3"),
    ({"pixel_scale": (0.0,) * 4}, "one number per channel, got .* for 3"),
    ({"pixel_scale": (0.1, np.inf, 0.1)}, "pixel_scale=.* must be finite numbers"),
    ({"input_shape": (8, 0, 3)}, "input_shape=.*integers"),
  )
  def test_refuses_descriptions_that_contradict_themselves(self, parts, message):
    with self.assertRaisesRegex(ValueError, message):
      description(**parts)

  @parameterized.parameters(
    {},
    {"network": WideResNetOptions(widen=1), "precision": "bfloat16"},
    {"source": LabelledCharacters(image_size=8)},
  )
  def test_what_was_saved_is_loaded_bit_for_bit(self, **parts):
    classifier = trained(**parts)
    jsharp.save(classifier, self.directory)
    loaded = jsharp.load(self.directory)
    self.assertIsInstance(loaded, learners.Classifier)
    self.assertEqual(loaded.description, classifier.description)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, classifier.params)
    inputs = images() / np.float32(255)
    np.testing.assert_array_equal(
      loaded.predict(None, inputs), classifier.predict(None, inputs)
    )
    content = json.loads((self.directory / "config.json").read_text())
    self.assertContainsSubset({"learner_format", "classifier"}, content)
    self.assertNotIn("learner", content)

  @parameterized.parameters(
    (
      lambda c: c["classifier"].update(depth=3),
      "config.json: classifier: unknown field 'depth'",
    ),
    (
      lambda c: c["classifier"]["network"].update(depth=9),
      "config.json: classifier.network: ResNet: depth must be",
    ),
    (
      lambda c: c["classifier"]["network"].update(name="mlp"),
      "no classifier network 'mlp'; choose one of conv4, conv4_strided, ima",
    ),
  )
  def test_what_does_not_fit_is_refused_by_name(self, change, message):
    content = learners.to_json(description())
    change(content)
    with self.assertRaisesRegex(ValueError, message):
      learners.from_json(content)

  def test_arrays_of_another_network_are_refused(self):
    two = description(class_names=("cat", "dog"))
    arrays = _leaf_archive.named_leaves(trained().params)
    _store.write(self.directory, learners.to_json(two), arrays)
    with self.assertRaisesRegex(ValueError, "does not fit .* 'params/head/.* expected"):
      jsharp.load(self.directory)

  def test_of_a_run_that_goes_on(self):
    classifier = trained()
    content = {"learners": {"": learners.to_json(classifier.description)}}
    (self.directory / "description.json").write_text(json.dumps(content))
    state = MetaState(np.int32(7), classifier.params, (np.zeros(3),))
    Checkpoints(self.directory / "checkpoints").save(7, state, extra={})
    loaded = jsharp.load(self.directory, step=7)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, classifier.params)


if __name__ == "__main__":
  absltest.main()
