"""Links with rates that are learned: values, derivatives, and their ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from jax.test_util import check_grads

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
      check_grads(jax.jit(scaled), (rates, updates), order=2, modes=("fwd", "rev"))


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
