"""Bootstrap: training labels by an earlier classifier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jsharp import learners
from jsharp.data import load_splits
from jsharp.data.characters import LabelledCharacters
from jsharp.models.resnet import ResNetOptions

SOURCE = LabelledCharacters(num_characters=3, image_size=8)


def classifier(splits, **changes):
  values = {
    "network": ResNetOptions(),
    "class_names": splits.class_names,
    "input_shape": splits.train.images.shape[1:],
    "pixel_mean": tuple(splits.train.mean.tolist()),
    "pixel_scale": tuple(splits.train.scale.tolist()),
  }
  description = learners.ClassifierDescription(**{**values, **changes})
  return learners.build_classifier(description, seed=3)


class RelabelTest(absltest.TestCase):
  def test_labels_are_the_probabilities_of_the_classifier(self):
    splits = load_splits(SOURCE)
    made = classifier(splits)
    after = learners.relabelled(splits, made, batch_size=16)  # 45 images: a rest too
    images = jnp.asarray(splits.train.images, jnp.float32) / 255
    expected = jax.nn.softmax(made.predict(None, images))
    np.testing.assert_allclose(after.train.labels, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(after.train.images, splits.train.images)
    np.testing.assert_array_equal(after.test.labels, splits.test.labels)
    others = set(after.fingerprints) - set(splits.fingerprints)
    self.assertEqual(others, {"labels"})
    moved = dataclasses.replace(made, params=jax.tree.map(jnp.ones_like, made.params))
    again = learners.relabelled(splits, moved, batch_size=16)
    self.assertNotEqual(again.fingerprints["labels"], after.fingerprints["labels"])

  def test_refuses_a_classifier_of_something_else(self):
    splits = load_splits(SOURCE)
    for changes, message in (
      ({"class_names": ("a", "b", "c")}, "trained on the classes a, b, c, but these"),
      ({"input_shape": (9, 9, 1)}, "trained on the images 9, 9, 1, but these are 8"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        learners.relabelled(splits, classifier(splits, **changes))
    with self.assertRaisesRegex(ValueError, "needs a classifier of experiments.super"):
      learners.relabelled(splits, object())


if __name__ == "__main__":
  absltest.main()
