"""Checks of static arguments: what passes, what is refused, and how it is named."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp import _checks as checks


class ChecksTest(parameterized.TestCase):
  @parameterized.parameters(-1, -0.5, float("nan"), np.float32(-1), np.int32(-1))
  def test_what_is_not_at_least_zero_is_refused(self, value):
    with self.assertRaisesRegex(ValueError, "rho must be finite and at least 0"):
      checks.check_nonnegative("rho", value)

  def test_numbers_arrays_and_schedules_pass(self):
    for value in (0, 0.05, np.float32(1), jnp.float32(-1), lambda step: 0.1):
      checks.check_nonnegative("rho", value)

  @parameterized.parameters(0, -1.0, float("inf"), float("nan"), np.float32(-1))
  def test_what_is_not_above_zero_is_refused(self, value):
    with self.assertRaisesRegex(ValueError, "pass for example proximity=2.0"):
      checks.check_positive("proximity", value, example=2.0)

  @parameterized.parameters(0.1, -0.2, 0, np.float32(0.5))
  def test_a_rate_is_a_range_of_equal_ends(self, value):
    for allowed in (False, True):
      low, high = checks.check_rates("lr", value, is_range_allowed=allowed)
      self.assertIs(type(low), float)
      self.assertEqual((low, high), (value, value))

  def test_arrays_pass_unseen(self):
    rate = jnp.float32(0.1)
    self.assertIs(checks.check_rates("lr", rate)[0], rate)

  @parameterized.parameters("0.1", None, float("nan"), True, ([0.1, 0.2],), ((),))
  def test_other_rates_are_refused(self, value):
    with self.assertRaisesRegex(ValueError, "lr must be a finite number, got"):
      checks.check_rates("lr", value)

  def test_counts(self):
    self.assertEqual(checks.check_count("num_inner_steps", np.int32(3)), 3)
    self.assertEqual(checks.check_count("num_inner_steps", 0, minimum=0), 0)
    for value, minimum, message in (
      (-1, 0, "num_inner_steps .* at least 0, got -1"),
      (1.5, 0, "num_inner_steps .* got 1.5"),
      (0, 1, "num_inner_steps .* at least 1, got 0"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        checks.check_count("num_inner_steps", value, minimum=minimum)


if __name__ == "__main__":
  absltest.main()
