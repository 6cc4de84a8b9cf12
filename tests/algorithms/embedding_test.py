"""Heads on an embedding: whose statistics normalise, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses, models, normalization
from jsharp.algorithms._embedding import (
  class_means,
  embed,
  one_hot_labels,
  without_absent,
)
from jsharp.algorithms.proto_maml import predict_with_head, proto_maml
from jsharp.algorithms.protonet import predict_with_prototypes, protonet
from jsharp.algorithms.ridge import predict_with_ridge, ridge
from jsharp.evaluation import tasks as evaluation

# Its embedding adapts too, but not before the first inner step.
without_steps = lambda apply_fn, outer_optimizer, **options: proto_maml(
  apply_fn, optax.sgd(0.1), outer_optimizer, num_inner_steps=0, **options
)

HEADS = parameterized.named_parameters(
  ("protonet", protonet, predict_with_prototypes),
  ("ridge", ridge, predict_with_ridge),
  ("proto_maml", without_steps, predict_with_head),
)

init_fn, apply_fn = models.as_functions(models.MLP((6, 4), normalize=True))
apply_fn = jax.jit(apply_fn, static_argnames="num_statistics")


@functools.cache
def params():
  return jax.jit(init_fn)(jax.random.key(1), jnp.zeros((2, 3)))


@functools.cache
def task():
  keys = jax.random.split(jax.random.key(0), 2)
  return jsharp.Task(
    jsharp.Batch(jax.random.normal(keys[0], (5, 3)), jnp.arange(5) % 2),
    jsharp.Batch(3 + jax.random.normal(keys[1], (4, 3)), jnp.arange(4) % 2),
  )


class PoliciesTest(parameterized.TestCase):
  @HEADS
  def test_each_policy_normalises_by_the_batch_it_names(self, constructor, factory):
    algorithm = constructor(apply_fn, optax.sgd(0.1), way=2)
    adapted = algorithm.adapt(algorithm.init(params()).params, task().support)
    predict = factory(apply_fn)
    support, query = task().support.inputs, task().query.inputs
    ready_made = factory(lambda features, inputs: inputs)  # Of embedded inputs.

    together = jnp.concatenate([support, query])
    by_support = apply_fn(params(), together, num_statistics=len(support))
    beside = [
      apply_fn(params(), jnp.concatenate([support, x[None]]))[-1] for x in query
    ]
    features = {
      normalization.transductive: apply_fn(params(), query),
      normalization.support_statistics: by_support[len(support) :],
      normalization.per_query: jnp.stack(beside),
    }
    for policy, expected in features.items():
      np.testing.assert_allclose(
        policy(predict)(adapted, task()),
        ready_made(adapted, expected),
        rtol=1e-4,
        atol=1e-5,
      )

  @HEADS
  def test_the_fit_is_on_the_support_set_as_its_own_batch(self, constructor, factory):
    algorithm = constructor(apply_fn, optax.sgd(0.1), way=2)
    embedded = constructor(lambda _, inputs: inputs, optax.sgd(0.1), way=2)
    start = algorithm.init(params()).params
    features = apply_fn(params(), task().support.inputs)
    actual = algorithm.adapt(start, task().support)
    expected = embedded.adapt(start, task().support._replace(inputs=features))
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=1e-6)

  @HEADS
  def test_evaluation_reports_both_accuracies(self, constructor, factory):
    measure = evaluation.transductive_and_inductive(
      factory(apply_fn), losses.cross_entropy
    )
    algorithm = constructor(apply_fn, optax.sgd(0.1), way=2)
    metrics = jax.eval_shape(
      evaluation.evaluator(algorithm.adapt, measure),
      algorithm.init(params()).params,
      jax.tree.map(lambda x: x[None], task()),
    )
    self.assertEqual(set(metrics), {"loss", "accuracy", "accuracy_inductive"})


class HalfPrecisionTest(parameterized.TestCase):
  @HEADS
  def test_heads_compute_in_single_precision(self, constructor, factory):
    # A thousand features of size 20: their squared length overflows.
    keys = jax.random.split(jax.random.key(3), 2)
    support, query = (20 * jax.random.normal(k, (6, 1000), jnp.float16) for k in keys)
    labels = jnp.arange(6) % 2
    logits = []
    for exact in (lambda x: x, lambda x: x.astype(jnp.float32)):
      embedding = lambda _, x: exact(x)  # noqa: B023
      algorithm = constructor(embedding, optax.sgd(0.1), way=2)
      start = algorithm.init(jnp.zeros((), jnp.float32)).params
      adapted = jax.jit(algorithm.adapt)(start, jsharp.Batch(support, labels))
      logits.append(jax.jit(factory(embedding))(adapted, query))
    self.assertTrue(np.isfinite(logits[1]).all())
    np.testing.assert_array_equal(*logits)


class AbsentTest(parameterized.TestCase):
  def test_the_logits_of_absent_classes_are_constant_and_change_no_other(self):
    logits = jnp.array([[3.0, -2.0, 5.0, 9.0], [0.0, 1.0, 800.0, -1.0]])
    present = jnp.array([True, False, True, False])
    outputs = without_absent(logits, present)
    np.testing.assert_array_equal(outputs[:, ::2], logits[:, ::2])
    np.testing.assert_array_equal(outputs[:, 1::2], [[-997.0] * 2, [-1000.0] * 2])
    slopes = jax.jacobian(lambda x: without_absent(x[None], present)[0])(logits[0])
    np.testing.assert_array_equal(slopes, np.diag([1.0, 0.0, 1.0, 0.0]))

  def test_means_of_unequal_numbers_of_examples(self):
    features = jax.random.normal(jax.random.key(2), (5, 3))
    labels = jnp.array([3, 1, 3, 3, 0])
    means, present = class_means(features, labels, 4)
    np.testing.assert_array_equal(present, [True, True, False, True])
    rows = [features[4], features[1], features.mean(0), features[labels == 3].mean(0)]
    np.testing.assert_allclose(means, jnp.stack(rows), rtol=1e-5, atol=1e-6)

  def test_a_label_of_no_class_is_never_left_out_without_a_word(self):
    features, labels = jnp.ones((4, 3)), jnp.array([0, 1, 2, 3])
    with self.assertRaisesRegex(ValueError, r"in \[0, 3\), .* got 0 to 3"):
      class_means(features, labels, 3)
    means, _ = jax.jit(class_means, static_argnums=2)(features, labels, 3)
    self.assertTrue(np.isnan(means).all())


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    (jnp.ones((2, 3, 4)),), (jnp.ones(3),), (jnp.ones((2, 2), int),)
  )
  def test_embeddings_that_are_no_matrix(self, features):
    with self.assertRaisesRegex(ValueError, r"float array \[num_examples, dim\], got"):
      embed(lambda params, x: x, None, features)

  @parameterized.parameters(
    (jnp.arange(3.0), 2, "integer labels .* got float32"),
    (jnp.arange(4), 2, r"integer labels of shape \(3,\)"),
    (jnp.eye(3, dtype=int), 2, "integer labels"),
    (jnp.arange(3), 5, "way=5 classes .* 3 support examples"),
  )
  def test_labels(self, labels, way, message):
    with self.assertRaisesRegex(ValueError, message):
      one_hot_labels(labels, way, jnp.ones((3, 2)))


if __name__ == "__main__":
  absltest.main()
