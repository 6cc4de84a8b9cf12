"""Small links of both loops: values, derivatives, and their ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

from jsharp import core
from jsharp.core.transforms import learned_rates, learned_step_rates

UPDATES = {
  "w": jnp.arange(6.0).reshape(2, 3),
  "b": jnp.array([1.0, -2.0]),
  "none": None,
}


class LearnedRatesTest(absltest.TestCase):
  def test_rates_broadcast_and_none_is_skipped(self):
    rates = {"w": jnp.array([1.0, 10.0, -1.0]), "b": 0.5, "none": None}
    link = learned_rates(rates)
    updates, state = link.update(UPDATES, link.init(UPDATES))
    np.testing.assert_array_equal(updates["w"], [[0, 10, -2], [3, 40, -5]])
    np.testing.assert_array_equal(updates["b"], [0.5, -1])
    self.assertIsNone(updates["none"])
    self.assertEqual(jax.tree.leaves(state), [])

  def test_updates_keep_their_dtype(self):
    link = learned_rates(jnp.float32(0.5))
    updates, _ = link.update(jnp.ones(2, jnp.bfloat16), link.init(None))
    self.assertEqual(updates.dtype, jnp.bfloat16)

  def test_derivatives_in_rates_and_updates(self):
    with jax.enable_x64(True):

      def scaled(rates, updates):
        link = optax.chain(optax.sgd(1.0), learned_rates(rates))
        return link.update(updates, link.init(updates))[0]

      rates = {"w": jnp.array([[0.1, 0.2, -0.3]]), "b": jnp.array(0.5)}
      updates = {"w": jnp.ones((2, 3)) * 1.5, "b": jnp.array([1.0, -2.0])}
      check_grads(jax.jit(scaled), (rates, updates), order=1, modes=("fwd",))
      check_grads(jax.jit(scaled), (rates, updates), order=2, modes=("rev",))


class ClipTest(parameterized.TestCase):
  @parameterized.parameters(
    (core.clip_by_global_norm, optax.clip_by_global_norm, 3.0),
    (core.clip_by_block_rms, optax.clip_by_block_rms, 0.8),
    (core.adaptive_grad_clip, optax.adaptive_grad_clip, 0.5),
  )
  def test_it_is_that_of_optax_and_the_identity_at_zero(self, ours, theirs, limit):
    shapes = [(), (4,), (3, 4), (2, 3, 4), (2, 2, 3, 4), (1, 5)]
    random = np.random.default_rng(0)
    w = {str(s): np.float32(random.normal(size=s)) for s in shapes}
    w["zero"] = np.zeros(3, np.float32)
    g = jax.tree.map(lambda x: np.cos(9 * x) * np.float32(x.size), w)
    w, g = jax.tree.map(jnp.asarray, (w, g))
    link = ours(limit)
    clip = jax.jit(lambda g: link.update(g, link.init(w), w)[0])
    expected = jax.jit(lambda g: theirs(limit).update(g, (), w)[0])(g)
    changed = 0
    for name, leaf in clip(g).items():
      np.testing.assert_allclose(leaf, expected[name], rtol=1e-5)
      changed += int(np.sum(np.abs(leaf - g[name]) > 1e-3))
    self.assertGreater(changed, 0)
    zero = jax.tree.map(jnp.zeros_like, g)
    _, slope = jax.jvp(clip, (zero,), (w,))
    jax.tree.map(np.testing.assert_array_equal, slope, w)

  def test_a_dead_leaf_beside_one_that_is_clipped(self):
    link = core.clip_by_block_rms(0.5)
    clip = lambda g: link.update(g, link.init(None))[0]
    g = {"dead": jnp.zeros(2), "alive": jnp.array([3.0, -3.0])}
    _, slope = jax.jvp(clip, (g,), (jax.tree.map(jnp.ones_like, g),))
    np.testing.assert_array_equal(slope["dead"], [1.0, 1.0])
    np.testing.assert_allclose(slope["alive"], [1 / 6, 1 / 6], rtol=1e-5)

  def test_limits_are_positive(self):
    for clip in (
      core.clip_by_global_norm,
      core.clip_by_block_rms,
      core.adaptive_grad_clip,
    ):
      with self.assertRaisesRegex(ValueError, "must be finite and above 0, got 0"):
        clip(0.0)
    link = core.adaptive_grad_clip(0.1)
    with self.assertRaisesRegex(ValueError, "params=None"):
      link.update(jnp.ones(2), link.init(None))


class LearnedStepRatesTest(absltest.TestCase):
  def test_row_i_is_of_step_i_eager_unrolled_and_in_a_scan(self):
    rates = {
      "w": jnp.array([1.0, 2.0, -3.0]),
      "b": jnp.array([[1.0, 2], [3, 4], [5, 6]]),
    }
    rates["none"] = None

    def step(state, _):
      updates, state = learned_step_rates(rates).update(UPDATES, state)
      return state, updates

    init = learned_step_rates(rates).init(UPDATES)
    _, updates = jax.lax.scan(step, init, length=3)
    state = init
    for i in range(3):
      state, once = step(state, None)
      np.testing.assert_array_equal(once["w"], rates["w"][i] * UPDATES["w"])
      np.testing.assert_array_equal(once["b"], rates["b"][i] * UPDATES["b"])
      np.testing.assert_array_equal(updates["w"][i], once["w"])
      self.assertIsNone(once["none"])
    self.assertEqual(int(state.step), 3)

  def test_past_the_last_row_everything_is_nan(self):
    link = learned_step_rates(jnp.ones(1))
    _, state = link.update(jnp.ones(2), link.init(None))
    self.assertTrue(np.isnan(link.update(jnp.ones(2), state)[0]).all())

  def test_derivative_in_the_rates(self):
    with jax.enable_x64(True):

      def after_two_steps(rates):
        link, w = learned_step_rates(rates), jnp.array([1.0, 2.0])
        state = link.init(w)
        for _ in range(2):
          update, state = link.update(-jnp.sin(w), state)
          w = w + update
        return w

      check_grads(
        jax.jit(after_two_steps), (jnp.array([0.3, -0.7]),), order=2, modes=("rev",)
      )


if __name__ == "__main__":
  absltest.main()
