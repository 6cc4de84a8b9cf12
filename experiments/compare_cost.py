"""What a method costs in gradients of single examples, and how far a budget goes.

The unit is a forward and a backward pass of the whole model for one example. A
Hessian-vector product counts as two. Free are a forward pass that only measures, and
the inner steps of ANIL, which pass through the head alone. No other method's are:
CAVIA adapts few numbers, but their gradient passes through the whole model, so it is
priced as MAML. What --second_order computes a second time is not priced: it belongs to
the machine, not to the method.
"""

import itertools
import math
from types import SimpleNamespace

from experiments.method_flags import sharp_loops
from experiments.task_flags import counts

_AS_MAML = (
  "maml",
  "sharp_maml_low",
  "sharp_maml_up",
  "sharp_maml_both",
  "meta_sgd",
  "boil",
  "cavia",
)


def phases(settings: SimpleNamespace) -> list[tuple[float, float]]:
  """The phases of training that differ in cost; only MAML++ has more than one.

  Args:
    settings: the values of the flags.

  Returns:
    Per phase `(end, cost)`: the meta-step it ends before, `inf` for the last, and the
    gradients per task of its meta-steps; the mean over --train_way and --train_shot.

  Raises:
    ValueError: if the algorithm has no price.
  """
  if settings.algorithm != "maml_plus_plus":
    return [(math.inf, _mean_cost(settings))]
  first_order, all_losses = settings.first_order_steps, settings.multi_step_loss_steps
  ends = sorted({first_order, all_losses, math.inf} - {0})
  return [
    (
      end,
      _mean_cost(settings, exact=end > first_order, all_losses=end <= all_losses),
    )
    for end in ends
  ]


def gradients_per_task(settings: SimpleNamespace, num_steps: int) -> float:
  """Gradients of single examples per task, on average over a run.

  Args:
    settings: the values of the flags.
    num_steps: meta-steps of the run.

  Raises:
    ValueError: if the algorithm has no price.
  """
  total, begin = 0.0, 0.0
  for end, cost in phases(settings):
    total += cost * max(0.0, min(end, num_steps) - begin)
    begin = end
  return total / num_steps


def steps_paid(settings: SimpleNamespace, amount: float) -> float:
  """The meta-steps that so many gradients of single examples pay for.

  Args:
    settings: the values of the flags.
    amount: gradients, of all tasks together.

  Raises:
    ValueError: if the algorithm has no price.
  """
  begin = 0.0
  for end, cost in phases(settings):
    price = settings.num_tasks * cost
    if amount <= price * (end - begin):
      break
    amount -= price * (end - begin)
    begin = end
  return begin + amount / price


def _mean_cost(settings: SimpleNamespace, **phase: bool) -> float:
  if settings.experiment == "sinusoid":
    shapes = [(1, settings.shot)]
  else:
    shapes = list(
      itertools.product(
        counts(settings.train_way) or [settings.way],
        counts(settings.train_shot) or [settings.shot],
      )
    )
  costs = [
    _cost(settings, way * shot, way * settings.query_shot, **phase)
    for way, shot in shapes
  ]
  return sum(costs) / len(costs)


def _cost(
  settings: SimpleNamespace,
  support: int,
  query: int,
  exact: bool = True,
  all_losses: bool = False,
) -> float:
  """Gradients of one task with so many examples."""
  inner, outer = sharp_loops(settings)
  steps = settings.num_inner_steps
  gradients = 2 if inner else 1  # per inner step
  products = gradients if settings.differentiate_perturbation else 1
  match settings.algorithm:
    case "protonet" | "ridge" | "black_box" | "anil":
      cost = support + query
    case "reptile":
      batch = min(settings.inner_batch_size or support, support)
      cost = steps * gradients * batch
    case "fomaml":
      cost = steps * gradients * support + query
    case "imaml":
      cost = (steps * gradients + 2 * settings.num_cg_steps + 2) * support + query
    case "maml_plus_plus":
      per_step = gradients + (2 * products if exact else 0)
      cost = steps * per_step * support + (steps if all_losses else 1) * query
    case algorithm if algorithm in _AS_MAML:
      cost = steps * (gradients + 2 * products) * support + query
    case algorithm:
      raise ValueError(
        f"--algorithm={algorithm} has no price in gradients; give it one in "
        "experiments/compare_cost.py"
      )
  return 2 * cost if outer else cost
