"""Surrogates against a problem of two states and two actions that can be enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import control

HORIZON = 3
# Rewards of an action in a state; where it leads; both depend on both.
REWARDS = np.array([[1.0, -0.5], [0.3, 2.0]])
NEXT = np.array([[0, 1], [1, 0]])


def paths():
  """States, actions and rewards `[8, 3]` of every trajectory from state 0."""
  states, actions = [], []
  for chosen in itertools.product((0, 1), repeat=HORIZON):
    state, visited = 0, []
    for action in chosen:
      visited.append(state)
      state = NEXT[state, action]
    states.append(visited)
    actions.append(chosen)
  states, actions = jnp.array(states), jnp.array(actions)
  return states, actions, jnp.asarray(REWARDS)[states, actions]


def log_probs(logits):
  """`[8, 3]` of a policy with `logits[state, action]`."""
  states, actions, _ = paths()
  return jax.nn.log_softmax(logits)[states, actions]


def expected_return(logits):
  _, _, rewards = paths()
  return jnp.sum(jnp.exp(log_probs(logits).sum(1)) * rewards.sum(1))


def expected_surrogate(surrogate, advantages):
  """The mean over trajectories, each weighted by how likely it is at the point."""

  def mean(logits):
    found = log_probs(logits)
    weights = jax.lax.stop_gradient(jnp.exp(found.sum(1)))
    return jnp.sum(weights * surrogate(found, advantages))

  return mean


def to_come(rewards):
  return jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]


class SurrogatesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.logits = jnp.array([[0.3, -0.2], [0.9, 0.4]])

  @parameterized.parameters(False, True)
  def test_dice_has_the_exact_derivatives_up_to_the_third(self, has_baseline):
    states, _, rewards = paths()
    advantages = to_come(rewards)
    if has_baseline:
      values = jnp.array([[0.7, 0.1, -2.0], [1.3, -0.4, 5.0]])
      advantages -= values[states, jnp.arange(HORIZON)]
    surrogate = expected_surrogate(control.dice, advantages)
    for derivative in (
      jax.grad,
      jax.hessian,
      lambda fn: jax.jacfwd(jax.hessian(fn)),
    ):
      np.testing.assert_allclose(
        derivative(surrogate)(self.logits),
        derivative(expected_return)(self.logits),
        rtol=1e-10,
        atol=1e-12,
      )
    self.assertEqual(surrogate(self.logits), 0)

  def test_low_variance_is_exact_at_first_and_biased_at_second_order(self):
    _, _, rewards = paths()
    surrogate = expected_surrogate(control.low_variance, to_come(rewards))
    np.testing.assert_allclose(
      jax.grad(surrogate)(self.logits), jax.grad(expected_return)(self.logits), 1e-10
    )
    bias = jax.hessian(surrogate)(self.logits) - jax.hessian(expected_return)(
      self.logits
    )
    self.assertGreater(np.abs(bias).max(), 0.01)

  def test_it_varies_less(self):
    """Over trajectories, the squared length of the second derivative."""
    _, _, rewards = paths()
    lengths = {}
    for surrogate in (control.dice, control.low_variance):
      each = jax.hessian(lambda w, fn=surrogate: fn(log_probs(w), to_come(rewards)))
      squares = jnp.square(each(self.logits)).sum((1, 2, 3, 4))
      weights = jnp.exp(log_probs(self.logits).sum(1))
      lengths[surrogate.__name__] = float((weights * squares).sum())
    self.assertLess(lengths["low_variance"], lengths["dice"])

  @parameterized.parameters((1.0, 1.0), (0.9, 1.0), (0.9, 0.0), (0.8, 0.7))
  def test_generalised_advantages_by_their_sum(self, discount, decay):
    rewards = jnp.array([[1.0, -2.0, 0.5, 3.0]])
    values = jnp.array([[0.2, 0.7, -1.0, 0.4]])
    after = np.append(values[0, 1:], 0)
    differences = np.asarray(rewards[0] + discount * after - values[0])
    expected = [
      sum((discount * decay) ** k * differences[t + k] for k in range(4 - t))
      for t in range(4)
    ]
    found = control.generalised_advantages(
      rewards, values, discount=discount, decay=decay
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)

  def test_the_baseline_is_least_squares_on_living_steps(self):
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(4, 6, 2))
    alive = (np.arange(6) < np.array([[6], [3], [5], [1]])).astype(float)
    time = np.broadcast_to(np.arange(6) / 100, (4, 6))
    columns = [*observations.transpose(2, 0, 1), *observations.transpose(2, 0, 1) ** 2]
    columns += [time, time**2, time**3, np.ones((4, 6))]
    returns = 3 + columns[0] - 2 * columns[3] + 5 * time + generator.normal(size=(4, 6))
    is_alive = alive.astype(bool)
    features = np.stack([column[is_alive] for column in columns], axis=1)
    ridge = 1e-5 * np.square(features).sum() / features.shape[1]
    weights = np.linalg.solve(
      features.T @ features + ridge * np.eye(8), features.T @ returns[is_alive]
    )
    found = control.linear_baseline(
      jnp.asarray(observations), jnp.asarray(returns), jnp.asarray(alive)
    )
    np.testing.assert_allclose(found[is_alive], features @ weights, rtol=1e-7)
    np.testing.assert_array_equal(found[~is_alive], 0)


if __name__ == "__main__":
  absltest.main()
