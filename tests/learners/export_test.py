"""Exported programs give what the learner gives, where jsharp cannot be imported."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jsharp import _catalogue, learners, normalization
from jsharp.algorithms import Sharpness
from jsharp.algorithms.black_box import BlackBox
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.maml_plus_plus import MAMLPlusPlus
from jsharp.algorithms.protonet import ProtoNet
from jsharp.algorithms.reptile import Reptile
from jsharp.algorithms.ridge import Ridge
from jsharp.models.conv4 import Conv4Options
from jsharp.models.mlp import MLPOptions, SineNetwork
from jsharp.models.resnet import ResNetOptions
from jsharp.types import Batch, Task

WAY = 3
SMALL = MLPOptions()
ONE_STEP = MAML(inner_lr=0.1, num_eval_inner_steps=1)

LEARNERS = {
  "maml": (ONE_STEP, SMALL),
  "pooled": (ProtoNet(), Conv4Options(num_filters=4)),
  "ridge": (Ridge(), SMALL),
  "running": (MAMLPlusPlus(running_statistics=True, num_inner_steps=2), SMALL),
  "black_box": (BlackBox(width=8, num_heads=2, num_layers=1), SMALL),
  "mini_batches": (Reptile(inner_batch_size=4, num_inner_steps=2), SMALL),
}
# Those above, and those that adapt by the code of MAML.
TESTED_OTHERWISE = {
  *(algorithm.name for algorithm, _ in LEARNERS.values() if algorithm.name != "maml"),
  *("boil", "fomaml", "sharp_maml_low", "sharp_maml_up"),
}
SIZES = {"ridge": ((4, 5), (9, 1)), "mini_batches": ((4, 5), (9, 1))}


def side(network):
  return 16 if isinstance(network, Conv4Options) else 4


@functools.cache
def built(algorithm, network, **parts):
  """A learner whose parameters are not those that its description is built with."""
  shape = (side(network), side(network), 1)
  values = {"num_outputs": WAY, "input_shape": shape, **parts}
  return learners.build(
    learners.Description(algorithm=algorithm, network=network, **values), seed=5
  )


def task(num_support, num_images, shape, seed=0):
  random = np.random.RandomState(seed)
  support = random.rand(num_support, *shape).astype(np.float32)
  labels = (np.arange(num_support) % WAY).astype(np.int32)
  return support, labels, random.rand(num_images, *shape).astype(np.float32)


def expected(learner, support, labels, images, *, policy="inductive", **options):
  """By the learner itself."""
  way = options.get("way")

  @jax.jit
  def adapt_and_predict(batch, images):
    adapted = learner.adapt(batch, **options)
    if policy == "transductive":
      return jax.nn.softmax(learner.predict(adapted, images))
    predict = normalization.support_statistics(learner.apply_fn(way))
    return jax.nn.softmax(predict(adapted, Task(batch, Batch(images, None))))

  return adapt_and_predict(Batch(support, labels), images)


def assert_same(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


ELSEWHERE = """
import sys

class Refused:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in ("jsharp", "flax", "optax", "chex"):
      raise ImportError(name)

sys.meta_path.insert(0, Refused())
import pathlib
import numpy as np
from jax import export

for path in pathlib.Path(sys.argv[1]).glob("*.jax"):
  program = export.deserialize(path.read_bytes())
  for case in pathlib.Path(sys.argv[1]).glob(path.stem + "-*.npz"):
    with np.load(case) as given:
      outputs = program.call(given["support"], given["labels"], given["images"])
    np.save(case.with_suffix(".npy"), np.asarray(outputs))
