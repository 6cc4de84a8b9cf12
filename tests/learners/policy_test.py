"""Policies: saved and loaded, adapted to a goal or to trajectories, and acting."""

import pickle
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import jsharp
from jsharp import control, learners
from jsharp.algorithms.cavia import CAVIA
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.meta_sgd import MetaSGD
from jsharp.models.policy import PolicyNetwork
from jsharp.options import to_json
from tests.control.own_environment import Line


def described(algorithm=None, **parts):
  parts = {"environment": control.Navigation(horizon=5), **parts}
  return learners.PolicyDescription(
    algorithm=algorithm or MAML(inner_lr=0.5, num_eval_inner_steps=2),
    network=PolicyNetwork(hidden_width=4),
    gradient=control.PolicyGradient(discount=0.9, gae_decay=0.8),
    **parts,
  )


def task_of(policy, support=4, query=3):
  return control.sample_task(
    policy.description.environment, jax.random.key(1), support=support, query=query
  )


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


class PolicyTest(parameterized.TestCase):
  @parameterized.parameters(None, MetaSGD())
  def test_what_is_loaded_adapts_and_acts_as_what_was_saved(self, algorithm):
    policy = learners.build_policy(described(algorithm), seed=3)
    with tempfile.TemporaryDirectory() as directory:
      jsharp.save(policy, directory)
      loaded = jsharp.load(directory)
    again = pickle.loads(pickle.dumps(policy))
    support = task_of(policy).support
    for other in (loaded, again):
      self.assertEqual(other.description, policy.description)
      assert_same(other.params, policy.params)
      assert_same(other.adapt(support), policy.adapt(support))
    observations = jnp.ones((3, 2))
    actions = policy.act(policy.start(), observations)
    np.testing.assert_array_equal(loaded.act(loaded.start(), observations), actions)
    self.assertEqual(actions.shape, (3, 2))
    drawn = policy.act(policy.start(), observations, jax.random.key(0))
    self.assertGreater(float(jnp.abs(drawn - actions).min()), 1e-3)
    self.assertRegex(repr(policy), r"PolicyLearner\(\w+ in navigation, \d+ numbers\)")

  def test_ones_own_environment_is_remembered(self):
    given = jsharp._catalogue.find("environment", "tests.control.own_environment:Line")
    policy = learners.build_policy(described(environment=given(horizon=3)))
    with tempfile.TemporaryDirectory() as directory:
      jsharp.save(policy, directory)
      loaded = jsharp.load(directory)
    self.assertIsInstance(loaded.description.environment, Line)
    self.assertEqual(loaded.description.environment.horizon, 3)

  @parameterized.parameters((1, 2e-5), (2, None))
  def test_trajectories_from_elsewhere_adapt_it_as_its_own_do(self, steps, atol):
    policy = learners.build_policy(described())
    support = task_of(policy).support
    seen = policy.roll_out(policy.start(), support)
    elsewhere = jax.tree.map(lambda x: jnp.asarray(np.array(x)), seen)
    found = policy.adapt(elsewhere, num_steps=steps)
    own = policy.adapt(support, num_steps=steps)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, policy.start())
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-3)
    if atol:  # Later steps weigh them where its own would be fresh.
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, own)

  def test_adaptation_takes_it_towards_the_goal(self):
    policy = learners.build_policy(
      described(environment=control.Navigation(horizon=20))
    )
    task = task_of(policy, support=40, query=40)
    earned = [
      float(policy.roll_out(point, task.query).rewards.sum(1).mean())
      for point in (policy.start(), policy.adapt(task.support, num_steps=3))
    ]
    self.assertGreater(earned[1], earned[0] + 0.5)

  def test_its_loss_is_the_one_that_is_described(self):
    loss_fn = described().loss(lambda params, x: x)
    self.assertEqual(
      (loss_fn.surrogate, loss_fn.discount, loss_fn.decay), ("dice", 0.9, 0.8)
    )

  def test_refuses(self):
    policy = learners.build_policy(described())
    with self.assertRaisesRegex(
      ValueError, r"observations must be \[n, 2\], got \[2\]"
    ):
      policy.act(policy.start(), jnp.ones(2))
    seen = policy.roll_out(policy.start(), task_of(policy).support)
    with self.assertRaisesRegex(
      ValueError, r"actions of the trajectories is \[4, 5\], .* must be \[4, 5, 2\]"
    ):
      policy.adapt(seen._replace(actions=seen.rewards))
    with self.assertRaisesRegex(ValueError, "cavia needs examples with targets"):
      described(CAVIA())

  def test_what_was_saved_before_is_read_still(self):
    """The descriptions of learners and classifiers have the fields that they had."""
    self.assertNotIn("environment", dir(learners.Description))
    told = to_json(described())
    read = learners.from_json({"learner_format": 1, "policy": told})
    self.assertEqual(read, described())
    del told["gradient"]
    with self.assertRaisesRegex(
      ValueError, "config.json: policy: the field 'gradient'"
    ):
      learners.from_json({"learner_format": 1, "policy": told})


if __name__ == "__main__":
  absltest.main()
