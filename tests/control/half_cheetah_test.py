"""The half-cheetah, where brax is installed; what is said where it is not."""

import importlib.util
import sys
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import control
from jsharp.control import half_cheetah
from tests.control import held_test

NEEDS_BRAX = absltest.skipUnless(
  importlib.util.find_spec("brax"), "brax is missing: pip install 'jsharp[brax]'"
)


class GoalsTest(parameterized.TestCase):
  def test_goals_are_those_of_the_paper(self):
    keys = jax.random.split(jax.random.key(0), 1000)
    directions = jax.vmap(control.HalfCheetahDir().goal)(keys)
    self.assertEqual(set(directions.ravel().tolist()), {-1.0, 1.0})
    velocities = jax.vmap(control.HalfCheetahVel().goal)(keys)
    np.testing.assert_allclose(velocities.min(), 0, atol=0.01)
    np.testing.assert_allclose(velocities.max(), 2, atol=0.01)

  def test_rewards_of_a_goal(self):
    forward, backward = jnp.float32(1.0), jnp.float32(-1.0)
    directed = control.HalfCheetahDir().earned
    self.assertEqual(float(directed(jnp.float32(1.5), backward)), -1.5)
    measured = control.HalfCheetahVel().earned
    self.assertEqual(float(measured(jnp.float32(1.5), forward)), -0.5)

  def test_without_brax_the_extra_is_named(self):
    half_cheetah._simulated.cache_clear()
    with (
      mock.patch.dict(sys.modules, {"brax": None}),
      self.assertRaisesRegex(ModuleNotFoundError, r"pip install 'jsharp\[brax\]'"),
    ):
      control.HalfCheetahDir().reset(jax.random.key(0), jnp.ones(1))


@NEEDS_BRAX
class RunningTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # brax mixes dtypes and ranks.
    self.enter_context(jax.numpy_dtype_promotion("standard"))
    self.enter_context(jax.numpy_rank_promotion("allow"))
    self.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")  # Of what MuJoCo will rename.

  def test_it_runs_and_what_it_earns_has_a_gradient(self):
    environment = control.HalfCheetahVel(horizon=2)
    task = control.sample_task(environment, jax.random.key(0), support=2, query=1)
    params = held_test.start(observations=17, actions=6)
    loss_fn = control.policy_loss(environment, held_test.policy)

    @jax.jit
    def held_and_gradient(params):
      held = loss_fn.hold(params, task.support)
      return held, jax.grad(lambda w: loss_fn(w, held)[0])(params)

    held, grads = held_and_gradient(params)
    found = held.inputs.found
    self.assertEqual(found.observations.shape, (2, 2, 17))
    self.assertTrue(np.isfinite(found.observations).all())
    self.assertGreater(float(jnp.abs(grads["weights"]).max()), 0)
    effort = 0.05 * np.square(np.clip(found.actions, -1, 1)).sum(-1)
    self.assertTrue((np.asarray(found.rewards) + effort <= 0).all())
    self.assertFalse(np.array_equal(found.observations[:, 0], found.observations[:, 1]))


if __name__ == "__main__":
  absltest.main()
