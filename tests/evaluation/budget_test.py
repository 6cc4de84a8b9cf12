"""Budgets: units, what they pay for, refusals."""

import math

from absl.testing import absltest, parameterized

from jsharp.evaluation import Budget, gradients_per_task, steps_paid

PHASES = [(4.0, 10.0), (6.0, 0.5), (math.inf, 20.0)]


class BudgetTest(parameterized.TestCase):
  def test_steps_are_paid_as_a_sum_over_steps_says(self):
    costs = [10.0] * 4 + [0.5] * 2 + [20.0] * 14
    for steps in (1, 4, 5, 6, 7, 20):
      total = sum(costs[:steps])
      self.assertAlmostEqual(gradients_per_task(PHASES, steps), total / steps)
      self.assertAlmostEqual(steps_paid(PHASES, 3 * total, num_tasks=3), steps)
    self.assertAlmostEqual(steps_paid(PHASES, 41 + 5, num_tasks=1), 6.25)

  def test_each_unit_pays_for_whole_steps(self):
    for budget, rate, steps in (
      (Budget("steps", 7.9), None, 7),
      (Budget("gradients", 2 * (41.0 + 2.5 * 20)), None, 8),
      # 30 tasks of the last phase are 600 gradients.
      (Budget("minutes", 0.5), 1.0, 6 + int((600 / 2 - 41) / 20)),
    ):
      paid = budget.num_steps(PHASES, num_tasks=2, tasks_per_second=rate)
      self.assertEqual(paid, steps)

  def test_a_budget_below_one_step_is_refused(self):
    with self.assertRaisesRegex(ValueError, "3 gradients does not pay for one meta-"):
      Budget("gradients", 3.0).num_steps(PHASES, num_tasks=1)

  @parameterized.parameters(
    ({"steps": 0}, "budget.steps must be a positive number, got 0"),
    ({"steps": True}, "budget.steps must be a positive number, got True"),
    ({"steps": math.nan}, "budget.steps must be a positive number, got nan"),
    ({"steps": math.inf}, "budget.steps must be a positive number, got inf"),
    ({"steps": 1e300}, "budget.steps must be a positive number, got 1e.300; at most"),
    ({"steps": 10**400}, "budget.steps must be a positive number, got 100000"),
    ({"minutes": "3"}, "budget.minutes must be a positive number, got '3'"),
    ({"steps": 10, "minutes": 1}, "exactly one of steps, gradients, minutes"),
    ({"epochs": 10}, "exactly one of"),
    ({}, "exactly one of"),
    (3, "budget must .*, got 3; write for example"),
  )
  def test_bad_tables_are_named(self, table, message):
    with self.assertRaisesRegex(ValueError, message):
      Budget.from_table(table)
    self.assertEqual(Budget.from_table({"steps": 3}), Budget("steps", 3.0))


if __name__ == "__main__":
  absltest.main()
