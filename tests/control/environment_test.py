"""What is said of an environment that is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import control
from tests.control import held_test
from tests.control.own_environment import Blown, Line, Lost


def with_method(name, method):
  """A line one of whose methods is another one."""
  return dataclasses.dataclass(frozen=True, kw_only=True)(
    type("Line", (Line,), {name: method, "name": "mine"})
  )()


SHAPES = {
  "goal": ("goal", lambda self, key: jnp.zeros(3), r"float32\[3\], but \[1\]"),
  "observe": (
    "observe",
    lambda self, state: jnp.zeros((1, 2)),
    r"float32\[1, 2\], but \[1\] is needed \(observation_size=1\)",
  ),
  "observed integers": (
    "observe",
    lambda self, state: state.astype(jnp.int32),
    r"int32\[1\], but policies take floating-point numbers; convert it",
  ),
  "reset": (
    "reset",
    lambda self, key, goal: jnp.zeros(2),
    r"float32\[2\], but \[1\] is needed",
  ),
  "state": (
    "step",
    lambda self, state, action, goal: (jnp.zeros(2), jnp.float32(0), jnp.array(False)),
    r"a state of float32\[2\], but mine.reset one of float32\[1\]",
  ),
  "dtype": (
    "step",
    lambda self, state, action, goal: (
      state.astype(jnp.int32),
      jnp.float32(0),
      jnp.array(False),
    ),
    r"a state of int32\[1\], but mine.reset one of float32\[1\]",
  ),
  "reward": (
    "step",
    lambda self, state, action, goal: (state, state, jnp.array(False)),
    r"a reward of float32\[1\], but \[\] is needed; return one number",
  ),
  "over": (
    "step",
    lambda self, state, action, goal: (state, state[0], state > 1),
    r"whether it is over of bool\[1\], but \[\]",
  ),
  "two": (
    "step",
    lambda self, state, action, goal: (state, state[0]),
    r"return three values: the state, the reward and whether",
  ),
}


class ShapesTest(parameterized.TestCase):
  @parameterized.named_parameters((name, *rest) for name, rest in SHAPES.items())
  def test_a_method_of_another_shape_is_named(self, name, method, message):
    environment = with_method(name, method)
    named = "mine.observe" if name == "reset" else f"mine.{name}"
    with self.assertRaisesRegex(ValueError, f"{named} returns .*{message}"):
      self.roll_out(environment)

  def test_a_policy_of_another_shape_is_named(self):
    loss_fn = control.policy_loss(Line(), lambda params, x: jnp.zeros((len(x), 4)))
    batch = jax.tree.map(lambda x: x[0], held_test.tasks(Line())).query
    with self.assertRaisesRegex(
      ValueError, r"apply_fn returns \[5, 4\] .* action_size=1; return \[5, 2\]"
    ):
      loss_fn(None, batch)

  def roll_out(self, environment):
    batch = jax.tree.map(lambda x: x[0], held_test.tasks(Line())).query
    params = held_test.start(observations=1, actions=1)
    return control.roll_out(environment, held_test.policy, params, batch)


class NotFiniteTest(parameterized.TestCase):
  @parameterized.parameters(
    (Lost, r"lost.step returns a reward of nan at time 0 .* finite numbers"),
    (Blown, r"blown.observe returns an observation of -?inf at time 1 "),
  )
  def test_who_returned_it_is_named(self, environment, message):
    found = ShapesTest.roll_out(self, environment(horizon=4))
    self.assertRegex(control.not_finite(environment(), found, np.ones(1)), message)

  def test_what_is_fine_or_the_policys_fault_is_not(self):
    found = ShapesTest.roll_out(self, Line(horizon=4))
    self.assertIsNone(control.not_finite(Line(), found, np.ones(1)))
    astray = found._replace(
      actions=found.actions * jnp.nan, rewards=found.rewards * jnp.nan
    )
    self.assertIsNone(control.not_finite(Line(), astray, np.ones(1)))


if __name__ == "__main__":
  absltest.main()
