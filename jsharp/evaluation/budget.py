"""Budgets in gradients of single examples: what a run costs, how far a budget goes.

The unit is a forward and a backward pass of the whole network for one example; what
an algorithm's steps cost in it is part of its description
(`jsharp.algorithms.Algorithm.phases`).
"""

import math

from jsharp.algorithms import Phases


def gradients_per_task(phases: Phases, num_steps: int) -> float:
  """What a task of a run costs, on average over the run's meta-steps.

  Args:
    phases: `(end, gradients per task)` of each phase, which ends before meta-step
      `end`; the last one ends at infinity.
    num_steps: meta-steps of the run.

  Returns:
    Gradients of single examples per task.

  Example:
    >>> gradients_per_task([(10.0, 5.0), (math.inf, 20.0)], 30)
    15.0
  """
  total, begin = 0.0, 0.0
  for end, cost in phases:
    total += cost * max(0.0, min(end, num_steps) - begin)
    begin = end
  return total / num_steps


def steps_paid(phases: Phases, amount: float, *, num_tasks: int) -> float:
  """How many meta-steps a budget pays for.

  Args:
    phases: as for `gradients_per_task`.
    amount: the budget in gradients of single examples, for all tasks together.
    num_tasks: tasks per meta-step.

  Returns:
    Meta-steps, with the fraction of the last one.

  Example:
    >>> steps_paid([(10.0, 5.0), (math.inf, 20.0)], 900.0, num_tasks=2)
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
