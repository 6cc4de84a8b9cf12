"""Laws that every constructor obeys; a newcomer adds one row to `ALGORITHMS`."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses
from jsharp.core import objectives
from jsharp.evaluation import evaluator
from tests.algorithms import (
  own_head,
  own_meta_gradient,
  parts_and_rates,
  without_inner_loop,
)

sharp = functools.partial(jsharp.sharp_maml, inner_rho=None, outer_rho=None)

ALGORITHMS = {
  "maml": jsharp.maml,
  "fomaml": jsharp.fomaml,
  "sharp_maml_low": functools.partial(sharp, inner_rho=0.05),
  "sharp_maml_up": functools.partial(sharp, outer_rho=0.05),
  "sharp_maml_both": functools.partial(sharp, inner_rho=0.05, outer_rho=0.03),
  "sharp_maml_equation_14": functools.partial(
    sharp, inner_rho=0.05, outer_rho=0.03, reuse_perturbation=True
  ),
  **own_head.ROWS,
  **own_meta_gradient.ROWS,
  **parts_and_rates.ROWS,
  **without_inner_loop.ROWS,
}

# Rows that change the inner optimizer, and what they are if it is given to `adapt`.
WITHOUT_OWN_LINKS = {
  **{row: jsharp.maml for name, row in ALGORITHMS.items() if "sharp" in name},
  own_meta_gradient.reptile_with_momentum: jsharp.reptile,
}

# Rows that adapt by the code of another: plain steps where training takes sharp ones.
ADAPTS_AS_ANOTHER = ("fomaml", "sharp_maml_both", "sharp_maml_equation_14")

RADIUS_ZERO = {
  "both": {"inner_rho": 0.0, "outer_rho": 0.0},
  "equation_14": {"inner_rho": 0.0, "outer_rho": 0.0, "reuse_perturbation": True},
}

NUM_TASKS = 5


def apply_fn(params, x):
  hidden = jnp.tanh(x @ params["body"])
  return hidden @ params["head"]["w"] + params["head"]["b"][None]


@functools.cache
def start():
  keys = jax.random.split(jax.random.key(0), 2)
  return {
    "body": jax.random.normal(keys[0], (3, 8)) / 2,
    "head": {"w": jax.random.normal(keys[1], (8, 4)) / 3, "b": jnp.zeros(4)},
  }


@functools.cache
def tasks():
  keys = jax.random.split(jax.random.key(1), 2)

  def batch(key, size):
    x = jax.random.normal(key, (NUM_TASKS, size, 3))
    labels = jnp.argmax(x @ jax.random.normal(jax.random.key(2), (3, 4)), axis=-1)
    return jsharp.Batch(x, labels)

  return jsharp.Task(support=batch(keys[0], 8), query=batch(keys[1], 12))


class Compiled(NamedTuple):
  algorithm: jsharp.MetaAlgorithm
  step: Any


@functools.cache
def compiled(constructor, **options):
  """The algorithm, compiled once for all laws that look at the same one."""
  algorithm = build(constructor, **options)
  return Compiled(algorithm, jax.jit(algorithm.step))


def build(constructor, inner_optimizer=None, **options):
  options.setdefault("num_inner_steps", 2)
  return constructor(
    losses.batch_loss(apply_fn, losses.cross_entropy),
    inner_optimizer or optax.sgd(0.3),
    optax.sgd(0.1, momentum=0.9),
    **options,
  )


def two_steps(constructor, some_tasks, **options):
  algorithm, step = compiled(constructor, **options)
  state, _ = step(algorithm.init(start()), some_tasks)
  return step(state, some_tasks)


def has_no_inner_loop(constructor):
  return isinstance(constructor, without_inner_loop.WithoutInnerLoop)


def assert_close(actual, expected):
  chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-10)


def rows(*names):
  return parameterized.named_parameters(*((name, ALGORITHMS[name]) for name in names))


EVERY = rows(*ALGORITHMS)
EVERY_ADAPTATION = rows(*(x for x in ALGORITHMS if x not in ADAPTS_AS_ANOTHER))


class ConformanceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  @EVERY
  def test_metrics_are_per_task_and_the_step_counts(self, constructor):
    state, metrics = two_steps(constructor, tasks())
    self.assertEqual(int(state.step), 2)
    self.assertEqual(set(metrics), {"loss", "accuracy"})
    for value in metrics.values():
      self.assertEqual(value.shape, (NUM_TASKS,))
    before = compiled(constructor).algorithm.init(start()).params
    self.assertEqual(jax.tree.structure(state.params), jax.tree.structure(before))

  @rows("maml", "maml_plus_plus", "reptile_keep_inner_state")
  def test_jit_is_eager(self, constructor):
    algorithm, step = compiled(constructor)
    state = algorithm.init(start())
    assert_close(step(state, tasks()), algorithm.step(state, tasks()))

  @EVERY
  def test_order_of_tasks_changes_nothing(self, constructor):
    order = jnp.array([2, 0, 4, 1, 3])
    shuffled = jax.tree.map(lambda x: x[order], tasks())
    params = two_steps(constructor, tasks())[0].params
    assert_close(two_steps(constructor, shuffled)[0].params, params)

  @rows("maml", "proto_maml", "ridge")
  def test_evaluate_is_adapt_then_query_loss(self, constructor):
    algorithm, _ = compiled(constructor)
    options = {} if has_no_inner_loop(constructor) else {"num_steps": 1}
    adapt = functools.partial(algorithm.adapt, **options)
    params = algorithm.init(start()).params
    query_loss_fn = getattr(constructor, "query_loss_fn", None) or objectives.on_query(
      losses.batch_loss(apply_fn, losses.cross_entropy)
    )
    metrics = jax.jit(evaluator(adapt, query_loss_fn))(params, tasks())
    adapt = jax.jit(adapt)
    for i in range(NUM_TASKS):
      task = jax.tree.map(lambda x: x[i], tasks())  # noqa: B023
      loss, _ = query_loss_fn(adapt(params, task.support), task)
      np.testing.assert_allclose(metrics["loss"][i], loss, rtol=1e-9)

  @EVERY_ADAPTATION
  def test_other_inner_steps_are_those_of_an_algorithm_built_so(self, constructor):
    algorithm, _ = compiled(constructor)
    params = algorithm.init(start()).params
    support = jax.tree.map(lambda x: x[0], tasks().support)
    if has_no_inner_loop(constructor):
      for name, value in (("num_steps", 1), ("optimizer", optax.sgd(0.2))):
        with self.assertRaisesRegex(ValueError, f"no inner loop.* no {name}, got"):
          algorithm.adapt(params, support, **{name: value})
      return
    fewer = build(constructor, num_inner_steps=1)
    other = build(
      WITHOUT_OWN_LINKS.get(constructor, constructor), inner_optimizer=optax.sgd(0.2)
    )
    changed = {"num_steps": 1}, {"optimizer": optax.sgd(0.2)}

    @jax.jit
    def all_ways(params, *points):
      usual = algorithm.adapt(params, support)
      actual = [algorithm.adapt(params, support, **options) for options in changed]
      expected = [
        built.adapt(point, support)
        for built, point in zip((fewer, other), points, strict=True)
      ]
      return usual, actual, expected

    usual, actuals, expecteds = all_ways(
      params, *(built.init(start()).params for built in (fewer, other))
    )
    for options, actual, expected in zip(changed, actuals, expecteds, strict=True):
      with self.subTest(**options):
        assert_close(actual, expected)
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), actual, usual)
        self.assertGreater(max(jax.tree.leaves(moved)), 1e-4)

  @EVERY_ADAPTATION
  def test_a_mask_leaves_the_body_alone_in_the_inner_loop(self, constructor):
    if has_no_inner_loop(constructor):
      self.skipTest("no inner loop")
    mask = lambda params: {"body": False, "head": {"w": True, "b": True}}
    algorithm = build(constructor, adapted_mask=mask, num_inner_steps=1)
    support = jax.tree.map(lambda x: x[0], tasks().support)
    adapted, (state, _) = jax.jit(
      lambda state: (
        algorithm.adapt(state.params, support),
        algorithm.step(state, tasks()),
      )
    )(algorithm.init(start()))
    np.testing.assert_array_equal(adapted["body"], start()["body"])
    self.assertGreater(np.abs(adapted["head"]["w"] - start()["head"]["w"]).max(), 1e-3)
    params = getattr(state.params, "params", state.params)
    distance = np.abs(params["body"] - start()["body"]).max()
    if constructor in own_meta_gradient.ONLY_ADAPTED_LEAVES_ARE_LEARNED:
      self.assertEqual(distance, 0)
    else:
      self.assertGreater(distance, 1e-6)

  @EVERY
  def test_it_learns(self, constructor):
    algorithm, step = compiled(constructor)
    state, before = step(algorithm.init(start()), tasks())
    for _ in range(59):
      state, metrics = step(state, tasks())
    self.assertLess(metrics["loss"].mean(), 0.8 * before["loss"].mean())

  @parameterized.named_parameters(*RADIUS_ZERO.items())
  def test_radius_zero_is_maml(self, radii):
    actual = two_steps(functools.partial(sharp, **radii), tasks())
    expected = two_steps(jsharp.maml, tasks())
    assert_close((actual[0].params, actual[1]), (expected[0].params, expected[1]))

  @EVERY
  def test_a_zero_support_gradient_is_harmless(self, constructor):
    algorithm, step = compiled(constructor)
    flat = jax.tree.map(jnp.zeros_like, start())
    state, _ = step(algorithm.init(flat), tasks())
    self.assertTrue(all(np.isfinite(x).all() for x in jax.tree.leaves(state.params)))

  @EVERY
  def test_a_nan_task_is_seen(self, constructor):
    poisoned = tasks()
    inputs = poisoned.support.inputs.at[3].set(jnp.nan)
    poisoned = poisoned._replace(support=poisoned.support._replace(inputs=inputs))
    algorithm, step = compiled(constructor)
    _, metrics = step(algorithm.init(start()), poisoned)
    np.testing.assert_array_equal(np.isnan(metrics["loss"]), np.arange(NUM_TASKS) == 3)


if __name__ == "__main__":
  absltest.main()
