"""The attention learner against a second formulation, and who sees whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jsharp.models import MLP, AttentionLearner, as_learner_functions

WAY, WIDTH, HEADS = 3, 8, 2


def learner(normalize=False, **options):
  settings = {"num_outputs": WAY, "width": WIDTH, "num_heads": HEADS, "num_layers": 2}
  embedding = MLP((6, 5), normalize=normalize)
  return AttentionLearner(embedding, **(settings | options))


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def data():
  return random(6, 4), jnp.arange(6) % WAY, random(5, 4, seed=1)


@functools.cache
def functions(normalize=False):
  """`params` in double precision, and the compiled prediction."""
  init_fn, apply_fn = as_learner_functions(learner(normalize))
  params = jax.jit(init_fn)(jax.random.key(0), *data())
  # Biases and offsets that are not zero, so that a missing one is seen.
  moved = jax.tree.map(
    lambda x: x + 0.1 * random(*x.shape, seed=x.size).astype(x.dtype), params
  )
  return moved, jax.jit(apply_fn, static_argnames="num_statistics")


def dense(params, x):
  return x @ params["kernel"] + params["bias"]


def layer_norm(params, x):
  x = x - x.mean(axis=-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
  return x * params["scale"] + params["offset"]


def attend(params, token, others):
  """What one token takes from `others`, one head after the other."""
  ask, keys, values = (
    dense(params[name], x)
    for name, x in (("ask", token), ("key", others), ("value", others))
  )
  taken = []
  for head in range(HEADS):
    part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
    scores = keys[:, part] @ ask[part] / np.sqrt(WIDTH / HEADS)
    weights = np.exp(scores - scores.max())
    taken.append(weights @ values[:, part] / weights.sum())
  return dense(params["out"], np.concatenate(taken))


def block(params, support, query):
  """A query is None, or one token that joins the support set for itself alone."""
  tokens = support if query is None else np.concatenate([support, query[None]])
  normed = layer_norm(params["norm_0"], tokens)
  changed = []
  for token, asking in zip(tokens, normed, strict=True):
    x = token + attend(params["attention"], asking, normed)
    up = dense(params["up"], layer_norm(params["norm_1"], x))
    gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    changed.append(x + dense(params["down"], gelu))
  return np.stack(changed)


def embedding(params, x):
  hidden = np.maximum(dense(params["dense_0"], x), 0)
  return dense(params["dense_1"], hidden)


def by_hand(params, support_inputs, labels, query_inputs):
  """One query example at a time, in NumPy."""
  known = np.pad(np.eye(WAY)[labels], ((0, 0), (0, 1)), constant_values=1)
  support = embedding(params["embedding"], support_inputs)
  support = dense(params["token"], np.concatenate([support, known], axis=1))
  outputs = []
  for example in query_inputs:
    seen, unseen = support, np.zeros(WAY + 1)
    example = embedding(params["embedding"], example)
    query = dense(params["token"], np.concatenate([example, unseen]))
    for layer in range(2):
      of_layer = params[f"block_{layer}"]
      query = block(of_layer, seen, query)[-1]
      seen = block(of_layer, seen, None)
    outputs.append(dense(params["head"], layer_norm(params["norm"], query)))
  return np.stack(outputs)


class AttentionLearnerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def test_against_numpy(self):
    params, predict = functions()
    expected = by_hand(*jax.tree.map(np.asarray, (params, *data())))
    np.testing.assert_allclose(predict(params, *data()), expected, rtol=1e-9)

  def test_the_order_of_the_support_set_changes_nothing(self):
    params, predict = functions()
    x, y, query = data()
    order = jnp.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
      predict(params, x[order], y[order], query), predict(params, x, y, query), 1e-10
    )

  def test_pairing_of_inputs_and_labels_matters(self):
    params, predict = functions()
    x, y, query = data()
    change = predict(params, x, jnp.roll(y, 1), query) - predict(params, x, y, query)
    self.assertGreater(np.abs(change).max(), 1e-3)

  def test_a_query_does_not_see_the_others(self):
    params, predict = functions()
    x, y, query = data()
    before = np.asarray(predict(params, x, y, query))
    after = np.asarray(predict(params, x, y, query.at[2].set(jnp.nan)))
    self.assertTrue(np.isnan(after[2]).all())
    rest = np.array([0, 1, 3, 4])
    np.testing.assert_array_equal(after[rest], before[rest])

  def test_labels_are_their_one_hot_vectors(self):
    params, predict = functions()
    x, y, query = data()
    np.testing.assert_array_equal(
      predict(params, x, jax.nn.one_hot(y, WAY), query), predict(params, x, y, query)
    )

  def test_support_and_query_are_normalised_each_by_itself(self):
    params, predict = functions(normalize=True)
    x, y, query = data()
    before = predict(params, x, y, query)
    moved = predict(params, 3 * x + 1, y, query)  # Undone by its own statistics.
    np.testing.assert_allclose(moved, before, rtol=1e-4, atol=1e-5)
    moved = predict(params, x, y, 3 * query + 1)
    np.testing.assert_allclose(moved, before, rtol=1e-4, atol=1e-5)

  def test_num_statistics_is_of_the_query_inputs(self):
    params, predict = functions(normalize=True)
    x, y, query = data()
    before = predict(params, x, y, query, num_statistics=3)
    changed = query.at[4].add(1.0)
    after = predict(params, x, y, changed, num_statistics=3)
    np.testing.assert_allclose(after[:4], before[:4], rtol=1e-12)
    np.testing.assert_allclose(before[:3], predict(params, x, y, query[:3]), 1e-9)

  def test_regression_in_single_precision(self):
    with jax.enable_x64(False):
      init_fn, apply_fn = as_learner_functions(learner(num_outputs=1, num_layers=1))
      x = jnp.ones((4, 1))
      params = jax.eval_shape(init_fn, jax.random.key(0), x, x, x)
      outputs = jax.eval_shape(apply_fn, params, x, x, jnp.ones((7, 1)))
    self.assertEqual((outputs.shape, outputs.dtype), ((7, 1), jnp.float32))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    self.assertEqual(dtypes, {jnp.dtype("float32")})

  @parameterized.parameters(
    ({"num_heads": 3}, "multiple of num_heads=3; got 8"),
    ({"num_layers": 0}, "num_layers must be an integer of at least 1"),
    ({"num_outputs": 0}, "num_outputs must be"),
    ({"embedding": nn.Conv(2, (1,))}, "embedding must give"),
    ({"embedding": nn.BatchNorm(use_running_average=False)}, "has state"),
  )
  def test_bad_options_are_named(self, options, message):
    settings = {"embedding": MLP((5,)), "num_outputs": 2, "width": 8, "num_heads": 2}
    init_fn, _ = as_learner_functions(AttentionLearner(**(settings | options)))
    x = jnp.ones((4, 2, 2) if message == "embedding must give" else (4, 2))
    with jax.enable_x64(False), self.assertRaisesRegex(ValueError, message):
      x, labels = x.astype(jnp.float32), jnp.arange(4)
      jax.eval_shape(init_fn, jax.random.key(0), x, labels, x)

  @parameterized.parameters(
    (jnp.arange(5),), (jnp.eye(4, dtype=int),), (jnp.ones(4, bool),)
  )
  def test_targets_that_do_not_fit_are_named(self, targets):
    init_fn, _ = as_learner_functions(learner())
    x = jnp.ones((4, 2))
    with self.assertRaisesRegex(ValueError, "support_targets must be integer labels"):
      jax.eval_shape(init_fn, jax.random.key(0), x, targets, x)

  def test_a_label_that_no_output_stands_for_is_no_row_of_zeros(self):
    init_fn, _ = as_learner_functions(learner(num_outputs=3))
    x = jnp.ones((4, 2))
    with self.assertRaisesRegex(ValueError, r"labels must be in \[0, 3\)"):
      jax.eval_shape(lambda key: init_fn(key, x, np.arange(4), x), jax.random.key(0))


if __name__ == "__main__":
  absltest.main()
