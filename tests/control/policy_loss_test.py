"""Roll-outs and the loss of a policy, in the plane and on a line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import control
from tests.control.own_environment import Ends, Line


def constant_policy(params, observations):
  """Means `params["mean"]`, standard deviations `exp(params["log_scale"])`."""
  rows = jnp.ones((observations.shape[0], 1), observations.dtype)
  return jnp.concatenate(
    [rows * params["mean"][None], rows * params["log_scale"][None]], axis=1
  )


def params(mean, log_scale):
  return {
    "mean": jnp.asarray(mean, jnp.float32),
    "log_scale": jnp.full(len(mean), log_scale, jnp.float32),
  }


def batch(goal, number=3, seed=0):
  keys = jax.random.split(jax.random.key(seed), number)
  return jsharp.Batch(keys, jnp.tile(jnp.array([goal], jnp.float32), (number, 1)))


class RollOutTest(parameterized.TestCase):
  def test_nothing_is_earned_after_the_end(self):
    environment = Line(horizon=6)
    found = control.roll_out(
      environment, constant_policy, params([0.3], -20.0), batch([1.0])
    )
    # 0.3, 0.6, 0.9, 1.2: over after the fourth action.
    np.testing.assert_array_equal(found.alive, [[1, 1, 1, 1, 0, 0]] * 3)
    expected = 1 + 0.3 * np.arange(1, 5)
    np.testing.assert_allclose(found.rewards[0, :4], expected, atol=0.1)
    np.testing.assert_array_equal(found.rewards[:, 4:], 0)

  def test_the_state_that_ends_a_trajectory_may_be_nan(self):
    policy = lambda w, x: jnp.concatenate([w * (1 + x), 0 * x - 20], axis=1)
    usual, nan_at_the_end = (
      jax.value_and_grad(
        control.policy_loss(environment(horizon=4), policy), has_aux=True
      )(jnp.float32(0.5), batch([1.0]))
      for environment in (Line, Ends)
    )
    jax.tree.map(np.testing.assert_array_equal, usual, nan_at_the_end)
    self.assertTrue(np.isfinite(usual[1]))

  def test_keys_decide_all_that_is_drawn(self):
    environment = control.Navigation(horizon=4)
    policy = params([0.2, -0.1], 0.0)
    first, again = (
      control.roll_out(environment, constant_policy, policy, batch([0.3, 0.3]))
      for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    self.assertGreater(np.ptp(first.actions[:, 0, 0]), 0.1)
    np.testing.assert_allclose(
      np.asarray(first.observations)[:, 1],
      0.1 * np.clip(first.actions[:, 0], -1, 1),
      rtol=1e-6,
    )

  def test_the_density_is_the_gaussians(self):
    actions = np.array([[0.3, -1.0]])
    means, scales = np.array([0.1, 0.5]), np.array([0.7, 2.0])
    outputs = jnp.asarray([[*means, *np.log(scales)]], jnp.float32)
    density = np.exp(-(((actions - means) / scales) ** 2) / 2) / (
      scales * np.sqrt(2 * np.pi)
    )
    found = control.log_density(outputs, jnp.asarray(actions, jnp.float32))
    np.testing.assert_allclose(found, np.log(density).sum(1), rtol=1e-5)


class PolicyLossTest(parameterized.TestCase):
  @parameterized.parameters("dice", "low_variance")
  def test_the_gradient_is_that_of_the_score_function(self, surrogate):
    """By hand, for a policy that is a Gaussian without observations."""
    environment, policy = control.Navigation(horizon=5), params([0.2, -0.4], -0.5)
    task = batch([0.4, 0.1], number=4)
    loss_fn = control.policy_loss(
      environment, constant_policy, surrogate=surrogate, discount=0.9
    )
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(policy, task)
    found = control.roll_out(environment, constant_policy, policy, task)
    rewards = np.asarray(found.rewards, float)
    self.assertAlmostEqual(float(loss), -rewards.sum(1).mean(), places=4)
    self.assertEqual(float(metrics["return"]), -float(loss))
    returns = np.stack(
      [(rewards[:, t:] * 0.9 ** np.arange(5 - t)).sum(1) for t in range(5)], axis=1
    )
    values = control.linear_baseline(
      found.observations, jnp.asarray(returns, jnp.float32), found.alive
    )
    gains = returns - np.asarray(values, float)
    gains = (gains - gains.mean()) / gains.std()
    away = np.asarray(found.actions, float) - np.asarray(policy["mean"], float)
    score = away / np.exp(2 * -0.5)
    expected = -(gains[..., None] * score).sum((0, 1)) / rewards.size
    np.testing.assert_allclose(grads["mean"], expected, rtol=2e-3, atol=1e-5)

  def test_a_step_towards_the_goal_is_found(self):
    loss_fn = control.policy_loss(control.Navigation(horizon=10), constant_policy)
    grads = jax.grad(lambda w: loss_fn(w, batch([0.5, -0.5], 200))[0])(
      params([0.0, 0.0], -1.0)
    )
    self.assertLess(float(grads["mean"][0]), 0)
    self.assertGreater(float(grads["mean"][1]), 0)

  def test_every_algorithm_takes_it(self):
    loss_fn = control.policy_loss(control.Navigation(horizon=4), constant_policy)
    tasks = jax.vmap(
      lambda key: control.sample_task(control.Navigation(), key, support=4, query=5)
    )(jax.random.split(jax.random.key(0), 2))
    start = params([0.1, 0.1], 0.0)
    for constructor, options in (
      (jsharp.maml, {}),
      (jsharp.sharp_maml, {"inner_rho": 0.01, "outer_rho": 0.01}),
      (jsharp.algorithms.reptile, {}),
    ):
      algorithm = constructor(
        loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1, **options
      )
      state, metrics = jax.jit(algorithm.step)(algorithm.init(start), tasks)
      self.assertTrue(np.isfinite(metrics["return"]).all())
      self.assertFalse(np.array_equal(state.params["mean"], start["mean"]))

  def test_another_surrogate_is_refused(self):
    with self.assertRaisesRegex(ValueError, "surrogate must be one of dice, low_var"):
      control.policy_loss(control.Navigation(), constant_policy, surrogate="ppo")


class TasksTest(parameterized.TestCase):
  def test_one_goal_for_all_trajectories_of_a_task(self):
    task = control.sample_task(
      control.Navigation(), jax.random.key(3), support=4, query=6
    )
    goals = np.concatenate([task.support.targets, task.query.targets])
    np.testing.assert_array_equal(goals, np.broadcast_to(goals[:1], (10, 2)))
    keys = jax.random.key_data(
      jnp.concatenate([task.support.inputs, task.query.inputs])
    )
    self.assertLen({tuple(key) for key in keys.tolist()}, 10)

  def test_goals_fill_the_square(self):
    goals = jax.vmap(control.Navigation().goal)(
      jax.random.split(jax.random.key(0), 1000)
    )
    np.testing.assert_allclose(goals.min(0), -0.5, atol=0.01)
    np.testing.assert_allclose(goals.max(0), 0.5, atol=0.01)


if __name__ == "__main__":
  absltest.main()
