"""Exact answers on the quadratic family for every gradient-based algorithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp.core.objectives import on_query
from jsharp.evaluation import evaluator
from jsharp.losses import first_order
from tests import quadratics as quad

INNER_LR, OUTER_LR, INNER_RHO, OUTER_RHO = 0.1, 0.3, 0.4, 0.25


def one_step(algorithm, tasks, w):
  """The new parameters and per-task losses after one compiled meta-step."""
  state, metrics = jax.jit(algorithm.step)(algorithm.init(w), quad.on_device(tasks))
  assert int(state.step) == 1
  return np.asarray(state.params), np.asarray(metrics["loss"])


class ClosedFormTest(parameterized.TestCase):
  def check(self, algorithm, expected_gradient, expected_losses, tasks, w):
    params, losses = one_step(algorithm, tasks, w)
    np.testing.assert_allclose(params, w - OUTER_LR * expected_gradient, rtol=1e-10)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)

  def outer(self):
    return optax.sgd(OUTER_LR)

  @parameterized.parameters((1, None), (3, 2))
  def test_maml(self, steps, chunk):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      algorithm = jsharp.maml(
        quad.loss_fn,
        optax.sgd(INNER_LR),
        self.outer(),
        num_inner_steps=steps,
        execution=jsharp.Execution(task_chunk=chunk),
      )
      self.check(algorithm, *quad.meta_gradient(tasks, w, INNER_LR, steps), tasks, w)

  def test_zero_steps_is_joint_training(self):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      algorithm = jsharp.maml(
        quad.loss_fn, optax.sgd(INNER_LR), self.outer(), num_inner_steps=0
      )
      joint = np.mean([quad.gradient(tasks.query, i, w) for i in range(5)], axis=0)
      params, _ = one_step(algorithm, tasks, w)
      np.testing.assert_allclose(params, w - OUTER_LR * joint, rtol=1e-12)

  def test_fomaml_and_the_stop_gradient_link(self):
    steps = 3
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      expected = quad.meta_gradient(tasks, w, INNER_LR, steps, first_order=True)
      inner = optax.sgd(INNER_LR)
      for algorithm in (
        jsharp.fomaml(quad.loss_fn, inner, self.outer(), num_inner_steps=steps),
        jsharp.maml(
          quad.loss_fn,
          optax.chain(jsharp.stop_gradient(), inner),
          self.outer(),
          num_inner_steps=steps,
        ),
      ):
        self.check(algorithm, *expected, tasks, w)

  @parameterized.parameters((1, False), (3, True))
  def test_sharp_maml_low(self, steps, differentiate):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      algorithm = jsharp.sharp_maml(
        quad.loss_fn,
        optax.sgd(INNER_LR),
        self.outer(),
        inner_rho=INNER_RHO,
        differentiate_perturbation=differentiate,
        num_inner_steps=steps,
      )
      expected = quad.meta_gradient(
        tasks, w, INNER_LR, steps, rho=INNER_RHO, differentiate=differentiate
      )
      self.check(algorithm, *expected, tasks, w)

  def test_sharp_fomaml_low(self):
    steps = 3
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      algorithm = jsharp.sharp_maml(
        first_order(quad.loss_fn),
        optax.sgd(INNER_LR),
        self.outer(),
        inner_rho=INNER_RHO,
        num_inner_steps=steps,
      )
      expected = quad.meta_gradient(
        tasks, w, INNER_LR, steps, rho=INNER_RHO, first_order=True
      )
      self.check(algorithm, *expected, tasks, w)

  # The oracle's inner ball is not adaptive.
  @parameterized.parameters((1, False, True), (1, True, False), (3, True, False))
  def test_sharp_maml_up_and_both(self, steps, low, adaptive):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      rho = INNER_RHO if low else None
      algorithm = jsharp.sharp_maml(
        quad.loss_fn,
        optax.sgd(INNER_LR),
        self.outer(),
        inner_rho=rho,
        outer_rho=OUTER_RHO,
        adaptive=adaptive,
        num_inner_steps=steps,
      )
      first, losses = quad.meta_gradient(tasks, w, INNER_LR, steps, rho=rho)
      metric = np.abs(w) if adaptive else None
      perturbation, _ = quad.ball(first, OUTER_RHO, metric)
      sharp, _ = quad.meta_gradient(tasks, w + perturbation, INNER_LR, steps, rho=rho)
      self.check(algorithm, sharp, losses, tasks, w)

  @parameterized.parameters((1, False), (3, True))
  def test_equation_14_reuses_the_first_perturbations(self, steps, differentiate):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(5), quad.start()
      algorithm = jsharp.sharp_maml(
        quad.loss_fn,
        optax.sgd(INNER_LR),
        self.outer(),
        inner_rho=INNER_RHO,
        outer_rho=OUTER_RHO,
        differentiate_perturbation=differentiate,
        reuse_perturbation=True,
        num_inner_steps=steps,
      )
      options = {"rho": INNER_RHO, "differentiate": differentiate}
      first, losses = quad.meta_gradient(tasks, w, INNER_LR, steps, **options)
      outer, _ = quad.ball(first, OUTER_RHO)
      gradients = []
      for task in range(5):
        matrix = tasks.support.inputs[task]
        anchor, point = w, w + outer
        by_w, anchor_by_w = np.eye(len(w)), np.eye(len(w))
        for _ in range(steps):
          e, by_g = quad.ball(quad.gradient(tasks.support, task, anchor), INNER_RHO)
          e_by_w = by_g @ matrix @ anchor_by_w if differentiate else 0 * by_w
          by_w = by_w - INNER_LR * matrix @ (by_w + e_by_w)
          anchor_by_w = anchor_by_w - INNER_LR * matrix @ (anchor_by_w + e_by_w)
          point = point - INNER_LR * quad.gradient(tasks.support, task, point + e)
          anchor = anchor - INNER_LR * quad.gradient(tasks.support, task, anchor + e)
        gradients.append(by_w.T @ quad.gradient(tasks.query, task, point))
      self.check(algorithm, np.mean(gradients, axis=0), losses, tasks, w)
      recomputed = jsharp.sharp_maml(
        quad.loss_fn,
        optax.sgd(INNER_LR),
        self.outer(),
        inner_rho=INNER_RHO,
        outer_rho=OUTER_RHO,
        differentiate_perturbation=differentiate,
        num_inner_steps=steps,
      )
      difference = one_step(algorithm, tasks, w)[0] - one_step(recomputed, tasks, w)[0]
      self.assertGreater(np.abs(difference).max(), 1e-5)

  @parameterized.named_parameters(
    ("adam", optax.adam(0.1)),
    ("schedule", optax.sgd(optax.cosine_decay_schedule(0.3, 10))),
    ("polyak", optax.polyak_sgd(max_learning_rate=0.3)),
    ("clipped", optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.3))),
    (
      "line_search",
      optax.chain(
        optax.sgd(0.3), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
      ),
    ),
  )
  def test_any_optax_optimizer_is_an_outer_optimizer(self, optimizer):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
      tasks, w = quad.random_tasks(5), quad.start()
      algorithm = jsharp.maml(
        quad.loss_fn, optax.sgd(INNER_LR), optimizer, num_inner_steps=1
      )
      gradient, losses = quad.meta_gradient(tasks, w, INNER_LR, 1)

      def mean_loss(point):
        return quad.meta_gradient(tasks, np.asarray(point), INNER_LR, 1)[1].mean()

      updates, _ = optax.with_extra_args_support(optimizer).update(
        gradient,
        optimizer.init(jnp.asarray(w)),
        jnp.asarray(w),
        value=losses.mean(),
        grad=gradient,
        value_fn=lambda point: jax.pure_callback(
          mean_loss, jax.ShapeDtypeStruct((), float), point
        ),
      )
      params, _ = one_step(algorithm, tasks, w)
      np.testing.assert_allclose(params, w + np.asarray(updates), rtol=1e-7)

  @parameterized.parameters(
    ("low", INNER_RHO, None, None, True),
    ("up", None, OUTER_RHO, None, False),
    ("both", INNER_RHO, OUTER_RHO, None, False),
    ("both, sharp at test", INNER_RHO, OUTER_RHO, True, True),
    ("low, plain at test", INNER_RHO, None, False, False),
  )
  def test_which_steps_adapt_at_test(self, _, inner_rho, outer_rho, asked, sharp):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(3), quad.start()
      algorithm = jsharp.sharp_maml(
        quad.loss_fn,
        optax.sgd(INNER_LR),
        self.outer(),
        inner_rho=inner_rho,
        outer_rho=outer_rho,
        sharp_adaptation=asked,
        num_inner_steps=1,
      )
      rho = INNER_RHO if sharp else None
      adapt = functools.partial(algorithm.adapt, num_steps=4)
      measure = jax.jit(evaluator(adapt, on_query(quad.loss_fn)))
      metrics = measure(w, quad.on_device(tasks))
      for task in range(3):
        expected, _ = quad.inner(tasks, task, w, INNER_LR, 4, rho=rho)
        support = quad.on_device(jax.tree.map(lambda x: x[task], tasks.support))  # noqa: B023
        np.testing.assert_allclose(adapt(w, support), expected, rtol=1e-10)
        offset = expected - tasks.query.targets[task]
        loss = 0.5 * offset @ tasks.query.inputs[task] @ offset
        np.testing.assert_allclose(metrics["loss"][task], loss, rtol=1e-10)

  @parameterized.parameters(
    ({}, "neither"),
    ({"inner_rho": -1.0}, "rho must be finite and at least 0, got -1.0"),
    ({"outer_rho": float("nan")}, "rho must be finite"),
    ({"outer_rho": 0.1, "sharp_adaptation": True}, "pass inner_rho"),
    ({"outer_rho": 0.1, "reuse_perturbation": True}, "pass inner_rho"),
    ({"inner_rho": 0.1, "reuse_perturbation": True}, "pass outer_rho"),
    ({"inner_rho": 0.1, "p": 0.5}, "p must be in"),
  )
  def test_bad_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jsharp.sharp_maml(
        quad.loss_fn, optax.sgd(0.1), self.outer(), num_inner_steps=1, **options
      )

  def test_bad_counts_are_named(self):
    for options in ({"num_inner_steps": -1}, {"num_inner_steps": True}):
      with self.assertRaisesRegex(ValueError, "num_inner_steps"):
        jsharp.maml(quad.loss_fn, optax.sgd(0.1), self.outer(), **options)
    algorithm = jsharp.fomaml(
      quad.loss_fn, optax.sgd(0.1), self.outer(), num_inner_steps=1
    )
    with self.assertRaisesRegex(ValueError, "num_steps .* got -2"):
      algorithm.adapt(quad.start(), None, num_steps=-2)


if __name__ == "__main__":
  absltest.main()
