"""Budgets of training: in meta-steps, in gradients of single examples, in minutes.

The unit of a gradient is a forward and a backward pass of the whole network for one
example. What a meta-step costs in it is part of an algorithm's description
(`jsharp.algorithms.Algorithm.phases`).
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jsharp.algorithms import Phases

UNITS = ("steps", "gradients", "minutes")
_MOST = 1e18
_MOST_STEPS = 2**31 - 1  # Steps are counted in 32 bits.


def gradients_per_task(phases: Phases, num_steps: int) -> float:
  """What a task of a run costs, on average over the run's meta-steps.

  Args:
    phases: `(end, gradients per task)` of each phase, which ends before meta-step
      `end`; the last one ends at infinity.
    num_steps: meta-steps of the run.

  Returns:
    Gradients of single examples per task.

  Example:
    >>> gradients_per_task([(10.0, 5.0), (float("inf"), 20.0)], 30)
    15.0
  """
  total, begin = 0.0, 0.0
  for end, cost in phases:
    total += cost * max(0.0, min(end, num_steps) - begin)
    begin = end
  return total / num_steps


def steps_paid(phases: Phases, amount: float, *, num_tasks: int) -> float:
  """How many meta-steps a number of gradients pays for.

  Args:
    phases: as for `gradients_per_task`.
    amount: gradients of single examples, of all tasks together.
    num_tasks: tasks per meta-step.

  Returns:
    Meta-steps, with the fraction of the last one.

  Example:
    >>> steps_paid([(10.0, 5.0), (float("inf"), 20.0)], 900.0, num_tasks=2)
    30.0
  """
  begin = 0.0
  for end, cost in phases:
    price = num_tasks * cost
    if amount <= price * (end - begin):
      break
    amount -= price * (end - begin)
    begin = end
  return begin + amount / price


class Budget(NamedTuple):
  """What every run of a comparison may cost.

  Attributes:
    unit: "steps" (meta-steps), "gradients" (of single examples) or "minutes" (of
      training); of ordinary training "epochs" or "gradient_epochs".
    amount: how many.
  """

  unit: str
  amount: float

  @classmethod
  def from_table(cls, table: Any, *, units: Sequence[str] = UNITS) -> "Budget":
    """Reads a budget from a table with one entry, as TOML has it.

    Args:
      table: such as `{"steps": 2000}`.
      units: those that there are.

    Raises:
      ValueError: if it is no table of one positive number.
    """
    if not isinstance(table, dict) or len(table) != 1 or table.keys() - set(units):
      raise ValueError(
        f"budget must name exactly one of {', '.join(units)}, got {table!r}; for "
        f"example [budget] and below it {units[0]} = 200"
      )
    ((unit, amount),) = table.items()
    if type(amount) not in (int, float) or not 0 < amount <= _MOST:
      raise ValueError(
        f"budget.{unit} must be a positive number, got {reprlib.repr(amount)}; at most "
        f"{_MOST:g} is usable"
      )
    return cls(unit, float(amount))

  def num_steps(
    self, phases: Phases, *, num_tasks: int, tasks_per_second: float | None = None
  ) -> int:
    """The whole meta-steps that it pays for.

    Args:
      phases: as for `gradients_per_task`.
      num_tasks: tasks per meta-step.
      tasks_per_second: for a budget in minutes, as measured in the last phase; a task
        of another phase takes longer or shorter in proportion to its gradients.

    Raises:
      ValueError: if it pays for less than one.

    Example:
      >>> phases = [(10.0, 5.0), (float("inf"), 20.0)]
      >>> Budget("gradients", 900.0).num_steps(phases, num_tasks=2)
      30
      >>> Budget("minutes", 1.0).num_steps(phases, num_tasks=2, tasks_per_second=0.75)
      30
    """
    steps = self.amount
    if self.unit == "gradients":
      steps = steps_paid(phases, self.amount, num_tasks=num_tasks)
    elif self.unit == "minutes":
      assert tasks_per_second is not None
      gradients = 60 * self.amount * tasks_per_second * phases[-1][1]
      steps = steps_paid(phases, gradients, num_tasks=num_tasks)
    if steps < 1:
      raise ValueError(
        f"the budget of {self.amount:g} {self.unit} does not pay for one meta-step; "
        "raise it or lower num_tasks"
      )
    if steps > _MOST_STEPS:
      raise ValueError(
        f"the budget of {self.amount:g} {self.unit} pays for more than {_MOST_STEPS:,} "
        "meta-steps; lower it"
      )
    return int(steps)
