"""Tests of ordinary training: exact SAM steps, statistics, bitwise resuming."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jsharp
from jsharp import perturbations
from jsharp.algorithms.supervised import (
  classifier,
  estimate_statistics,
  example_loss,
  examples_evaluator,
  supervised,
)
from jsharp.training.loop import NonFiniteLossError, train
from jsharp.training.run_directory import RunDirectory
from jsharp.types import Batch, Variables
from tests.experiments.own_parts import Normalised
from tests.toy_runs import same_bits

RHO, RATE = 0.1, 0.5


def quadratic_loss(variables, batch, train):
  """Squared errors of a linear model whose statistic is the last parameter seen."""
  errors = batch.inputs @ variables.params - batch.targets
  statistics = variables.params if train else variables.statistics
  return {"loss": errors**2, "size": jnp.abs(errors)}, statistics


def batch_of(step, num_examples=8):
  inputs, targets = jax.random.split(jax.random.fold_in(jax.random.key(3), step))
  return Batch(
    jax.random.normal(inputs, (num_examples, 2)),
    jax.random.normal(targets, (num_examples,)),
  )


class SupervisedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.variables = Variables(jnp.array([1.0, -2.0]), jnp.zeros(2))

  def test_sam_and_sgd_equal_two_passes_by_hand(self):
    batch = batch_of(0)
    algorithm = supervised(
      quadratic_loss, optax.chain(jsharp.sam(RHO), optax.sgd(RATE))
    )
    state, metrics = algorithm.step(algorithm.init(self.variables), batch)
    w = np.asarray(self.variables.params, np.float64)
    x, y = (np.asarray(part, np.float64) for part in batch)

    def gradient(w):
      return 2 * x.T @ (x @ w - y) / len(y)

    ascent = RHO * gradient(w) / np.linalg.norm(gradient(w))
    expected = w - RATE * gradient(w + ascent)
    np.testing.assert_allclose(state.params.params, expected, rtol=1e-5)
    # Both of the first pass, although the second came later.
    np.testing.assert_array_equal(state.params.statistics, self.variables.params)
    np.testing.assert_allclose(metrics["loss"], (x @ w - y) ** 2, rtol=1e-4)
    self.assertEqual(metrics["size"].shape, (8,))

  def by_hand(self, batch, size, *, weight_decay=0.0):
    """The mean of the sharp gradients of groups of `size` examples, in float64."""
    w = np.asarray(self.variables.params, np.float64)
    x, y = (np.asarray(part, np.float64) for part in batch)
    total = 0
    for start in range(0, len(y), size):
      part = slice(start, start + size)

      def gradient(w, x=x[part], y=y[part]):
        return 2 * x.T @ (x @ w - y) / len(y) + weight_decay * w

      ascent = RHO * gradient(w) / np.linalg.norm(gradient(w))
      total += gradient(w + ascent)
    return w - RATE * total / (len(y) // size)

  def test_decay_in_the_loss_is_in_both_passes_and_not_in_the_metrics(self):
    batch = batch_of(0)
    sharp = optax.chain(jsharp.sam(RHO), optax.sgd(RATE))
    algorithm = supervised(quadratic_loss, sharp, weight_decay=0.7)
    state, metrics = algorithm.step(algorithm.init(self.variables), batch)
    expected = self.by_hand(batch, 8, weight_decay=0.7)
    np.testing.assert_allclose(state.params.params, expected, rtol=1e-5)
    errors = batch.inputs @ self.variables.params - batch.targets
    np.testing.assert_allclose(metrics["loss"], errors**2, rtol=1e-4)
    behind = optax.chain(jsharp.sam(RHO), optax.add_decayed_weights(0.7))
    algorithm = supervised(quadratic_loss, optax.chain(behind, optax.sgd(RATE)))
    other, _ = algorithm.step(algorithm.init(self.variables), batch)
    self.assertGreater(np.abs(other.params.params - expected).max(), 1e-3)

  def test_each_group_is_perturbed_by_its_own_gradient(self):
    batch = batch_of(0)
    for size in (2, 4, 8):
      groups = perturbations.SharpGroups(jsharp.sam_ascent(RHO), size)
      algorithm = supervised(quadratic_loss, optax.sgd(RATE), groups=groups)
      state, metrics = jax.jit(algorithm.step)(algorithm.init(self.variables), batch)
      expected = self.by_hand(batch, size)
      np.testing.assert_allclose(state.params.params, expected, rtol=1e-5)
      errors = batch.inputs @ self.variables.params - batch.targets
      np.testing.assert_allclose(metrics["loss"], errors**2, rtol=1e-4)
      np.testing.assert_array_equal(state.params.statistics, self.variables.params)
    groups = perturbations.SharpGroups(jsharp.sam_ascent(RHO), 3)
    algorithm = supervised(quadratic_loss, optax.sgd(RATE), groups=groups)
    with self.assertRaisesRegex(ValueError, "groups of 3 .* divide a batch of 8"):
      algorithm.step(algorithm.init(self.variables), batch)

  def test_groups_are_added_up_in_float32_and_need_rows(self):
    def linear(variables, batch, train):
      del train
      return {"loss": variables.params * batch.inputs}, ()

    def after(inputs, dtype):
      groups = perturbations.SharpGroups(jsharp.sam_ascent(0.0), 1)
      algorithm = supervised(linear, optax.sgd(1.0), groups=groups)
      state = algorithm.init(Variables(jnp.zeros((), dtype), ()))
      batch = Batch(inputs, jnp.zeros(len(inputs)))
      return algorithm.step(state, batch)[0].params.params

    self.assertEqual(float(after(jnp.ones(512, jnp.bfloat16), jnp.bfloat16)), -1)
    many = jnp.full(32, 3000, jnp.float16)
    self.assertEqual(float(after(many, jnp.float16)), -3000)
    groups = perturbations.SharpGroups(jsharp.sam_ascent(RHO), 2)
    algorithm = supervised(linear, optax.sgd(RATE), groups=groups)
    for scale in (jnp.ones(3), jnp.float32(2), jax.random.key(0)):
      batch = Batch({"x": jnp.ones(6), "scale": scale}, jnp.zeros(6))
      with self.assertRaisesRegex(ValueError, r"batch.inputs\['scale'\].* 6 examples"):
        algorithm.step(algorithm.init(Variables(jnp.float32(0), ())), batch)

  def test_a_label_that_is_no_class_is_refused_or_makes_the_loss_nan(self):
    loss_fn = example_loss(lambda params, x, *, statistics, train: (x, statistics))
    batch = Batch(jnp.zeros((3, 5)), jnp.array([0, 7, -1]))
    with self.assertRaisesRegex(ValueError, r"in \[0, 5\), .* got -1 to 7"):
      loss_fn(Variables((), ()), batch, True)
    metrics, _ = jax.jit(loss_fn, static_argnums=2)(Variables((), ()), batch, True)
    np.testing.assert_array_equal(np.isnan(metrics["loss"]), [False, True, True])

  def test_top_five_by_hand(self):
    def apply_fn(params, logits, *, statistics, train):
      return logits, statistics

    loss_fn = example_loss(apply_fn)
    logits = jnp.array([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]])
    for label, wanted in ((0, [1, 0, 1]), (4, [1, 1, 1]), (5, [0, 1, 0])):
      batch = Batch(logits, jnp.full(3, label))
      metrics, _ = loss_fn(Variables((), ()), batch, False)
      self.assertEqual(metrics["top5_accuracy"].tolist(), wanted)
      self.assertNotIn("top5_accuracy", loss_fn(Variables((), ()), batch, True)[0])
    five = Batch(logits[:, :5], jnp.zeros(3, jnp.int32))
    self.assertNotIn("top5_accuracy", loss_fn(Variables((), ()), five, False)[0])

  def test_soft_and_smoothed_targets(self):
    apply_fn = lambda params, x, *, statistics, train: (x + params, statistics)
    logits = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
    shares = np.array([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0]])
    logs = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    point = Variables(jnp.float32(0), ())
    loss_fn = example_loss(apply_fn, label_smoothing=0.3)
    batch = Batch(logits, jnp.asarray(shares, jnp.float32))
    for training, targets in ((False, shares), (True, 0.7 * shares + 0.1)):
      metrics, _ = loss_fn(point, batch, training)
      expected = -(targets * logs).sum(axis=1)
      np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
      np.testing.assert_allclose(metrics["accuracy"], [0.6, 0.0], rtol=1e-6)
    hard, _ = loss_fn(point, Batch(logits, jnp.array([0, 1])), False)
    np.testing.assert_allclose(hard["loss"], [-logs[0, 0], -logs[1, 1]], rtol=1e-5)
    np.testing.assert_array_equal(hard["accuracy"], [1, 0])

  def test_batch_statistics_of_a_network_are_those_of_the_clean_pass(self):
    init_fn, loss_fn = classifier(Normalised(num_outputs=3))
    batch = Batch(
      jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.array([0, 1, 2, 0])
    )
    variables = jax.jit(init_fn)(jax.random.key(1), batch.inputs)
    plain, sharp = (
      supervised(loss_fn, optax.chain(*links, optax.sgd(0.1)))
      for links in ((), (jsharp.sam(0.5),))
    )
    (one, _), (two, _) = (
      jax.jit(algorithm.step)(algorithm.init(variables), batch)
      for algorithm in (plain, sharp)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      one.params.statistics,
      two.params.statistics,
    )
    head = [state.params.params["Dense_1"]["kernel"] for state in (one, two)]
    self.assertFalse(np.allclose(*head, atol=1e-4))

  def test_evaluation_uses_the_statistics_and_changes_nothing(self):
    init_fn, loss_fn = classifier(Normalised(num_outputs=2))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    variables = jax.jit(init_fn)(jax.random.key(1), images)
    labels = jnp.array([0, 1, 1, 0])
    evaluate = jax.jit(examples_evaluator(loss_fn))
    whole = evaluate(variables, Batch(images, labels))
    alone = evaluate(variables, Batch(images[1:2], labels[1:2]))
    np.testing.assert_allclose(whole["loss"][1:2], alone["loss"], rtol=1e-5)
    self.assertContainsSubset(np.unique(whole["accuracy"]), (0.0, 1.0))

  def test_estimated_statistics_are_the_mean_over_batches(self):
    def loss_fn(variables, batch, train):
      assert train
      return {}, 0.7 * variables.statistics + 0.3 * batch.inputs.mean(0)

    batches = jax.tree.map(lambda *x: jnp.stack(x), *map(batch_of, range(3)))
    variables = Variables((), jnp.array([5.0, -1e3]))
    found = estimate_statistics(loss_fn, variables, batches)
    np.testing.assert_allclose(found, batches.inputs.mean((0, 1)), rtol=1e-5)

  def test_line_search_and_value_are_supported(self):
    algorithm = supervised(quadratic_loss, optax.polyak_sgd(max_learning_rate=0.5))
    state = algorithm.init(self.variables)
    for step in range(3):
      state, _ = algorithm.step(state, batch_of(step))
    self.assertTrue(np.all(np.isfinite(state.params.params)))
    self.assertEqual(int(state.step), 3)

  def test_centre_is_what_the_state_shows(self):
    algorithm = supervised(
      quadratic_loss, optax.sgd(RATE), centre=lambda params, opt_state: params - 1
    )
    state = algorithm.init(self.variables)
    np.testing.assert_array_equal(state.params.params, self.variables.params)
    state, _ = algorithm.step(state, batch_of(0))
    plain = supervised(quadratic_loss, optax.sgd(RATE))
    expected, _ = plain.step(plain.init(self.variables), batch_of(0))
    moved = state.opt_state[0]
    np.testing.assert_allclose(moved, expected.params.params, rtol=1e-6)
    np.testing.assert_allclose(state.params.params, moved - 1, rtol=1e-6)

  def test_a_loss_that_is_not_finite_names_examples_and_steps(self):
    def sample(step, data):
      batch = batch_of(step)
      failing = (step == 2) & (jnp.arange(8) == 5)
      return batch._replace(targets=jnp.where(failing, jnp.nan, batch.targets))

    root = self.enter_context(tempfile.TemporaryDirectory())
    with (
      RunDirectory.open(root, identity={}) as run,
      self.assertRaisesRegex(
        NonFiniteLossError, "the loss of example 5 is not finite at step 3; .* 2 steps"
      ),
    ):
      train(
        supervised(quadratic_loss, optax.sgd(0.01)),
        self.variables,
        sample,
        None,
        run=run,
        num_steps=5,
        num_tasks=8,
        progress=False,
        unit="examples",
      )

  def test_training_interrupted_and_resumed_is_bitwise_the_same(self):
    algorithm = supervised(
      quadratic_loss, optax.chain(jsharp.sam(RHO), optax.sgd(0.01, momentum=0.9))
    )
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def go(name, num_steps):
      with RunDirectory.open(root / name, identity={}) as run:
        return train(
          algorithm,
          self.variables,
          lambda step, data: batch_of(step),
          None,
          run=run,
          num_steps=num_steps,
          num_tasks=8,
          progress=False,
        )

    whole = go("whole", 7)
    go("cut", 3)
    cut = go("cut", 7)
    self.assertEqual(cut.resumed_from, 3)
    self.assertTrue(same_bits(whole.state, cut.state))


if __name__ == "__main__":
  absltest.main()
