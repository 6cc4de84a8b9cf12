"""SAM as a link: the paper's step, composition, meta-gradients, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax import lax
from jax.test_util import check_grads

import jsharp


def rosenbrock(w):
  return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2


gradient = jax.jit(jax.grad(rosenbrock))


@jax.jit
def hand_written_sam_step(w, rho, lr):
  g = gradient(w)
  return w - lr * gradient(w + rho * g / jnp.linalg.norm(g))


def run(tx, w, steps):
  @jax.jit
  def step(w, state):
    value, grads = jax.value_and_grad(rosenbrock)(w)
    updates, state = tx.update(
      grads, state, w, value=value, grad=grads, grad_fn=gradient
    )
    return optax.apply_updates(w, updates), state

  state = tx.init(w)
  for _ in range(steps):
    w, state = step(w, state)
  return w


class SamTest(parameterized.TestCase):
  def test_it_is_the_papers_step(self):
    w = expected = jnp.array([0.3, -0.2])
    for _ in range(5):
      expected = hand_written_sam_step(expected, 0.05, 1e-3)
    tx = optax.chain(jsharp.sam(0.05), optax.sgd(1e-3))
    np.testing.assert_allclose(run(tx, w, 5), expected, rtol=1e-6)

  def test_radius_zero_is_the_base_optimizer(self):
    w = jnp.array([0.3, -0.2])
    momentum = optax.sgd(1e-3, momentum=0.9)
    with_sam = run(optax.chain(jsharp.sam(0.0), momentum), w, 5)
    np.testing.assert_array_equal(with_sam, run(momentum, w, 5))

  def test_it_has_no_state(self):
    state = jsharp.sam(0.05).init(jnp.ones(3))
    self.assertEmpty(jax.tree.leaves(state))

  @parameterized.parameters("before", "after")
  def test_its_place_in_the_chain_decides_what_is_clipped(self, place):
    w = jnp.array([0.3, -0.2])
    clip, sam = optax.clip(0.5), jsharp.sam(0.1)
    links = (clip, sam) if place == "before" else (sam, clip)
    tx = optax.chain(*links, optax.sgd(1.0))
    g = gradient(w)
    direction = jnp.clip(g, -0.5, 0.5) if place == "before" else g
    sharp = gradient(w + 0.1 * direction / jnp.linalg.norm(direction))
    step = sharp if place == "before" else jnp.clip(sharp, -0.5, 0.5)
    np.testing.assert_allclose(run(tx, w, 1), w - step, rtol=1e-5)

  def test_it_works_beside_links_that_need_the_value(self):
    tx = optax.chain(jsharp.sam(0.01), optax.polyak_sgd(max_learning_rate=1e-2))
    w = run(tx, jnp.array([0.3, -0.2]), 3)
    self.assertTrue(np.isfinite(w).all())

  def test_zero_gradient_gives_a_finite_step_and_meta_gradient(self):
    tx = optax.chain(jsharp.sam(0.05), optax.sgd(0.1))

    def after_one_step(w):
      loss = lambda w: jnp.sum(jnp.square(w))
      updates, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      return jnp.sum(optax.apply_updates(w, updates))

    actual = jax.jit(jax.grad(after_one_step))(jnp.zeros(3))
    np.testing.assert_allclose(actual, 0.8 * np.ones(3), rtol=1e-6)

  @parameterized.parameters(1.3, 2.0)
  def test_meta_gradients_through_it_match_finite_differences(self, p):
    with jax.enable_x64(True):
      tx = optax.chain(jsharp.sam(0.1, p=p), optax.sgd(2e-3))
      objective = jax.jit(lambda w: rosenbrock(run(tx, w, 2)))
      check_grads(
        objective, (jnp.array([0.3, -0.2]),), order=1, modes=("fwd", "rev"), rtol=1e-5
      )

  def test_a_stopped_perturbation_is_a_constant_of_the_meta_gradient(self):
    with jax.enable_x64(True):
      w = jnp.array([0.3, -0.2])
      e = 0.1 * gradient(w) / np.linalg.norm(gradient(w))
      constant = lambda w: rosenbrock(w - 1e-3 * gradient(w + e))
      ascent = optax.chain(jsharp.sam_ascent(0.1), jsharp.stop_gradient())
      tx = optax.chain(jsharp.sharpness_aware(ascent), optax.sgd(1e-3))
      actual = jax.jit(jax.grad(lambda w: rosenbrock(run(tx, w, 1))))(w)
      np.testing.assert_allclose(actual, jax.jit(jax.grad(constant))(w), rtol=1e-12)
      exact = optax.chain(jsharp.sam(0.1), optax.sgd(1e-3))
      different = jax.jit(jax.grad(lambda w: rosenbrock(run(exact, w, 1))))(w)
      self.assertGreater(np.abs(different - actual).max(), 1e-3)

  def test_second_order_is_the_derivative_of_the_loss_at_the_perturbed_point(self):
    with jax.enable_x64(True):
      w, p = jnp.array([0.3, -0.2]), 1.5
      unit = lambda g: g / jnp.linalg.norm(g, p / (p - 1))

      def worst(w):  # The ball's point in the dual norm's direction, by hand.
        g = unit(gradient(w))
        return rosenbrock(w + 0.2 * jnp.sign(g) * jnp.abs(g) ** (1 / (p - 1)))

      sharpened = jsharp.sharpen(
        rosenbrock, jsharp.sam_ascent(0.2, p=p), second_order=True
      )

      @jax.jit
      def everything(w):
        def of(second_order):
          link = jsharp.sam(0.2, p=p, second_order=second_order)
          return link.update(gradient(w), link.init(w), w, grad_fn=gradient)[0]

        value, of_loss = jax.value_and_grad(sharpened)(w)
        return jax.grad(worst)(w), of(True), of(False), of_loss, value - rosenbrock(w)

      expected, actual, first, of_loss, difference = everything(w)
      np.testing.assert_allclose(actual, expected, rtol=1e-10)
      np.testing.assert_allclose(of_loss, expected, rtol=1e-10)
      self.assertEqual(difference, 0)
      self.assertGreater(np.abs(first - actual).max(), 1e-2)

  def test_second_order_steps_complex_parameters_like_their_two_parts(self):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
      loss = lambda x, y: jnp.sum((x * x - y) ** 2 + jnp.sin(3 * y) * x)
      joined = lambda z: loss(z.real, z.imag)
      parts = lambda v: loss(v[:2], v[2:])
      link = jsharp.sam(0.1, second_order=True)

      @jax.jit
      def both(v):
        z = lax.complex(v[:2], v[2:])
        conjugated = lambda z: jnp.conj(jax.grad(joined)(z))
        of_z, _ = link.update(conjugated(z), link.init(z), z, grad_fn=conjugated)
        real = jax.grad(parts)
        of_v, _ = link.update(real(v), link.init(v), v, grad_fn=real)
        return of_z, of_v

      actual, wanted = both(jnp.array([0.3, -0.2, 0.7, 0.1]))
      np.testing.assert_allclose(actual, wanted[:2] + 1j * wanted[2:], rtol=1e-10)

  def test_jit_and_vmap_change_nothing(self):
    tx = optax.chain(jsharp.sam(0.05), optax.sgd(1e-3))
    starts = jnp.array([[0.3, -0.2], [1.0, 2.0], [-1.0, 0.5]])
    together = jax.jit(jax.vmap(lambda w: run(tx, w, 3)))(starts)
    alone = jnp.stack([run(tx, w, 3) for w in starts])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    with jax.disable_jit():
      np.testing.assert_allclose(run(tx, starts[0], 3), alone[0], rtol=1e-5)

  def test_missing_arguments_say_how_to_call(self):
    link = jsharp.sam(0.05)
    w = jnp.ones(2)
    with self.assertRaisesRegex(ValueError, "grad_fn=None.*grad_fn=jax.grad"):
      link.update(w, link.init(w), w)
    with self.assertRaisesRegex(ValueError, "params=None"):
      link.update(w, link.init(w), grad_fn=gradient)

  def test_a_wrapper_that_keeps_grad_fn_is_named(self):
    tx = optax.MultiSteps(optax.chain(jsharp.sam(0.05), optax.sgd(0.1)), 2)
    tx = optax.with_extra_args_support(tx.gradient_transformation())
    w = jnp.ones(2)
    with self.assertRaisesRegex(ValueError, "wrapper around SAM.*MultiSteps.*in front"):
      tx.update(w, tx.init(w), w, grad_fn=gradient)

  @parameterized.named_parameters(
    ("value_and_grads", lambda g: (jnp.float32(1), g), r"float32\[\] at \[0\], float"),
    ("grads_and_aux", lambda g: (g, {"a": g}), r"at \[1\]\['a'\].*has_aux=True"),
    ("nothing", lambda g: None, r"got nothing where float32\[2\]"),
    ("a_number", lambda g: g[0], r"got float32\[\] where float32\[2\]"),
    ("an_axis_more", lambda g: g[None], r"got float32\[1, 2\]"),
    ("half_precision", lambda g: g.astype(jnp.bfloat16), r"got bfloat16\[2\] .* dtype"),
    ("integers", lambda g: g.astype(int), r"got int32\[2\]"),
  )
  def test_what_grad_fn_returns_has_to_be_a_gradient(self, spoil, message):
    w = jnp.array([0.3, -0.2])
    grad_fn = lambda w: spoil(gradient(w))
    repeated = jsharp.perturbations.repeat(jsharp.sam_ascent(0.1), 2)
    for link in (
      jsharp.sam(0.1),
      jsharp.looksam(0.1),
      jsharp.sharpness_aware(repeated),
    ):
      with self.assertRaisesRegex(ValueError, f"grad_fn must return.*{message}"):
        link.update(gradient(w), link.init(w), w, grad_fn=grad_fn)

  @parameterized.parameters(jsharp.sam, jsharp.looksam, jsharp.vasso)
  def test_lookahead_stands_behind_it(self, link):
    w = jnp.array([0.3, -0.2])
    tx = optax.chain(link(0.1), optax.lookahead(optax.sgd(1e-3), 2, 0.5))
    expected = run(optax.chain(link(0.1), optax.sgd(1e-3)), w, 2)
    # optax's own arithmetic mixes bool and float32.
    self.enter_context(jax.numpy_dtype_promotion("standard"))

    @jax.jit
    def step(pair, state):
      updates, state = tx.update(gradient(pair.fast), state, pair, grad_fn=gradient)
      return optax.apply_updates(pair, updates), state

    pair = optax.LookaheadParams.init_synced(w)
    state = tx.init(pair)
    for _ in range(2):
      pair, state = step(pair, state)
    np.testing.assert_allclose(pair.slow, (w + expected) / 2, rtol=1e-6)

  def test_a_failing_grad_fn_inside_of_flatten_is_explained(self):
    tx = optax.flatten(optax.chain(jsharp.sam(0.1), optax.sgd(0.1)))
    w = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with self.assertRaises(TypeError) as caught:
      tx.update(w, tx.init(w), w, grad_fn=jax.grad(lambda w: jnp.sum(w["a"])))
    notes = " ".join(caught.exception.__notes__)
    self.assertIn("optax.flatten is wrapped around SAM", notes)


if __name__ == "__main__":
  absltest.main()
