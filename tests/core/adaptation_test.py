"""The inner loop: closed form, masks, any optimizer, scan = unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

import jsharp
from jsharp import losses
from jsharp.core.adaptation import join, split
from jsharp.core.descent import descend
from tests import quadratics as quad


class InnerLoopTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, None, "unrolled"),
    (4, None, "unrolled"),
    (4, 0.3, "unrolled"),
    (13, 0.3, "unrolled"),
    (4, 0.3, "recomputed"),
  )
  def test_adapted_parameters_and_jacobian_are_the_closed_form(
    self, steps, rho, inner_steps
  ):
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(1), quad.start()
      optimizer = optax.sgd(0.1)
      if rho is not None:
        optimizer = optax.chain(jsharp.sam(rho), optimizer)
      adapt = jsharp.inner_loop(
        quad.loss_fn,
        optimizer,
        num_steps=steps,
        execution=jsharp.Execution(inner_steps=inner_steps),
      )
      support = quad.on_device(jax.tree.map(lambda x: x[0], tasks.support))
      adapted, jacobian = jax.jit(
        lambda *args: (adapt(*args), jax.jacrev(adapt)(*args))
      )(jnp.asarray(w), support)
      expected, expected_jacobian = quad.inner(tasks, 0, w, 0.1, steps, rho=rho)
      np.testing.assert_allclose(adapted, expected, rtol=1e-12)
      np.testing.assert_allclose(jacobian, expected_jacobian, rtol=1e-10, atol=1e-12)

  @parameterized.named_parameters(
    ("momentum", optax.sgd(0.05, momentum=0.9, nesterov=True)),
    ("schedule", optax.sgd(lambda count: 0.1 / (count.astype(float) + 1))),
    ("polyak", optax.polyak_sgd(max_learning_rate=0.1)),
    ("clipped", optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(0.1))),
    (
      "partition",
      optax.partition({"a": optax.sgd(0.1), "b": optax.set_to_zero()}, lambda w: "a"),
    ),
    (
      "line_search",
      optax.chain(
        optax.sgd(0.1), optax.scale_by_backtracking_linesearch(max_backtracking_steps=3)
      ),
    ),
  )
  def test_any_optax_optimizer_gives_an_exact_meta_gradient(self, optimizer):
    for inner_steps in ("unrolled", "recomputed"):
      with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
      ):
        tasks = quad.on_device(quad.random_tasks(1))
        support, query = jax.tree.map(lambda x: x[0], tasks)
        adapt = jsharp.inner_loop(
          quad.loss_fn,
          optimizer,
          num_steps=3,
          execution=jsharp.Execution(inner_steps=inner_steps),
        )
        objective = jax.jit(lambda w: quad.loss_fn(adapt(w, support), query)[0])  # noqa: B023
        check_grads(objective, (jnp.asarray(quad.start()),), order=1, modes=("rev",))

  @parameterized.parameters(True, False)
  def test_a_step_that_is_computed_again_keeps_its_parameters_alone(self, recomputed):
    execution = jsharp.Execution(inner_steps="recomputed" if recomputed else "unrolled")
    num_parameters, num_inputs = 64 * 64, 4096
    loss_fn = lambda w, x: (jnp.sum(jnp.tanh(x @ w) ** 2), {})

    def memory(steps):
      adapt = jsharp.inner_loop(
        loss_fn, optax.sgd(0.1), num_steps=steps, execution=execution
      )
      gradient = jax.grad(lambda w, x: loss_fn(adapt(w, x), x)[0])
      shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((64, 64), (num_inputs, 64))
      ]
      compiled = jax.jit(gradient).lower(*shapes).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    more = (memory(19) - memory(11)) / (8 * 4 * num_parameters)
    if recomputed:
      self.assertLess(more, 2)
    else:
      self.assertGreater(more, num_inputs / 64)

  def test_adam_with_eps_root_has_a_finite_meta_gradient_at_a_zero_gradient(self):
    loss_fn = lambda w, x: (jnp.sum(jnp.square(w) * x), {})
    with jax.numpy_dtype_promotion("standard"):
      for eps_root, finite in ((1e-8, True), (0.0, False)):
        optimizer = optax.adam(0.1, eps_root=eps_root)
        adapt = jsharp.inner_loop(loss_fn, optimizer, num_steps=1)
        gradient = jax.grad(lambda w: adapt(w, 1.0).sum())(jnp.zeros(2))  # noqa: B023
        self.assertEqual(bool(np.isfinite(gradient).all()), finite)

  @parameterized.parameters(2, 12)
  def test_masked_leaves_stay_and_are_not_perturbed(self, steps):
    seen = []

    def loss_fn(params, batch):
      jax.debug.callback(lambda b: seen.append(float(b)), params["body"][0])
      return jnp.sum((params["head"] * params["body"] - batch) ** 2), {}

    params = {"body": jnp.array([1.0, 2.0]), "head": jnp.array([0.5, -1.0])}
    adapt = jsharp.inner_loop(
      loss_fn,
      optax.chain(jsharp.sam(0.5), optax.sgd(0.01)),
      num_steps=steps,
      adapted_mask=lambda p: {"body": False, "head": True},
    )
    adapted = jax.jit(adapt)(params, jnp.ones(2))
    jax.effects_barrier()
    np.testing.assert_array_equal(adapted["body"], params["body"])
    self.assertGreater(np.abs(adapted["head"] - params["head"]).max(), 1e-3)
    self.assertEqual(set(seen), {1.0})

  def test_bad_arguments_are_named(self):
    with self.assertRaisesRegex(ValueError, "num_steps.*-1"):
      jsharp.inner_loop(quad.loss_fn, optax.sgd(0.1), num_steps=-1)
    with self.assertRaisesRegex(ValueError, "num_steps.*2.5"):
      jsharp.inner_loop(quad.loss_fn, optax.sgd(0.1), num_steps=2.5)
    adapt = jsharp.inner_loop(
      lambda w, x: (w["a"], {}),
      optax.sgd(0.1),
      num_steps=1,
      adapted_mask=lambda w: {"a": False},
    )
    with self.assertRaisesRegex(ValueError, "adapted_mask selects no leaf"):
      adapt({"a": 1.0}, None)


class SplitTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.params = {"a": 1.0, "b": [2.0, {"c": 3.0}], "nothing": None}

  def test_join_takes_back_what_split_did(self):
    mask = lambda params: {"a": False, "b": [True, {"c": False}], "nothing": None}
    adapted, others = split(self.params, mask)
    self.assertEqual(adapted, {"a": None, "b": [2.0, {"c": None}], "nothing": None})
    self.assertEqual(others, {"a": 1.0, "b": [None, {"c": 3.0}], "nothing": None})
    self.assertEqual(join(adapted, others), self.params)
    self.assertEqual(join(others, adapted), self.params)

  def test_without_a_mask_everything_is_adapted(self):
    adapted, others = split(self.params, None)
    self.assertEqual(adapted, self.params)
    self.assertEqual(jax.tree.leaves(others), [])
    self.assertEqual(join(adapted, others), self.params)

  def test_the_first_argument_of_join_wins(self):
    self.assertEqual(join({"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0})["a"], 1.0)

  def test_an_empty_mask_is_refused(self):
    with self.assertRaisesRegex(ValueError, "adapted_mask selects no leaf"):
      split(self.params, lambda params: jax.tree.map(lambda _: False, params))


class FirstOrderTest(absltest.TestCase):
  def test_same_value_and_gradient_but_no_second_derivative(self):
    with jax.enable_x64(True):
      loss_fn = lambda w, x: (jnp.sum(jnp.sin(w) * x), {"twice": 2 * w.sum()})
      w, x = jnp.array([0.3, 1.0]), jnp.array([1.0, -2.0])
      exact = jax.value_and_grad(loss_fn, has_aux=True)
      first = jax.value_and_grad(losses.first_order(loss_fn), has_aux=True)
      jax.tree.map(np.testing.assert_allclose, first(w, x), exact(w, x))
      hessian = jax.jacrev(lambda w: first(w, x)[1])(w)
      np.testing.assert_array_equal(hessian, np.zeros((2, 2)))


class RefusedOptimizersTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("sam_last", optax.chain(optax.adamw(0.1), jsharp.sam(0.1)), "last link.*in front"),
    (
      "sam_last_by_name",
      optax.named_chain(("steps", optax.adamw(0.1)), ("sam", jsharp.sam(0.1))),
      "last link",
    ),
    ("sam_alone", optax.inject_hyperparams(jsharp.sam)(0.1), "last link"),
    ("late_sam_last", optax.chain(optax.sgd(0.1), jsharp.sam_every(0.1)), "last link"),
    *(
      (
        f"sam_behind_{name}",
        optax.chain(front, link, optax.identity()),
        "in front of SAM turns the gradient into a step.*downhill",
      )
      for name, front, link in (
        ("adamw", optax.adamw(0.1), jsharp.sam(0.1)),
        (
          "sgd",
          optax.partition({"all": optax.sgd(0.1)}, {"w": "all"}),
          jsharp.gsam(0.1),
        ),
        ("a_rate", optax.scale_by_learning_rate(0.1), jsharp.looksam(0.1)),
      )
    ),
    ("lookahead", optax.lookahead(optax.sgd(0.1), 2, 0.5), "a pair of parameters"),
    ("contrib", optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), "jsharp.sam"),
    (
      "flattened",
      optax.flatten(optax.chain(jsharp.sam(0.1), optax.sgd(0.1))),
      "wrapper around SAM reshapes.*in front",
    ),
  )
  def test_at_either_loop(self, optimizer, message):
    start = {"w": jnp.ones(2)}
    batch = jsharp.Batch(None, jnp.ones((1, 2)))
    loss_fn = lambda params, batch: (jnp.sum(params["w"] * batch.targets), {})
    for optimizers in ((optimizer, optax.sgd(0.1)), (optax.sgd(0.1), optimizer)):
      algorithm = jsharp.maml(loss_fn, *optimizers, num_inner_steps=1)
      with self.assertRaisesRegex(ValueError, message):
        algorithm.step(algorithm.init(start), jsharp.Task(batch, batch))

  @parameterized.named_parameters(
    ("a_clip", optax.clip_by_global_norm(1.0), jsharp.sam(0.1)),
    ("moments", optax.scale_by_adam(eps_root=1e-8), jsharp.sam_every(0.1)),
    ("noise", optax.add_noise(1e6, 0.0, key=0), jsharp.sam(0.1)),
    ("a_mesh", jsharp.perturbations.pmean("devices"), jsharp.sam(0.1)),
  )
  def test_what_bends_the_perturbation_may_stand_in_front(self, front, link):
    optimizer = optax.chain(front, link, optax.sgd(0.1))
    optimizer = optax.with_extra_args_support(optimizer)
    value_and_grad_fn = jax.value_and_grad(lambda w: (jnp.sum(w), {}), has_aux=True)

    def step(w):
      return descend(optimizer, value_and_grad_fn, w, optimizer.init(w))[0]

    with jax.numpy_dtype_promotion("standard"):  # optax's noise needs it.
      jax.eval_shape(jax.vmap(step, axis_name="devices"), jnp.ones((2, 3)))

  def test_a_line_search_of_unknown_length_in_the_inner_loop(self):
    batch = jsharp.Batch(None, jnp.ones((1, 2)))
    loss_fn = lambda w, batch: (jnp.sum((w - batch.targets) ** 2), {})
    with self.assertRaisesRegex(ValueError, "while_loop.*lbfgs.*imaml or reptile"):
      algorithm = jsharp.maml(loss_fn, optax.lbfgs(), optax.sgd(0.1), num_inner_steps=1)
      algorithm.step(algorithm.init(jnp.zeros(2)), jsharp.Task(batch, batch))


if __name__ == "__main__":
  absltest.main()
