"""ONNX models of classifiers, against ONNX Runtime; skipped without the extra."""

import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import learners
from jsharp.algorithms.black_box import BlackBox
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.protonet import ProtoNet
from jsharp.learners import _onnx
from jsharp.models.conv4 import Conv4Options, Conv4StridedOptions
from jsharp.models.mlp import MLPOptions
from jsharp.models.resnet import ResNetOptions
from jsharp.nn import conv2d, max_pool
from jsharp.nn._plain import in_plain_operations

HAS_ONNX = importlib.util.find_spec("jax2onnx") is not None
SHAPE = (16, 16, 1)


def few_shot(algorithm, network, policy="inductive"):
  description = learners.Description(
    algorithm=algorithm, network=network, num_outputs=3, input_shape=SHAPE
  )
  classifier = learners.build(description, seed=5).classifier(policy)
  return classifier.fit(images(4), ["c", "a", "b", "a"])


def images(count):
  return np.random.default_rng(count).random((count, *SHAPE), np.float32)


class PlainTest(absltest.TestCase):
  def test_no_primitive_of_ours_is_left(self):
    def network(x, w):
      y = jax.jit(jax.checkpoint(lambda x: conv2d(x, w)))(x)
      return jax.nn.relu(max_pool(y, sign=jnp.array([1.0, -1.0])))

    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 6, 6, 3)), jnp.float32)
    w = jnp.asarray(random.normal(size=(3, 3, 3, 2)), jnp.float32)
    plain = in_plain_operations(network)
    text = str(jax.make_jaxpr(plain)(x, w))
    self.assertNotRegex(text, "conv2d|max_pool")
    self.assertIn("conv_general_dilated", text)
    np.testing.assert_allclose(plain(x, w), network(x, w), rtol=1e-5)


class MissingTest(absltest.TestCase):
  def test_says_what_to_install(self):
    with (
      mock.patch.dict(sys.modules, jax2onnx=None),
      self.assertRaisesRegex(ModuleNotFoundError, r"jax2onnx.*jsharp\[onnx\]"),
    ):
      _onnx.to_onnx(jnp.sum, SHAPE, "nowhere.onnx", facts={})


@unittest.skipUnless(HAS_ONNX, "jax2onnx is not installed: pip install jsharp[onnx]")
class OnnxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))
    self.enter_context(jax.numpy_rank_promotion("allow"))
    self.path = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory()), "model.onnx"
    )

  def answers(self, inputs):
    import onnxruntime

    self.session = onnxruntime.InferenceSession(self.path)
    (found,) = self.session.run(["probabilities"], {"images": inputs})
    return found

  @parameterized.product(
    parts=(
      (MAML(inner_lr=0.1), Conv4Options(num_filters=4)),
      (ProtoNet(), Conv4StridedOptions(num_filters=4)),
      (BlackBox(width=8, num_heads=2, num_layers=1), MLPOptions()),
    ),
    policy=("inductive", "transductive"),
  )
  def test_a_few_shot_classifier(self, parts, policy):
    classifier = few_shot(*parts, policy)
    classifier.to_onnx(self.path)
    for count in (1, 5):
      pixels = (255 * images(count)).astype(np.uint8)
      np.testing.assert_allclose(
        self.answers(pixels / np.float32(255)),
        classifier.predict_proba(pixels),
        rtol=0,
        atol=1e-5,
      )
    facts = json.loads(self.session.get_modelmeta().custom_metadata_map["jsharp"])
    self.assertEqual(facts["classes"], ["a", "b", "c"])
    self.assertEqual((facts["policy"], facts["looks"]["shape"]), (policy, [*SHAPE]))

  def test_an_ordinary_classifier(self):
    classifier = learners.build_classifier(
      learners.ClassifierDescription(
        network=ResNetOptions(),
        class_names=("cat", "dog"),
        input_shape=SHAPE,
        pixel_mean=(120.0,),
        pixel_scale=(0.01,),
      ),
      seed=5,
    )
    classifier.to_onnx(self.path)
    expected = jax.nn.softmax(classifier.predict(None, images(3)))
    np.testing.assert_allclose(self.answers(images(3)), expected, rtol=0, atol=1e-5)

  def test_what_cannot_be_converted_says_why_and_what_instead(self):
    @jax.custom_jvp
    def unknown(x):
      return jax.pure_callback(np.sin, x, x)

    with self.assertRaisesRegex(ValueError, "(?s)converted to ONNX: .*method export"):
      _onnx.to_onnx(unknown, SHAPE, self.path, facts={})
    self.assertFalse(self.path.exists())

  def test_a_model_that_answers_differently_is_not_written(self):
    with (
      mock.patch.object(_onnx, "TOLERANCE", -1.0),
      self.assertRaisesRegex(ValueError, "probabilities differ .*method export"),
    ):
      few_shot(ProtoNet(), MLPOptions()).to_onnx(self.path)
    self.assertFalse(self.path.exists())


if __name__ == "__main__":
  absltest.main()
