"""Algorithms for pretrained embeddings: second formulations in NumPy, and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import learners
from jsharp.algorithms import (
  WithOwn,
  baseline,
  meta_baseline,
  predict_by_centroid,
  predict_by_classifier,
  predict_by_cosine,
  predict_with_head,
  simpleshot,
  unicorn_maml,
)
from jsharp.algorithms._mini_batches import mini_batches
from jsharp.algorithms.baseline import Baseline, BaselinePlusPlus
from jsharp.algorithms.meta_baseline import MetaBaseline
from jsharp.algorithms.simpleshot import SimpleShot
from jsharp.algorithms.unicorn_maml import UnicornMAML
from jsharp.models.mlp import MLPOptions

WAY, DIM, RATE = 3, 4, 0.3
LABELS = np.array([1, 2, 1, 0, 2, 1])
QUERY_LABELS = np.array([0, 1, 2, 0, 1, 2, 2])


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def embedding(matrix, x):
  return jnp.tanh(x @ matrix)


def task(seed=0):
  support = jsharp.Batch(random(6, 5, seed=seed + 1), LABELS)
  return jsharp.Task(support, jsharp.Batch(random(7, 5, seed=seed + 2), QUERY_LABELS))


def tasks():
  every = [task(0), task(10)]
  return jax.tree.map(lambda *rows: jnp.stack(list(map(jnp.asarray, rows))), *every)


def softmax(logits):
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  return powers / powers.sum(axis=1, keepdims=True)


def query_loss(logits):
  return -np.log(softmax(logits)[np.arange(len(QUERY_LABELS)), QUERY_LABELS]).mean()


class UnicornTest(parameterized.TestCase):
  def built(self, steps=2, **options):
    return unicorn_maml(
      embedding,
      optax.sgd(RATE),
      optax.sgd(0.5),
      way=WAY,
      num_inner_steps=steps,
      **options,
    )

  def start(self):
    return WithOwn(jnp.asarray(0.6 * random(5, DIM, seed=5)), jnp.asarray(random(DIM)))

  def logits(self, start, steps=2):
    """The query logits by NumPy, differentiated by hand."""
    matrix, row = map(np.asarray, start)
    some = task()
    weights, bias = np.repeat(row[:, None], WAY, axis=1), np.zeros(WAY)
    wanted = np.eye(WAY)[LABELS]
    for _ in range(steps):
      x = some.support.inputs
      hidden = np.tanh(x @ matrix)
      errors = (softmax(hidden @ weights + bias) - wanted) / len(LABELS)
      to_hidden = errors @ weights.T * (1 - hidden**2)
      matrix, weights, bias = (
        matrix - RATE * x.T @ to_hidden,
        weights - RATE * hidden.T @ errors,
        bias - RATE * errors.sum(axis=0),
      )
    return np.tanh(some.query.inputs @ matrix) @ weights + bias

  def test_value_and_meta_gradient(self):
    with jax.enable_x64(True):
      algorithm, start = self.built(), self.start()
      adapted = algorithm.adapt(start, task().support)
      found = predict_with_head(embedding)(adapted, task().query.inputs)
      np.testing.assert_allclose(found, self.logits(start), rtol=1e-10)
      one = jax.tree.map(lambda x: jnp.asarray(x)[None], task())
      state, metrics = algorithm.step(algorithm.init(start), one)
      np.testing.assert_allclose(
        metrics["loss"][0], query_loss(self.logits(start)), rtol=1e-10
      )
      grads = jax.tree.map(lambda a, b: (a - b) / 0.5, start, state.params)
      for seed in range(2):
        along = WithOwn(random(5, DIM, seed=seed), random(DIM, seed=seed + 7))

        def loss(size, along=along):
          moved = jax.tree.map(lambda w, d: np.asarray(w) + size * d, start, along)
          return query_loss(self.logits(moved))

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        products = jax.tree.map(lambda g, d: float((g * d).sum()), grads, along)
        np.testing.assert_allclose(sum(products), slope, rtol=1e-7)

  def test_predictions_do_not_depend_on_the_numbers_of_classes(self):
    with jax.enable_x64(True):
      algorithm, start, some = self.built(), self.start(), task()
      order = np.array([2, 0, 1])
      predict = predict_with_head(embedding)
      plain = predict(algorithm.adapt(start, some.support), some.query.inputs)
      renumbered = some.support._replace(targets=order[LABELS])
      other = predict(algorithm.adapt(start, renumbered), some.query.inputs)
      np.testing.assert_allclose(other[:, order], plain, rtol=1e-12)

  def test_refuses_a_head_for_each_class(self):
    start = WithOwn(jnp.ones((5, DIM)), jnp.ones((DIM, WAY)))
    with self.assertRaisesRegex(ValueError, "one row .dim. for all classes"):
      self.built().adapt(start, task().support)


class MetaBaselineTest(absltest.TestCase):
  def test_value_and_gradient_of_the_temperature(self):
    with jax.enable_x64(True):
      start = WithOwn(jnp.asarray(random(5, DIM)), jnp.float64(10.0))
      algorithm = meta_baseline(embedding, optax.sgd(0.5), way=WAY)
      support, query = (np.tanh(b.inputs @ np.asarray(start.embedding)) for b in task())
      means = np.stack([support[k == LABELS].mean(axis=0) for k in range(WAY)])
      cosines = query @ means.T / np.linalg.norm(means, axis=1)
      cosines /= np.linalg.norm(query, axis=1, keepdims=True)
      adapted = algorithm.adapt(start, task().support)
      found = predict_by_cosine(embedding)(adapted, task().query.inputs)
      np.testing.assert_allclose(found, 10 * cosines, rtol=1e-10)
      one = jax.tree.map(lambda x: jnp.asarray(x)[None], task())
      state, _ = algorithm.step(algorithm.init(start), one)
      wanted = cosines[np.arange(len(QUERY_LABELS)), QUERY_LABELS]
      slope = ((softmax(10 * cosines) * cosines).sum(axis=1) - wanted).mean()
      np.testing.assert_allclose(state.params.head, 10 - 0.5 * slope, rtol=1e-10)


class SimpleShotTest(parameterized.TestCase):
  def test_the_centre_is_the_mean_of_all_images_of_all_steps(self):
    with jax.enable_x64(True):
      matrix = jnp.asarray(random(5, DIM))
      algorithm = simpleshot(embedding, way=WAY)
      state = algorithm.init(WithOwn(matrix, jnp.full(DIM, 7.0)))
      later = jax.tree.map(lambda x: x[::-1] if x.ndim == 2 else x + 1.0, tasks())
      later = later._replace(support=later.support._replace(targets=tasks().support[1]))
      later = later._replace(query=later.query._replace(targets=tasks().query[1]))
      seen = []
      for some in (tasks(), later):
        state, metrics = algorithm.step(state, some)
        seen += [some.support.inputs, some.query.inputs]
      images = np.concatenate([np.asarray(x).reshape(-1, 5) for x in seen])
      np.testing.assert_array_equal(state.params.embedding, matrix)
      np.testing.assert_allclose(
        state.params.head, np.tanh(images @ matrix).mean(axis=0), rtol=1e-12
      )
      self.assertEqual(metrics["loss"].shape, (2,))

  @parameterized.parameters("none", "l2", "centred_l2")
  def test_distances(self, transform):
    with jax.enable_x64(True):
      matrix, centre = random(5, DIM), random(DIM, seed=3)
      algorithm = simpleshot(embedding, way=WAY, transform=transform)
      adapted = algorithm.adapt(
        WithOwn(jnp.asarray(matrix), jnp.asarray(centre)), task().support
      )
      found = predict_by_centroid(embedding, transform)(adapted, task().query.inputs)

    def transformed(inputs):
      rows = np.tanh(inputs @ matrix)
      if transform == "centred_l2":
        rows = rows - centre
      if transform != "none":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
      return rows

    support, query = (transformed(batch.inputs) for batch in task())
    means = np.stack([support[k == LABELS].mean(axis=0) for k in range(WAY)])
    expected = -((query[:, None] - means[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "transform.*centred_l2"):
      simpleshot(embedding, way=2, transform="l3").adapt(
        WithOwn(jnp.ones((5, 2)), jnp.zeros(2)), task().support
      )


class BaselineTest(parameterized.TestCase):
  @parameterized.parameters("linear", "cosine")
  def test_the_classifier_by_a_loop_in_numpy(self, head):
    steps = 5
    with jax.enable_x64(True):
      matrix = jnp.asarray(random(5, DIM))
      algorithm = baseline(embedding, way=WAY, head=head, num_inner_steps=steps)
      adapted = algorithm.adapt(matrix, task().support)
      start = algorithm.adapt(matrix, task().support, num_steps=0)
      predict = predict_by_classifier(embedding, head)
      found = predict(adapted, task().query.inputs)

    features = np.tanh(task().support.inputs @ np.asarray(matrix))
    weights, bias = np.array(start.weights), np.zeros(WAY)
    self.assertEqual(bool(weights.any()), head == "cosine")
    speed, bias_speed = np.zeros_like(weights), np.zeros(WAY)
    for chosen in np.asarray(mini_batches(6, size=3, num_batches=steps)):
      rows, wanted = features[chosen], np.eye(WAY)[LABELS[chosen]]
      if head == "linear":
        errors = (softmax(rows @ weights + bias) - wanted) / len(chosen)
        by_weights, by_bias = rows.T @ errors, errors.sum(axis=0)
      else:
        lengths = np.linalg.norm(weights, axis=0)
        unit_rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        logits = 2 * unit_rows @ weights / lengths
        errors = (softmax(logits) - wanted) / len(chosen)
        by_unit = 2 * unit_rows.T @ errors
        units = weights / lengths
        along = (by_unit * units).sum(axis=0)
        by_weights, by_bias = (by_unit - units * along) / lengths, np.zeros(WAY)
      speed = 0.9 * speed + 0.1 * (by_weights + 1e-3 * weights)
      bias_speed = 0.9 * bias_speed + 0.1 * (by_bias + 1e-3 * bias)
      weights, bias = weights - 0.01 * speed, bias - 0.01 * bias_speed
    np.testing.assert_allclose(adapted.weights, weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(adapted.bias, bias, rtol=1e-9, atol=1e-12)
    self.assertEqual(found.shape, (7, WAY))

  def test_a_step_measures_and_changes_nothing(self):
    algorithm = baseline(embedding, way=WAY)
    start = jnp.asarray(random(5, DIM), jnp.float32)
    some = jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim > 2 else x, tasks())
    state, metrics = jax.jit(algorithm.step)(algorithm.init(start), some)
    np.testing.assert_array_equal(state.params, start)
    self.assertEqual((int(state.step), metrics["accuracy"].shape), (1, (2,)))


class DescriptionTest(parameterized.TestCase):
  @parameterized.parameters(
    UnicornMAML(num_inner_steps=1),
    MetaBaseline(),
    SimpleShot(),
    Baseline(num_head_steps=3),
    BaselinePlusPlus(num_head_steps=3),
  )
  def test_a_learner_of_any_way(self, algorithm):
    learner = learners.build(
      learners.Description(
        algorithm=algorithm, network=MLPOptions(), num_outputs=2, input_shape=(4, 4, 1)
      )
    )
    images = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype("f4")
    support = jsharp.Batch(jnp.asarray(images), jnp.arange(6) % 3)
    adapted = learner.adapt(support, way=3)
    self.assertEqual(learner.predict(adapted, support.inputs, way=3).shape, (6, 3))

  def test_sharpness_needs_a_gradient(self):
    for algorithm in (SimpleShot(), Baseline()):
      for sharpness in ("low", "up"):
        with self.assertRaisesRegex(ValueError, f"sharpness={sharpness}.*leave it out"):
          learners.Description(
            algorithm=algorithm,
            network=MLPOptions(),
            sharpness=jsharp.algorithms.Sharpness(sharpness=sharpness),
            num_outputs=2,
            input_shape=(4, 4, 1),
          )


if __name__ == "__main__":
  absltest.main()
