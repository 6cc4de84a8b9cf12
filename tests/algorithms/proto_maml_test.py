"""Proto-MAML against NumPy, where a complex step differentiates through everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import learners, losses
from jsharp.algorithms import protonet
from jsharp.algorithms.proto_maml import ProtoMAML, predict_with_head, proto_maml
from jsharp.algorithms.protonet import predict_with_prototypes
from jsharp.core import forward_over_reverse, recomputed
from jsharp.models.mlp import MLPOptions, SineNetwork

WAY, DIM, INNER_LR, OUTER_LR = 3, 4, 0.2, 0.5
# Three examples of class 1, two of class 2, one of class 0.
LABELS = np.array([1, 2, 1, 0, 2, 1])
QUERY_LABELS = np.array([0, 1, 2, 0, 1, 2, 2])


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def start():
  return 0.6 * random(5, DIM, seed=5)


def task(seed=0):
  support = jsharp.Batch(random(6, 5, seed=seed + 1), LABELS)
  return jsharp.Task(support, jsharp.Batch(random(7, 5, seed=seed + 2), QUERY_LABELS))


def tasks(num_tasks=2):
  every = [task(10 * i) for i in range(num_tasks)]
  return jax.tree.map(lambda *rows: jnp.stack(list(map(jnp.asarray, rows))), *every)


def embedding(matrix, x):
  return x @ matrix


def network(params, x):
  """An embedding with a curvature of its own."""
  return jnp.tanh(x @ params)


def built(apply_fn=embedding, *, steps, way=WAY, inner=None, **options):
  return proto_maml(
    apply_fn,
    inner or optax.sgd(INNER_LR),
    optax.sgd(OUTER_LR),
    way=way,
    num_inner_steps=steps,
    **options,
  )


# The oracle: matrices and no automatic differentiation. It holds for complex numbers,
# so that the imaginary part of a step of 1e-30 is a derivative to all digits.


def probabilities(logits):
  weights = np.exp(logits)
  return weights / weights.sum(axis=1, keepdims=True)


def support_gradient(matrix, weights, bias, batch):
  features = batch.inputs @ matrix
  one_hot = np.eye(bias.size)[batch.targets]
  by_logits = (probabilities(features @ weights + bias) - one_hot) / len(one_hot)
  by_matrix = batch.inputs.T @ by_logits @ weights.T
  return by_matrix, features.T @ by_logits, by_logits.sum(axis=0)


def moved(point, direction, size):
  return tuple(p + size * d for p, d in zip(point, direction, strict=True))


def adapted_by_hand(matrix, support, steps, *, way=WAY, rho=0.0, constant=False):
  features = support.inputs @ matrix
  means = np.stack([features[support.targets == k].mean(axis=0) for k in range(way)])
  point = matrix, 2 * means.T, -(means**2).sum(axis=1)
  for _ in range(steps):
    seen = tuple(p.real for p in point) if constant else point
    gradient = support_gradient(*seen, support)
    if rho:
      norm = np.sqrt(sum((g**2).sum() for g in gradient))
      gradient = support_gradient(*moved(seen, gradient, rho / norm), support)
    point = moved(point, gradient, -INNER_LR)
  return point


def query_loss_by_hand(matrix, a_task, steps, **options):
  matrix, weights, bias = adapted_by_hand(matrix, a_task.support, steps, **options)
  chosen = probabilities(a_task.query.inputs @ matrix @ weights + bias)
  rows = np.arange(len(a_task.query.targets))
  return -np.log(chosen[rows, a_task.query.targets]).mean()


def meta_gradient_by_hand(matrix, some_tasks, steps, **options):
  gradient = np.zeros_like(matrix)
  for i, a_task in [(i, t) for i in np.ndindex(matrix.shape) for t in some_tasks]:
    shifted = matrix.astype(complex)
    shifted[i] += 1e-30j
    loss = query_loss_by_hand(shifted, a_task, steps, **options)
    gradient[i] += loss.imag / 1e-30 / len(some_tasks)
  return gradient


def meta_gradient(algorithm, params, some_tasks):
  state, metrics = jax.jit(algorithm.step)(algorithm.init(params), some_tasks)
  return (params - state.params) / OUTER_LR, metrics["loss"]


def logits_of(algorithm, predict, params, support, queries):
  @jax.jit
  def both(params, support, queries):
    adapted = algorithm.adapt(params, support)
    return adapted, predict(adapted, queries)

  return both(params, jax.tree.map(jnp.asarray, support), jnp.asarray(queries))


class ByHandTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  @parameterized.parameters(0, 3)
  def test_adaptation_with_unequal_numbers_of_examples(self, steps):
    adapted, logits = logits_of(
      built(steps=steps),
      predict_with_head(embedding),
      start(),
      task().support,
      task().query.inputs,
    )
    matrix, weights, bias = adapted_by_hand(start(), task().support, steps)
    np.testing.assert_allclose(adapted.params, matrix, rtol=1e-11)
    np.testing.assert_allclose(adapted.weights, weights, rtol=1e-11)
    np.testing.assert_allclose(adapted.bias, bias, rtol=1e-11)
    expected = task().query.inputs @ matrix @ weights + bias
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-11)

  @parameterized.parameters(
    (3, {}, {}),
    (2, {"inner_loss": losses.first_order}, {"constant": True}),
    (2, {"inner_loss": recomputed}, {}),
    (
      2,
      {
        "inner": optax.chain(jsharp.sam(0.4), optax.sgd(INNER_LR)),
        "inner_loss": forward_over_reverse,
      },
      {"rho": 0.4},
    ),
  )
  def test_the_meta_gradient_flows_through_the_prototypes(self, steps, options, said):
    algorithm = built(steps=steps, **options)
    gradient, metrics = meta_gradient(algorithm, start(), tasks())
    every = [task(0), task(10)]
    expected = meta_gradient_by_hand(start(), every, steps, **said)
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-11)
    query_losses = [query_loss_by_hand(start(), t, steps, **said) for t in every]
    np.testing.assert_allclose(metrics, query_losses, rtol=1e-11)

  def test_a_head_that_is_held_constant_would_give_another_gradient(self):
    # What the test above would not see if prototypes hardly mattered.
    every = [task(0)]
    exact = meta_gradient_by_hand(start(), every, 1)

    def through_the_body_alone(matrix):
      support, query = map(functools.partial(jax.tree.map, jnp.asarray), task(0))
      adapted = built(steps=1).adapt(matrix, support)
      held = jax.lax.stop_gradient(adapted)._replace(params=adapted.params)
      logits = predict_with_head(embedding)(held, query.inputs)
      return losses.cross_entropy(logits, query.targets)[0]

    without = jax.jit(jax.grad(through_the_body_alone))(jnp.asarray(start()))
    self.assertGreater(np.abs(without - exact).max(), 0.1 * np.abs(exact).max())


class AsProtonetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def test_without_inner_steps_logits_differ_by_a_constant_per_example(self):
    _, expected = logits_of(
      protonet(network, optax.sgd(OUTER_LR), way=WAY),
      predict_with_prototypes(network),
      start(),
      task().support,
      task().query.inputs,
    )
    _, logits = logits_of(
      built(network, steps=0),
      predict_with_head(network),
      start(),
      task().support,
      task().query.inputs,
    )
    squares = np.square(network(start(), task().query.inputs)).sum(axis=1)
    np.testing.assert_allclose(
      logits - expected, np.tile(squares[:, None], WAY), rtol=1e-11
    )

  def test_without_inner_steps_it_learns_as_a_prototypical_network(self):
    expected = meta_gradient(
      protonet(network, optax.sgd(OUTER_LR), way=WAY), start(), tasks()
    )
    actual = meta_gradient(built(network, steps=0), start(), tasks())
    for a, b in zip(actual, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


class ClassesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def test_an_absent_class_is_never_predicted_and_changes_nothing(self):
    labels = np.array([0, 2, 2, 0, 2, 0])
    support = jsharp.Batch(task().support.inputs, labels)
    queries = 20 * task().query.inputs
    predict = predict_with_head(network)
    adapted, logits = logits_of(
      built(network, steps=2, way=4), predict, start(), support, queries
    )
    fewer = support._replace(targets=labels // 2)
    expected, without = logits_of(
      built(network, steps=2, way=2), predict, start(), fewer, queries
    )
    np.testing.assert_array_equal(adapted.present, [True, False, True, False])
    np.testing.assert_allclose(adapted.params, expected.params, rtol=1e-11)
    np.testing.assert_allclose(logits[:, ::2], without, rtol=1e-9)
    np.testing.assert_allclose(
      logits[:, 1::2], np.min(without, axis=1)[:, None] - np.full((1, 2), 1000.0)
    )

  def test_a_task_with_absent_classes_has_a_finite_gradient(self):
    four = jax.tree.map(jnp.asarray, task())
    four = four._replace(support=four.support._replace(targets=jnp.array(LABELS % 2)))
    four = jax.tree.map(lambda x: x[None], four)  # Class 2 is asked for all the same.
    for inner_loss in (lambda loss_fn: loss_fn, forward_over_reverse):
      algorithm = built(network, steps=1, way=4, inner_loss=inner_loss)
      gradient, metrics = meta_gradient(algorithm, start(), four)
      self.assertTrue(np.isfinite(gradient).all())
      self.assertTrue(np.isfinite(metrics).all())
      self.assertGreater(np.abs(gradient).max(), 1e-3)

  @parameterized.parameters(2, 6)
  def test_the_same_parameters_serve_any_way(self, way):
    params = built(steps=2).init(start()).params
    support = jsharp.Batch(random(13, 5, seed=3), np.arange(13) % way)
    adapted, logits = logits_of(
      built(steps=2, way=way),
      predict_with_head(embedding),
      params,
      support,
      support.inputs,
    )
    matrix, weights, bias = adapted_by_hand(start(), support, 2, way=way)
    self.assertEqual(adapted.weights.shape, (DIM, way))
    expected = support.inputs @ matrix @ weights + bias
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-10)

  @parameterized.parameters(
    ({"way": 1}, "way must be an integer of at least 2"),
    ({"way": 2.5}, "way must be an integer of at least 2"),
    ({"steps": -1}, "num_inner_steps must be"),
  )
  def test_bad_arguments_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      built(**{"steps": 1, **options})

  def test_fewer_examples_than_classes_are_refused(self):
    with self.assertRaisesRegex(ValueError, "way=9 classes .* 6 support examples"):
      built(steps=1, way=9).adapt(jnp.asarray(start()), task().support)


class DescriptionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  def learner(self, network=MLPOptions(), **options):  # noqa: B008
    return learners.build(
      learners.Description(
        algorithm=ProtoMAML(inner_lr=0.1, **options),
        network=network,
        num_outputs=3,
        input_shape=(4, 4, 1),
      )
    )

  def moves(self, **options):
    """How far each kind of leaf is moved by adaptation."""
    learner = self.learner(**options)
    images = jax.random.uniform(jax.random.key(0), (9, 4, 4, 1))
    adapted = jax.jit(learner.adapt)(jsharp.Batch(images, jnp.arange(9) % 3))
    far = {"norm": 0.0, "dense": 0.0}
    for name, leaves in adapted.params.items():
      before = learner.params[name]
      distance = max(float(np.abs(leaves[k] - before[k]).max()) for k in leaves)
      kind = "norm" if "norm" in name else "dense"
      far[kind] = max(far[kind], distance)
    return far

  def test_who_adapts_normalisation(self):
    far = self.moves()
    self.assertEqual(far["norm"], 0)
    self.assertGreater(far["dense"], 1e-4)
    self.assertGreater(self.moves(adapt_norm=True)["norm"], 1e-4)

  def test_first_order_changes_the_meta_gradient_and_not_the_adaptation(self):
    images = jax.random.uniform(jax.random.key(1), (1, 6, 4, 4, 1))
    batch = jsharp.Batch(images, jnp.arange(6)[None] % 3)

    def stepped(**options):
      learner = self.learner(SineNetwork(), **options)
      algorithm = learner.algorithm()
      state = algorithm.init(learner.made.params)
      state, metrics = jax.jit(algorithm.step)(state, jsharp.Task(batch, batch))
      return state.params, metrics["loss"]

    (exact, loss), (first, same) = stepped(), stepped(first_order=True)
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), exact, first)
    self.assertGreater(max(jax.tree.leaves(apart)), 1e-5)
    algorithm = ProtoMAML(first_order=True, num_inner_steps=2)
    self.assertEqual(algorithm.exact(), ProtoMAML(num_inner_steps=2))
    self.assertEqual(algorithm.leaner(), [algorithm])
    self.assertLen(ProtoMAML().leaner(), 2)

  def test_second_order_is_refused_where_there_is_none(self):
    with self.assertRaisesRegex(ValueError, "second_order=recomputed .*first_order"):
      ProtoMAML(first_order=True, second_order="recomputed")


if __name__ == "__main__":
  absltest.main()
