"""Prototypical networks against distances in NumPy, and the laws of the classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses, normalization
from jsharp.algorithms.protonet import predict_with_prototypes, protonet
from jsharp.evaluation import evaluator

WAY, DIM = 3, 5
LABELS = np.array([0, 2, 1, 1, 2, 1])


def identity(params, x):
  return x


def network(params, x):
  return jnp.tanh(x @ params["w"]) + params["b"][None]


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def start():
  return {"w": jnp.asarray(random(4, DIM, seed=5)), "b": jnp.full(DIM, 0.3)}


def task():
  support = jsharp.Batch(random(6, 4, seed=1), LABELS)
  query = jsharp.Batch(random(7, 4, seed=2), np.array([0, 1, 2, 0, 1, 2, 2]))
  return jax.tree.map(jnp.asarray, jsharp.Task(support, query))


def query_loss_fn():
  predict = normalization.transductive(predict_with_prototypes(network))
  return normalization.query_loss(predict, losses.cross_entropy)


def direct(queries, prototypes):
  """Negative squared distances in float64, the long way."""
  differences = np.float64(queries)[:, None] - np.float64(prototypes)[None]
  return -(differences**2).sum(axis=-1)


def softmax(logits):
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def logits_of(embedding, params, support, queries, way=WAY):
  algorithm = protonet(embedding, optax.sgd(0.1), way=way)

  @jax.jit
  def both(params, support, queries):
    adapted = algorithm.adapt(params, support)
    return adapted, predict_with_prototypes(embedding)(adapted, queries)

  return both(params, jax.tree.map(jnp.asarray, support), jnp.asarray(queries))


class ProtonetTest(parameterized.TestCase):
  def test_logits_are_distances_to_the_class_means(self):
    with jax.enable_x64(True):
      x, queries = random(6, DIM), random(4, DIM, seed=1)
      adapted, logits = logits_of(identity, 0.0, jsharp.Batch(x, LABELS), queries)
      means = np.stack([x[k == LABELS].mean(axis=0) for k in range(WAY)])
      np.testing.assert_allclose(adapted.prototypes, means, rtol=1e-12)
      np.testing.assert_allclose(logits, direct(queries, means), rtol=1e-10)

  def test_one_shot_is_the_nearest_neighbour_softmax(self):
    with jax.enable_x64(True):
      x, queries = random(WAY, DIM), random(4, DIM, seed=1)
      order = np.array([2, 0, 1])
      _, logits = logits_of(identity, 0.0, jsharp.Batch(x, order), queries)
      expected = softmax(direct(queries, x[np.argsort(order)]))
      np.testing.assert_allclose(softmax(np.asarray(logits)), expected, rtol=1e-10)

  def test_it_is_a_linear_classifier(self):
    with jax.enable_x64(True):
      queries = random(4, DIM, seed=1)
      support = jsharp.Batch(random(6, DIM), LABELS)
      adapted, logits = logits_of(identity, 0.0, support, queries)
      prototypes = np.asarray(adapted.prototypes)
      linear = queries @ (2 * prototypes.T) - (prototypes**2).sum(axis=1)
      np.testing.assert_allclose(
        softmax(np.asarray(logits)), softmax(linear), rtol=1e-10
      )

  @parameterized.parameters(0.0, 1e4)
  def test_a_large_common_offset_costs_no_digits_in_single_precision(self, offset):
    x = np.float32(random(6, 64) + offset)
    queries = np.float32(random(4, 64, seed=1) + offset)
    _, logits = logits_of(identity, 0.0, jsharp.Batch(x, LABELS), queries)
    means = np.stack([np.float64(x[k == LABELS]).mean(axis=0) for k in range(WAY)])
    # The mean itself is rounded to 5e-4 at 1e4; a plain expansion is off by 30.
    np.testing.assert_allclose(
      logits, direct(queries, means), atol=1e-4 + 3e-6 * offset
    )

  def test_a_shared_translation_changes_neither_loss_nor_gradient(self):
    with jax.enable_x64(True):
      algorithm = protonet(network, optax.sgd(1.0), way=WAY)
      tasks = jax.tree.map(lambda x: x[None], task())
      moved = start() | {"b": start()["b"] + jnp.arange(DIM, dtype=float)}
      step = jax.jit(algorithm.step)
      (at, metrics), (at_moved, metrics_moved) = (
        step(algorithm.init(params), tasks) for params in (start(), moved)
      )
      np.testing.assert_allclose(metrics["loss"], metrics_moved["loss"], rtol=1e-12)
      np.testing.assert_allclose(at.params["w"], at_moved.params["w"], rtol=1e-10)
      np.testing.assert_allclose(at.params["b"], start()["b"], atol=1e-12)

  def test_meta_gradient_by_finite_differences(self):
    with jax.enable_x64(True):
      algorithm = protonet(network, optax.sgd(1.0), way=WAY)
      tasks = jax.tree.map(lambda x: x[None], task())
      state, _ = jax.jit(algorithm.step)(algorithm.init(start()), tasks)
      gradient = start()["w"] - state.params["w"]
      evaluate = jax.jit(evaluator(algorithm.adapt, query_loss_fn()))
      direction = random(4, DIM, seed=9)

      def loss(shift):
        w = start()["w"] + shift * direction
        return float(evaluate(start() | {"w": w}, tasks)["loss"][0])

      numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
      np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=1e-7)

  def test_an_absent_class_is_never_predicted_and_everything_is_finite(self):
    with jax.enable_x64(True):
      labels = np.array([0, 2, 2, 0, 2, 0])
      support = jsharp.Batch(random(6, DIM) + 50, labels)
      queries = random(4, DIM, seed=1) * 100
      adapted, logits = logits_of(identity, 0.0, support, queries, way=4)
      _, without = logits_of(
        identity, 0.0, support._replace(targets=labels // 2), queries, way=2
      )
      np.testing.assert_array_equal(adapted.present, [True, False, True, False])
      np.testing.assert_allclose(logits[:, ::2], without, rtol=1e-9)
      np.testing.assert_allclose(
        logits[:, 1::2], np.min(without, axis=1)[:, None] + np.full(2, -1000.0)[None]
      )

      def loss(scale, x):
        _, logits = logits_of(jnp.multiply, scale, support, x, way=4)
        return losses.cross_entropy(logits, jnp.array([0, 1, 2, 3]))[0]

      value, gradients = jax.value_and_grad(loss, (0, 1))(1.0, jnp.asarray(queries))
      for part in (value, *gradients):
        self.assertTrue(np.isfinite(part).all())

  def test_training_and_test_may_differ_in_way(self):
    with jax.enable_x64(True):
      trained = protonet(network, optax.sgd(1.0), way=WAY).init(start())
      two = jax.tree.map(lambda x: x[None], task())
      two = jax.tree.map(lambda x: x % 2 if x.dtype == int else x, two)
      adapt = protonet(network, optax.sgd(1.0), way=2).adapt
      metrics = evaluator(adapt, query_loss_fn())(trained.params, two)
      self.assertTrue(np.isfinite(metrics["loss"]).all())

  @parameterized.parameters(1, 0, 2.5, True)
  def test_way_is_checked(self, way):
    with self.assertRaisesRegex(ValueError, "way must be an integer of at least 2"):
      protonet(network, optax.sgd(0.1), way=way)


if __name__ == "__main__":
  absltest.main()
