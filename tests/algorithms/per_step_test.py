"""MAML++'s per-step running statistics: what they average, and whom they normalise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses, normalization
from jsharp.algorithms import batch_loss_with_statistics, maml_plus_plus
from jsharp.algorithms._per_step import averaged
from jsharp.evaluation import evaluator
from jsharp.models import MLP, all_but_norm, with_statistics
from jsharp.types import Variables

STEPS, NUM_TASKS, LR = 2, 3, 0.2
INIT_FN, APPLY_FN = with_statistics(MLP((4, 2), normalize=True))


def build(inner=None, outer=None, **options):
  options = {"num_inner_steps": STEPS, "inner_lr": LR, "learn_rates": False} | options
  return maml_plus_plus(
    batch_loss_with_statistics(APPLY_FN, losses.squared_error),
    inner or optax.sgd(1.0),
    outer or optax.sgd(0.1),
    statistics_decay=0.5,
    adapted_mask=all_but_norm,
    **options,
  )


@functools.cache
def tasks():
  keys = jax.random.split(jax.random.key(0), 4)

  def batch(key, other, size):
    x = 1 + 2 * jax.random.normal(key, (NUM_TASKS, size, 3))
    return jsharp.Batch(x, jax.random.normal(other, (NUM_TASKS, size, 2)))

  return jsharp.Task(batch(*keys[:2], 6), batch(*keys[2:], 5))


@functools.cache
def variables():
  return jax.jit(INIT_FN)(jax.random.key(1), jnp.ones((1, 3)))


@functools.cache
def trained():
  """The states after 0, 1 and 2 meta-steps."""
  algorithm = build()
  step, states = jax.jit(algorithm.step), [algorithm.init(variables())]
  for _ in range(2):
    states.append(step(states[-1], tasks())[0])
  return states


def adapt_by_hand(params, support, rows=None):
  """The points of the inner loop, normalised by the batch or by rows of statistics."""

  def loss(params, i):
    statistics = None if rows is None else jax.tree.map(lambda x: x[i], rows)
    outputs, _ = APPLY_FN(params, support.inputs, statistics)
    return jnp.mean((outputs - support.targets) ** 2)

  points = [params]
  for i in range(STEPS):
    moved = jax.tree.map(
      lambda w, g: w - LR * g, points[-1], jax.grad(loss)(points[-1], i)
    )
    points.append(moved | {"norm_0": params["norm_0"]})
  return points


def pre_activations(params, x):
  layer = jax.tree.map(np.asarray, params["dense_0"])
  return np.asarray(x) @ layer["kernel"] + layer["bias"]


def seen(params):
  """Mean over tasks of the means and squares at each step, `[STEPS + 1, 4]` each."""
  means, squares = [], []
  for task in range(NUM_TASKS):
    support, query = jax.tree.map(lambda x: x[task], tasks())  # noqa: B023
    points = jax.jit(adapt_by_hand)(params, support)
    batches = [support.inputs] * STEPS + [query.inputs]
    hidden = [pre_activations(p, x) for p, x in zip(points, batches, strict=True)]
    means.append([h.mean(0) for h in hidden])
    squares.append([np.square(h).mean(0) for h in hidden])
  return np.mean(means, axis=0), np.mean(squares, axis=0)


class StatisticsTest(parameterized.TestCase):
  @parameterized.parameters((0.5, 50.5), (0.9, 20.8))
  def test_they_forget_once_equal_weights_would_forget_slower(self, decay, expected):
    kept = jnp.float32(7)
    for step, seen in enumerate((1, 1, 1, 1, 100)):
      kept = averaged(kept, jnp.float32(seen), decay=decay, step=jnp.int32(step))
    self.assertAlmostEqual(float(kept), expected, places=4)

  def test_they_average_the_passes_of_training(self):
    states = trained()
    first, second = seen(states[0].params.params), seen(states[1].params.params)
    # Equal weights at first: the second step's half is what a decay of 0.5 gives too.
    for state, expected in (
      (states[1], first),
      (states[2], tuple((a + b) / 2 for a, b in zip(first, second, strict=True))),
    ):
      kept = state.params.statistics["norm_0"]
      np.testing.assert_allclose(kept["mean"], expected[0], rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(kept["square"], expected[1], rtol=1e-4, atol=1e-5)

  def test_on_constant_batches_they_are_the_batch_itself(self):
    algorithm = build(outer=optax.sgd(0.0), inner_lr=0.0)
    step, state = jax.jit(algorithm.step), algorithm.init(variables())
    one = jax.tree.map(lambda x: jnp.repeat(x[:1], NUM_TASKS, 0), tasks())
    for _ in range(3):
      state, _ = step(state, one)
    kept = state.params.statistics["norm_0"]
    for i, batch in enumerate((one.support, one.support, one.query)):
      hidden = pre_activations(variables().params, batch.inputs[0])
      np.testing.assert_allclose(kept["mean"][i], hidden.mean(0), rtol=1e-5)
      np.testing.assert_allclose(
        kept["square"][i], np.square(hidden).mean(0), rtol=1e-5
      )

  def test_evaluation_normalises_step_i_by_row_i(self):
    point = trained()[2].params
    support, query = jax.tree.map(lambda x: x[0], tasks())
    algorithm = build()
    adapted = jax.jit(algorithm.adapt)(point, support)
    rows = point.statistics
    expected = jax.jit(adapt_by_hand)(point.params, support, rows)[-1]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      adapted,
      Variables(expected, jax.tree.map(lambda x: x[STEPS], rows)),
    )
    adapted = jax.tree.map(np.asarray, adapted)
    kept = adapted.statistics["norm_0"]
    hidden = pre_activations(adapted.params, query.inputs)
    # The variance over all tasks, of which those within a task are a part.
    variance = kept["square"] - np.square(kept["mean"])
    hidden = (hidden - kept["mean"]) / np.sqrt(variance + 1e-5)
    norm, last = adapted.params["norm_0"], adapted.params["dense_1"]
    hidden = np.maximum(hidden * norm["scale"] + norm["offset"], 0)
    outputs = hidden @ last["kernel"] + last["bias"]
    policy = normalization.transductive(
      lambda adapted, x: APPLY_FN(adapted.params, x, adapted.statistics)[0]
    )
    query_loss_fn = normalization.query_loss(policy, losses.squared_error)
    metrics = jax.jit(evaluator(algorithm.adapt, query_loss_fn))(point, tasks())
    expected = np.mean((outputs - query.targets) ** 2)
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)

  @parameterized.parameters(True, False)
  def test_a_prediction_depends_on_the_other_query_examples(self, running):
    adapt = functools.partial(build().adapt, use_running_statistics=running)
    support, query = jax.tree.map(lambda x: x[0], tasks())
    params, statistics = jax.jit(adapt)(trained()[2].params, support)
    predict = jax.jit(lambda x: APPLY_FN(params, x, statistics)[0])
    whole, alone = predict(query.inputs)[:2], predict(query.inputs[:2])
    reversed_ = predict(query.inputs[::-1])[::-1][:2]
    np.testing.assert_allclose(whole, reversed_, rtol=1e-5, atol=1e-6)
    difference = np.abs(whole - alone).max()
    if running:
      self.assertLess(difference, 1e-6)
    else:
      self.assertIsNone(statistics)
      self.assertGreater(difference, 1e-3)

  def test_sam_leaves_them_to_the_clean_pass_and_goes_with_every_part(self):
    link = lambda: jsharp.sam(0.05)
    outer = build(outer=optax.chain(link(), optax.sgd(0.1)))
    everything = build(
      inner=optax.chain(link(), optax.sgd(1.0)),
      learn_rates=True,
      per_step=lambda params: jax.tree.map(lambda keep: not keep, all_but_norm(params)),
      step_weights=lambda step: jnp.array([0.5, 0.5]),
    )
    state, _ = jax.jit(outer.step)(outer.init(variables()), tasks())
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      state.params.statistics,
      trained()[1].params.statistics,
    )
    start = everything.init(variables())
    state, metrics = jax.jit(everything.step)(start, tasks())
    self.assertTrue(bool(jnp.isfinite(metrics["loss"]).all()))
    for before, after in (
      (start.params.rates, state.params.rates),
      (start.params.per_step, state.params.per_step),
      (start.params.statistics, state.params.statistics),
    ):
      chex.assert_trees_all_equal_shapes(before, after)
      moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
      self.assertGreater(max(jax.tree.leaves(moved)), 1e-4)


if __name__ == "__main__":
  absltest.main()
