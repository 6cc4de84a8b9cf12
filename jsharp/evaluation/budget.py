"""Training budgets in meta-steps, in gradients of single examples, or in minutes.

One gradient is a forward and a backward pass of the whole network for one example. Each
algorithm defines the cost of its meta-steps in this unit
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
  """The cost of one task, averaged over a run's meta-steps.

  Args:
    phases: `(end, gradients per task)` for each phase; a phase ends before meta-step
      `end`, and the last one at infinity.
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
  """The number of meta-steps that a budget of gradients pays for.

  Args:
    phases: as for `gradients_per_task`.
    amount: gradients of single examples, summed over all tasks.
    num_tasks: tasks per meta-step.

  Returns:
    Meta-steps, including the fraction of the last one.

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
  """The training budget of every run of a comparison.

  Attributes:
    unit: "steps" (meta-steps), "gradients" (of single examples) or "minutes" (of
      training); for ordinary training "epochs" or "gradient_epochs".
    amount: the number of these units.
  """

  unit: str
  amount: float

  @classmethod
  def from_table(cls, table: Any, *, units: Sequence[str] = UNITS) -> "Budget":
    """Reads a budget from a table with one entry, as parsed from TOML.

    Args:
      table: such as `{"steps": 2000}`.
      units: the allowed units.

    Raises:
      ValueError: if it is not a table with one positive number.
    """
    if not isinstance(table, dict) or len(table) != 1 or table.keys() - set(units):
      raise ValueError(
        f"budget must name exactly one of {', '.join(units)}, got {table!r}; write for "
        f"example {units[0]} = 200 below [budget]"
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
    """The number of whole meta-steps that the budget pays for.

    Args:
      phases: as for `gradients_per_task`.
      num_tasks: tasks per meta-step.
      tasks_per_second: for a budget in minutes: the speed measured in the last phase.
        The time per task in other phases is scaled by their gradients.

    Raises:
      ValueError: if it pays for less than one meta-step.

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
