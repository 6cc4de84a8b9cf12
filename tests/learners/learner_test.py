"""Descriptions make learners: one network, one algorithm, one way to adapt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import _catalogue, learners
from jsharp.algorithms import Sharpness
from jsharp.algorithms.anil import ANIL
from jsharp.algorithms.cavia import CAVIA
from jsharp.algorithms.imaml import IMAML
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.maml_plus_plus import MAMLPlusPlus
from jsharp.algorithms.meta_sgd import MetaSGD
from jsharp.algorithms.proto_maml import ProtoMAML
from jsharp.algorithms.protonet import ProtoNet
from jsharp.algorithms.reptile import Reptile
from jsharp.algorithms.ridge import Ridge
from jsharp.algorithms.sharp_maml import SharpMAMLLow, SharpMAMLUp
from jsharp.data import sinusoid as sines
from jsharp.models.conv4 import Conv4Options
from jsharp.models.mlp import MLPOptions, SineNetwork
from jsharp.types import Batch


def of_sines(algorithm, **parts):
  return learners.build(
    learners.Description(
      algorithm=algorithm,
      network=SineNetwork(hidden_width=8),
      problem="regression",
      num_outputs=1,
      input_shape=(1,),
      **parts,
    )
  )


def of_images(algorithm, **parts):
  return learners.Description(
    algorithm=algorithm,
    network=parts.pop("network", MLPOptions()),
    num_outputs=4,
    input_shape=(6, 6, 1),
    **parts,
  )


def support():
  return sines.sample_task(jax.random.key(3), shot=5, query_shot=5).support


def assert_near(actual, expected, *, rtol, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    actual,
    expected,
  )


class LearnerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  @parameterized.parameters(
    MAMLPlusPlus(inner_lr=0.1),
    MAMLPlusPlus(inner_lr=0.1, learn_rates=False),
    MetaSGD(initial_rates=(0.1, 0.1)),
    Reptile(inner_lr=0.1),
  )
  def test_the_inner_rate_is_that_of_the_description(self, algorithm):
    actual = of_sines(algorithm).adapt(support())
    learner = of_sines(MAML(inner_lr=0.1))
    expected = learner.adapt(support())
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), expected, learner.params)
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-3)
    assert_near(actual, expected, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(
    CAVIA(inner_lr=0.1),
    MAMLPlusPlus(inner_lr=0.1),
  )
  def test_second_order_by_less_memory_gives_the_same_step(self, algorithm):
    def step(second_order):
      learner = of_sines(algorithm.replace(second_order=second_order))
      built = learner.algorithm()
      tasks = sines.sample_tasks(jax.random.key(3), num_tasks=2, shot=5, query_shot=5)
      state = built.init(learner.made.params)
      return jax.jit(built.step)(state, tasks), jax.make_jaxpr(built.step)(state, tasks)

    expected, _ = step("stored")
    actual, jaxpr = step("forward_over_reverse")
    self.assertIn("optimization_barrier", str(jaxpr))
    assert_near(actual, expected, rtol=2e-3, atol=1e-5)

  def test_adaptation_takes_the_steps_of_the_test_and_others_on_demand(self):
    learner = of_sines(MAML(inner_lr=0.05, num_inner_steps=1, num_eval_inner_steps=3))
    three = of_sines(MAML(inner_lr=0.05, num_inner_steps=3))
    assert_near(learner.adapt(support()), three.adapt(support()), rtol=1e-6, atol=1e-7)
    once = learner.adapt(support(), num_steps=1)
    assert_near(
      once, learner.algorithm().adapt(learner.params, support()), rtol=1e-6, atol=1e-7
    )

  @parameterized.parameters(
    (SharpMAMLLow(inner_lr=0.1), Sharpness(inner_rho=0.1), True),
    (SharpMAMLUp(inner_lr=0.1), Sharpness(outer_rho=0.1), False),
    (MAML(inner_lr=0.1), Sharpness(sharpness="low", inner_rho=0.1), True),
    (MAML(inner_lr=0.1), Sharpness(sharpness="both", inner_rho=0.1), False),
  )
  def test_who_takes_sharp_steps_at_test(self, algorithm, sharpness, is_sharp):
    adapted = of_sines(algorithm, sharpness=sharpness).adapt(support())
    plain = of_sines(MAML(inner_lr=0.1)).adapt(support())
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), adapted, plain)
    self.assertEqual(max(jax.tree.leaves(apart)) > 1e-5, is_sharp)

  @parameterized.parameters(*_catalogue.outlines("algorithm"))
  def test_every_algorithm_adapts_and_predicts_any_way_up_to_its_outputs(self, name):
    algorithm = _catalogue.find("algorithm", name)()
    of_support = (
      *("proto_maml", "protonet", "ridge", "unicorn_maml", "meta_baseline"),
      *("simpleshot", "baseline", "baseline_plus_plus"),
    )
    self.assertEqual(algorithm.any_way, name in of_support)
    learner = learners.build(of_images(algorithm))

    def adapt_and_predict(images, labels, way):
      adapted = learner.adapt(Batch(images, labels), way=way)
      return learner.predict(adapted, images[:2], way=way)

    def shape(way):
      images = jax.ShapeDtypeStruct((20, 6, 6, 1), jnp.float32)
      labels = jax.ShapeDtypeStruct((20,), jnp.int32)
      traced = functools.partial(adapt_and_predict, way=way)
      return jax.eval_shape(traced, images, labels).shape

    self.assertEqual(shape(3), (2, 3))
    if algorithm.any_way:
      self.assertEqual(shape(20), (2, 20))
    else:
      with self.assertRaisesRegex(ValueError, "way is 20, but the model has 4 outputs"):
        shape(20)

  @parameterized.parameters(ProtoMAML(), ProtoNet(), Ridge())
  def test_more_classes_than_outputs(self, algorithm):
    learner = learners.build(of_images(algorithm))
    images = jax.random.uniform(jax.random.key(0), (20, 6, 6, 1))
    batch = Batch(images, jnp.arange(20))
    with self.assertRaisesRegex(ValueError, "labels up to 19.*way is 4; pass way=20"):
      learner.adapt(batch)

    @jax.jit
    def adapt_and_predict(batch):
      adapted = learner.adapt(batch, way=20)
      return learner.predict(adapted, batch.inputs, way=20)

    # One example per class, so each is nearest to itself.
    outputs = adapt_and_predict(batch)
    np.testing.assert_array_equal(outputs.argmax(axis=1), np.arange(20))

  def test_negative_labels_are_refused(self):
    learner = learners.build(of_images(ProtoNet()))
    with self.assertRaisesRegex(ValueError, "labels from -1"):
      learner.adapt(Batch(jnp.zeros((4, 6, 6, 1)), jnp.arange(4) - 1))

  def test_labels_may_be_traced(self):
    learner = learners.build(of_images(ProtoNet()))
    support = Batch(jnp.zeros((4, 6, 6, 1)), jnp.arange(4))
    adapted = jax.jit(learner.adapt)(support)
    self.assertEqual(adapted.prototypes.shape[0], 4)
    # Inside of jit, where jnp traces what is done with concrete arrays too.
    closed = jax.eval_shape(lambda: learner.predict(learner.adapt(support), support[0]))
    self.assertEqual(closed.shape, (4, 4))
    wide = Batch(support.inputs, jnp.arange(4) - 1)
    with self.assertRaisesRegex(ValueError, "labels from -1"):
      jax.eval_shape(lambda: learner.adapt(wide))

  def test_inputs_of_another_size_are_refused(self):
    learner = learners.build(of_images(ProtoNet()))
    with self.assertRaisesRegex(ValueError, r"\[n, 6, 6, 1\], got \[2, 8, 8, 1\]"):
      learner.adapt(Batch(jnp.zeros((2, 8, 8, 1)), jnp.arange(2)))


class DescriptionTest(parameterized.TestCase):
  @parameterized.parameters(ProtoNet(), Ridge())
  def test_classifiers_are_refused_for_a_regression(self, algorithm):
    with self.assertRaisesRegex(ValueError, f"{algorithm.name} classifies, but this"):
      of_sines(algorithm)

  @parameterized.parameters(
    (ProtoNet(), {"sharpness": Sharpness(sharpness="low")}, "none; use --sharp.*=up"),
    (
      SharpMAMLUp(),
      {"sharpness": Sharpness(sharpness="up")},
      "already determines the sharpness",
    ),
    (MAML(), {"sharpness": Sharpness(inner_rho=0.3)}, "inner_rho=0.3 has no effect"),
    (IMAML(), {"precision": "bfloat16"}, "precision=bfloat16 .*imaml.*float32"),
  )
  def test_parts_that_do_not_go_together_are_refused(self, algorithm, parts, message):
    with self.assertRaisesRegex(ValueError, message):
      of_images(algorithm, **parts)

  def test_less_memory_is_refused_beside_running_statistics(self):
    with self.assertRaisesRegex(ValueError, "second_order=recomputed.*--running_stat"):
      MAMLPlusPlus(running_statistics=True, second_order="recomputed")

  @parameterized.parameters(
    (ProtoNet(), False),
    (Reptile(), True),
    (ANIL(), False),
    (MAML(adapt_norm=True), True),
    (MAML(), False),
    (MAMLPlusPlus(adapt_norm=True), False),
    (MAMLPlusPlus(adapt_norm=True, per_step_norm=False), True),
  )
  def test_who_adapts_normalisation(self, algorithm, expected):
    self.assertEqual(algorithm.adapts_norm(), expected)

  def test_a_network_without_a_place_for_a_context_says_so(self):
    class Plain(Conv4Options):
      with_context = Conv4Options.__mro__[1].with_context

    with self.assertRaisesRegex(ValueError, "cavia needs a network with a context"):
      learners.build(of_images(CAVIA(), network=Plain()))


if __name__ == "__main__":
  absltest.main()
