"""Names on pictures: the classifier against the learner's own functions."""

import functools
import importlib.util
import pathlib
import pickle
import tempfile
import unittest

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp import learners
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.maml_plus_plus import MAMLPlusPlus
from jsharp.algorithms.protonet import ProtoNet
from jsharp.algorithms.ridge import Ridge
from jsharp.models.mlp import MLPOptions, SineNetwork
from jsharp.types import Batch

SHAPE = (6, 6, 1)


@functools.cache
def learner(algorithm):
  return learners.build(
    learners.Description(
      algorithm=algorithm, network=MLPOptions(), num_outputs=4, input_shape=SHAPE
    )
  )


def examples(num, *, seed=0):
  """uint8 images and their class, 0 to 2, whose stripes differ."""
  rng = np.random.default_rng(seed)
  labels = np.arange(num) % 3
  images = rng.integers(0, 60, (num, *SHAPE), np.uint8)
  for image, label in zip(images, labels, strict=True):
    image[2 * label : 2 * label + 2] += 150
  return images, labels


def batch(images, labels):
  return Batch(images.astype(np.float32) / 255, labels.astype(np.int32))


class FewShotClassifierTest(parameterized.TestCase):
  @parameterized.parameters(
    ProtoNet(),
    MAMLPlusPlus(running_statistics=True),
  )
  def test_inductive_is_normalised_by_the_examples(self, algorithm):
    made = learner(algorithm)
    images, labels = examples(7)
    queries, _ = examples(11, seed=1)
    clf = made.classifier().fit(images, labels)
    both = np.concatenate([images, queries]).astype(np.float32) / 255

    @jax.jit
    def expected(support, both):
      after = made.adapt(support, way=3)
      logits = made.apply_fn(3)(after, both, num_statistics=7)[7:]
      return jax.nn.softmax(logits)

    np.testing.assert_allclose(
      clf.predict_proba(queries),
      expected(batch(images, labels), both),
      rtol=2e-4,
      atol=1e-5,
    )
    alone = np.concatenate([clf.predict_proba(query[None]) for query in queries])
    np.testing.assert_allclose(alone, clf.predict_proba(queries), rtol=2e-4, atol=1e-5)

  def test_transductive_is_one_batch(self):
    made = learner(MAML(inner_lr=0.4))
    images, labels = examples(7)
    queries, _ = examples(11, seed=1)
    clf = made.classifier("transductive").fit(images, labels)

    @jax.jit
    def expected(support, queries):
      after = made.adapt(support, way=3)
      return jax.nn.softmax(made.predict(after, queries, way=3))

    np.testing.assert_allclose(
      clf.predict_proba(queries),
      expected(batch(images, labels), queries.astype(np.float32) / 255),
      rtol=2e-4,
      atol=1e-5,
    )
    other = made.classifier().fit(images, labels).predict_proba(queries)
    self.assertGreater(np.abs(other - clf.predict_proba(queries)).max(), 1e-3)

  def test_a_network_without_normalisation_sees_each_image_alone(self):
    plain = MLPOptions()
    object.__setattr__(plain, "has_norm", False)
    made = learners.build(
      learners.Description(
        algorithm=MAML(), network=plain, num_outputs=4, input_shape=SHAPE
      )
    )
    images, labels = examples(6)
    clf = made.classifier().fit(images, labels)
    self.assertEqual(clf.predict_proba(images).shape, (6, 3))

  def test_few_programs_are_compiled_for_any_number_of_images(self):
    made = learner(ProtoNet())
    images, labels = examples(6)
    clf = made.classifier().fit(images, labels)
    for num in (1, 1, 2, 5, 8, 9, 30, 64, 65, 130):
      self.assertEqual(clf.predict_proba(examples(num)[0]).shape, (num, 3))
    predict = clf._programs[3].predict
    self.assertLessEqual(predict._cache_size(), 3)
    clf.fit(*examples(6, seed=5))
    self.assertEqual(clf._programs[3].adapt._cache_size(), 1)

  def test_it_learns_the_classes_whatever_they_are_called(self):
    made = learner(ProtoNet())
    images, labels = examples(9)
    queries, truth = examples(12, seed=1)
    for names in (
      ["sea", "sky", "ant"],
      [3, 1, 2],
      [("a", 1), None, 2.5],
      [True, 7, 0],
      [2**60, 2**60 + 1, 0.5],
      [2**63, 5, -1],
    ):
      called = [names[label] for label in labels]
      clf = made.classifier().fit(images, called)
      self.assertCountEqual(clf.classes_.tolist(), names)
      expected = [names[label] for label in truth]
      self.assertEqual(clf.predict(queries).tolist(), expected)
      self.assertEqual(clf.score(queries, expected), 1.0)
    days = np.array(["2021-01-01", "2020-01-02", "2020-01-01"], "datetime64[ns]")
    clf.fit(images, days[labels])
    np.testing.assert_array_equal(clf.classes_, days[::-1])
    np.testing.assert_array_equal(clf.predict(queries), days[truth])
    clf.fit(images, np.array(["b", "a", "c"])[labels])
    self.assertEqual(clf.classes_.tolist(), ["a", "b", "c"])

  def test_unequal_numbers_and_any_number_of_classes(self):
    images, labels = examples(12)
    keep = (labels != 1) | (np.arange(12) < 3)
    clf = learner(ProtoNet()).classifier().fit(images[keep], labels[keep])
    self.assertEqual(clf.score(*examples(9, seed=2)), 1.0)
    many = np.arange(12)  # More than the 4 outputs that the network has.
    self.assertEqual(
      learner(Ridge()).classifier().fit(images, many).predict_proba(images).shape,
      (12, 12),
    )
    with self.assertRaisesRegex(ValueError, "12 classes, .* 4 outputs; .*protonet"):
      learner(MAML(inner_lr=0.4)).classifier().fit(images, many)

  def test_inner_steps(self):
    made = learner(MAML(inner_lr=0.4))
    images, labels = examples(6)
    none = made.classifier(num_steps=0).fit(images, labels)
    self.assertGreater(
      np.abs(
        none.predict_proba(images)
        - made.classifier().fit(images, labels).predict_proba(images)
      ).max(),
      1e-3,
    )
    with self.assertRaisesRegex(ValueError, "protonet takes no inner steps"):
      learner(ProtoNet()).classifier(num_steps=3)

  def test_a_folder(self):
    images, labels = examples(6)
    with tempfile.TemporaryDirectory() as directory:
      for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = pathlib.Path(directory, f"class {label}", f"{number}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
      clf = learner(ProtoNet()).classifier().fit(directory)
      self.assertEqual(clf.score(directory), 1.0)
    self.assertEqual(clf.classes_.tolist(), ["class 0", "class 1", "class 2"])

  def test_refuses(self):
    images, labels = examples(6)
    clf = learner(ProtoNet()).classifier()
    with self.assertRaisesRegex(ValueError, r"call fit\(images, labels\) first"):
      clf.predict(images)
    self.assertFalse(hasattr(clf, "classes_"))
    for given, message in (
      ((images, [0] * 6), "all examples belong to the class 0"),
      ((images, labels[:4]), "6 images and 4 labels"),
      ((images,), "labels is missing"),
      (([], []), "no images"),
      ((images, [[0]] * 6), "hashable"),
      ((images, [0, 1, float("nan")] * 2), "has nan, which is not equal to itself"),
      ((images, [0, 1, True] * 2), "mixes True or False with the numbers"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        clf.fit(*given)
    with self.assertRaisesRegex(ValueError, "policy must be one of"):
      learner(ProtoNet()).classifier("both")
    waves = learners.build(
      learners.Description(
        algorithm=MAML(),
        network=SineNetwork(),
        problem="regression",
        num_outputs=1,
        input_shape=(1,),
      )
    )
    with self.assertRaisesRegex(ValueError, "solves a regression"):
      waves.classifier()

  def test_a_learner_that_has_diverged_or_diverges_is_refused(self):
    images, labels = examples(6)
    lost = learner(ProtoNet())
    lost = lost.replace(jax.tree.map(lambda x: x * jnp.nan, lost.params))
    with self.assertRaisesRegex(ValueError, "its training has diverged"):
      lost.classifier().fit(images, labels)
    steep = learner(MAML(inner_lr=0.4))
    steep = steep.replace(jax.tree.map(lambda x: x + 3e38, steep.params))
    with self.assertRaisesRegex(ValueError, "in NaN or infinity; pass a smaller num"):
      steep.classifier().fit(images, labels)

  def test_a_pickled_classifier_is_the_same(self):
    images, labels = examples(6)
    clf = learner(ProtoNet()).classifier().fit(images, labels)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(
      again.predict_proba(images), clf.predict_proba(images)
    )
    self.assertEqual(again.learner.description, clf.learner.description)

  def test_a_failed_fit_leaves_the_classes_that_were_there(self):
    images, labels = examples(6)
    clf = learner(ProtoNet()).classifier().fit(images, labels)
    with self.assertRaises(ValueError):
      clf.fit(images, [0] * 6)
    self.assertEqual(clf.classes_.tolist(), [0, 1, 2])

  @unittest.skipIf(importlib.util.find_spec("sklearn") is None, "needs scikit-learn")
  def test_cross_validation_by_scikit_learn(self):
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score

    images, labels = examples(30)
    clf = learner(ProtoNet()).classifier()
    scores = cross_val_score(clf, images.reshape(30, -1), labels, cv=3)
    np.testing.assert_array_equal(scores, 1.0)
    other = clone(clf.fit(images, labels).set_params(policy="transductive"))
    self.assertEqual(other.policy, "transductive")
    self.assertIs(other.learner, clf.learner)


if __name__ == "__main__":
  absltest.main()