assert not [name for name in sys.modules if name.partition(".")[0] == "jsharp"]
"""


class ExportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))
    self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.path = self.directory / "learner.jax"

  def program(self, learner, **options):
    learner.export(self.path, **{"platforms": ("cpu",), **options})
    return jax.export.deserialize(bytearray(self.path.read_bytes()))

  def test_jax_alone_runs_them_with_any_number_of_examples(self):
    for name, parts in LEARNERS.items():
      learner = built(*parts)
      learner.export(self.directory / f"{name}.jax", platforms=("cpu",))
      for sizes_of_case in SIZES.get(name, ((5, 2),)):
        arrays = task(*sizes_of_case, learner.description.input_shape)
        np.savez(
          self.directory / f"{name}-{sizes_of_case[0]}.npz",
          **dict(zip(("support", "labels", "images"), arrays, strict=True)),
        )
    ran = subprocess.run(
      [sys.executable, "-I", "-c", ELSEWHERE, str(self.directory)],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
    )
    self.assertEqual(ran.returncode, 0, ran.stderr)
    for name, parts in LEARNERS.items():
      learner = built(*parts)
      for num_support, num_images in SIZES.get(name, ((5, 2),)):
        with self.subTest(name, num_support=num_support):
          arrays = task(num_support, num_images, learner.description.input_shape)
          outputs = np.load(self.directory / f"{name}-{num_support}.npy")
          self.assertEqual(outputs.shape, (num_images, WAY))
          assert_same(outputs, expected(learner, *arrays))

  @parameterized.parameters(
    *sorted({*_catalogue.outlines("algorithm")} - TESTED_OTHERWISE)
  )
  def test_every_algorithm_is_exported_for_every_platform(self, name):
    learner = built(_catalogue.find("algorithm", name)(), SMALL)
    learner.export(self.path)
    program = jax.export.deserialize(bytearray(self.path.read_bytes()))
    self.assertEqual(program.platforms, ("cpu", "cuda", "tpu"))
    self.assertEqual(
      [str(aval) for aval in program.in_avals],
      ["float32[support,4,4,1]", "int32[support]", "float32[images,4,4,1]"],
    )

  def test_transductive_answers_depend_on_each_other_and_inductive_ones_do_not(self):
    learner = built(Ridge(), SMALL)
    arrays = task(4, 3, learner.description.input_shape)
    for policy in ("transductive", "inductive"):
      program = self.program(learner, policy=policy)
      outputs = program.call(*arrays)
      assert_same(outputs, expected(learner, *arrays, policy=policy))
      alone = program.call(*arrays[:2], arrays[2][:1])
      depends = policy == "transductive"
      self.assertEqual(not np.allclose(alone, outputs[:1], atol=1e-4), depends)

  def test_sharp_steps_are_those_of_the_test(self):
    low = Sharpness(sharpness="low", inner_rho=0.5)
    learner = built(ONE_STEP, SMALL, sharpness=low)
    arrays = task(4, 2, learner.description.input_shape)
    outputs = self.program(learner).call(*arrays)
    assert_same(outputs, expected(learner, *arrays))
    plain = built(ONE_STEP, SMALL)
    self.assertFalse(np.allclose(outputs, expected(plain, *arrays), atol=1e-4))

  def test_classes_and_steps_are_chosen(self):
    learner = built(ONE_STEP, SMALL)
    program = self.program(learner, way=2, num_steps=2)
    support, _, images = task(4, 2, learner.description.input_shape)
    labels = np.array([0, 1, 1, 0], np.int32)
    outputs = expected(learner, support, labels, images, way=2, num_steps=2)
    assert_same(program.call(support, labels, images), outputs)
    any_way = self.program(built(ProtoNet(), SMALL), way=7)
    labels = np.arange(8, dtype=np.int32) % 7
    images = task(8, 2, (4, 4, 1))
    self.assertEqual(any_way.call(images[0], labels, images[2]).shape, (2, 7))

  def test_a_regression_gives_numbers(self):
    learner = built(
      ONE_STEP,
      SineNetwork(hidden_width=4),
      problem="regression",
      num_outputs=2,
      input_shape=(1,),
    )
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    y = np.concatenate([x**2, 3 * x], axis=1)
    outputs = self.program(learner).call(x, y, x[:3])
    adapted = learner.adapt(Batch(jnp.asarray(x), jnp.asarray(y)))
    assert_same(outputs, learner.predict(adapted, x[:3]))

  def test_a_label_of_no_class_makes_every_answer_nan(self):
    for algorithm in (ProtoNet(), ONE_STEP):
      program = self.program(built(algorithm, SMALL))
      support, labels, images = task(4, 2, (4, 4, 1))
      for label in (-1, WAY):
        labels[2] = label
        self.assertTrue(np.isnan(program.call(support, labels, images)).all())

  @parameterized.parameters((2, 1), (3, 0))
  def test_too_few_examples_are_refused_when_called(self, num_support, num_images):
    program = self.program(built(ProtoNet(), SMALL))
    with self.assertRaises(ValueError):
      program.call(*task(num_support, num_images, (4, 4, 1)))

  def test_what_it_is_stands_beside_it(self):
    learner = built(*LEARNERS["mini_batches"])
    learner.export(self.path, policy="transductive", num_images=2, platforms=("cpu",))
    with open(f"{self.path}.json") as file:
      facts = json.load(file)
    content = self.path.read_bytes()
    self.assertEqual(facts["program_sha256"], hashlib.sha256(content).hexdigest())
    self.assertEqual(
      facts["arguments"],
      {
        "support": "float32[support,4,4,1]",
        "labels": "int32[support]",
        "images": "float32[2,4,4,1]",
      },
    )
    self.assertEqual(facts["result"], "float32[2,3]")
    self.assertEqual(facts["fewest_support"], 4)  # The size of a mini-batch.
    self.assertEqual((facts["way"], facts["policy"]), (WAY, "transductive"))
    self.assertEqual(facts["looks"]["shape"], [4, 4, 1])
    description = learners.from_json({"learner_format": 1, "learner": facts["learner"]})
    self.assertEqual(description, learner.description)

  @parameterized.parameters(
    ({"policy": "per_query"}, "policy must be one of .*inductive.*per_query"),
    ({"way": 1}, "way must be an integer of at least 2, got 1"),
    ({"way": 4}, "4 classes, .* 3 outputs"),
    ({"num_steps": -1}, "num_steps must be an integer of at least 0"),
    ({"num_support": 2}, "num_support must be an integer of at least 3, got 2"),
    ({"num_images": 0}, "num_images must be an integer of at least 1, got 0"),
    (
      {"platforms": ("gpu",)},
      "platforms must be among cpu, cuda, rocm, tpu, got .*gpu",
    ),
  )
  def test_refuses_before_it_traces(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      built(MAML(), SMALL).export(self.path, **options)
    self.assertEqual(list(self.directory.iterdir()), [])

  def test_refuses_steps_where_there_are_none_and_classes_of_a_regression(self):
    with self.assertRaisesRegex(ValueError, "num_steps=1: protonet takes no inner"):
      built(ProtoNet(), SMALL).export(self.path, num_steps=1)
    sines = built(
      MAML(),
      SineNetwork(),
      problem="regression",
      num_outputs=1,
      input_shape=(1,),
    )
    with self.assertRaisesRegex(ValueError, "way=2: the learner solves a regression"):
      sines.export(self.path, way=2)

  def test_says_what_is_missing(self):
    with (
      mock.patch.dict(sys.modules, flatbuffers=None),
      self.assertRaisesRegex(ModuleNotFoundError, "pip install flatbuffers"),
    ):
      built(ProtoNet(), SMALL).export(self.path)

  def test_a_network_that_asks_for_the_size_says_so_and_takes_a_fixed_one(self):
    self.path.write_text("old")
    learner = built(ProtoNet(), Asking())
    message = (
      r"(?s)protonet on asking cannot be exported for any number of images and "
      r"support: .*(inconclusive).*pass a fixed one: num_images=, num_support="
    )
    with self.assertRaisesRegex(ValueError, message):
      learner.export(self.path)
    self.assertEqual(self.path.read_text(), "old")
    program = self.program(learner, num_support=4, num_images=2)
    arrays = task(4, 2, learner.description.input_shape)
    outputs = program.call(*arrays)
    assert_same(outputs, expected(learner, *arrays, policy="transductive"))

  def test_a_directory_that_is_missing(self):
    with self.assertRaisesRegex(OSError, "cannot write .*nowhere"):
      built(ProtoNet(), SMALL).export(self.directory / "nowhere" / "learner.jax")


class FewShotClassifierTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory()), "names.jax"
    )

  @parameterized.parameters(
    ("maml", "inductive"), ("ridge", "transductive"), ("black_box", "inductive")
  )
  def test_after_fit(self, name, policy):
    learner = built(*LEARNERS[name])
    support, labels, images = task(5, 3, learner.description.input_shape)
    classifier = learner.classifier(policy)
    classifier.fit(support, [("ka", "ki", "ku")[label] for label in labels])
    classifier.export(self.path)
    program = jax.export.deserialize(bytearray(self.path.read_bytes()))
    facts = json.loads(pathlib.Path(f"{self.path}.json").read_text())
    pixels = (255 * images).astype(np.uint8)
    outputs = program.call(pixels / np.float32(255))
    assert_same(outputs, classifier.predict_proba(pixels))
    self.assertEqual(facts["classes"], ["ka", "ki", "ku"])
    self.assertEqual(facts["looks"]["shape"], list(images.shape[1:]))

  def test_refuses_before_fit(self):
    with self.assertRaisesRegex(ValueError, "call fit"):
      built(ProtoNet(), SMALL).classifier().export("nowhere.jax")

  def test_a_layer_of_ones_own_is_given_the_examples_again(self):
    classifier = built(ProtoNet(), Own()).classifier()
    support, labels, images = task(4, 3, (4, 4, 1))
    classifier.fit(support, [("ka", "ki", "ku")[label] for label in labels])
    found = classifier.predict_proba(images)
    for image, row in zip(images, found, strict=True):
      assert_same(classifier.predict_proba(image[None])[0], row)
    classifier.export(self.path)
    program = jax.export.deserialize(bytearray(self.path.read_bytes()))
    pixels = np.rint(images * 255).astype(np.float32) / 255
    assert_same(program.call(pixels), found)


class OwnModule(nn.Module):
  @nn.compact
  def __call__(self, x, num_statistics=None):
    x = nn.Dense(4)(x.reshape(x.shape[0], -1))
    return x - x[:num_statistics].mean(0, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(MLPOptions):
  """A network with a normalisation of its own."""

  name: ClassVar[str] = "own"

  def module(self, num_outputs, *, convolution="auto"):
    return OwnModule()


class AskingModule(nn.Module):
  @nn.compact
  def __call__(self, x, num_statistics=None):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(4)(x) if x.shape[0] > 5 else nn.Dense(4)(2 * x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking(MLPOptions):
  """A network that computes something else for few examples."""

  name: ClassVar[str] = "asking"
  has_norm: ClassVar[bool] = False

  def module(self, num_outputs, *, convolution="auto"):
    return AskingModule()


class OrdinaryClassifierTest(absltest.TestCase):
  def test_an_ordinary_classifier(self):
    classifier = learners.build_classifier(
      learners.ClassifierDescription(
        network=ResNetOptions(),
        class_names=("cat", "dog"),
        input_shape=(8, 8, 1),
        pixel_mean=(120.0,),
        pixel_scale=(0.01,),
      ),
      seed=5,
    )
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory) / "classifier.jax"
      classifier.export(path)
      program = jax.export.deserialize(bytearray(path.read_bytes()))
      facts = json.loads(pathlib.Path(f"{path}.json").read_text())
    self.assertEqual(facts["classes"], ["cat", "dog"])
    for num_images in (1, 3):
      images = task(1, num_images, (8, 8, 1))[2]
      logits = classifier.predict(None, images)
      assert_same(program.call(images), jax.nn.softmax(logits))


if __name__ == "__main__":
  absltest.main()
