"""Evaluation on fixed lists of tasks, and what is reported of it.

`evaluator` and `evaluate` measure a learner; the rest covers ensembles, comparisons
with paired intervals, budgets, reports and curves.
"""

from jsharp.evaluation.budget import Budget, gradients_per_task, steps_paid
from jsharp.evaluation.comparison import (
  Interval,
  Row,
  compare,
  comparison_csv,
  half_width_over_seeds,
  interval,
  markdown,
  plot_comparison,
)
from jsharp.evaluation.curves import plot_curves
from jsharp.evaluation.ensemble import evaluate_ensemble, log_probabilities
from jsharp.evaluation.gap import generalisation_gap
from jsharp.evaluation.learner import measure_learner
from jsharp.evaluation.objective import NetworkAlone, network_alone, objective
from jsharp.evaluation.report import (
  csv_table,
  environment,
  over_domains,
  protocol_card,
  read_column,
  summarise,
)
from jsharp.evaluation.tasks import (
  evaluate,
  evaluate_stream,
  evaluator,
  first_tasks,
  mean_and_ci95,
  task_list,
  transductive_and_inductive,
)

__all__ = [
  "Budget",
  "Interval",
  "NetworkAlone",
  "Row",
  "compare",
  "comparison_csv",
  "csv_table",
  "environment",
  "evaluate",
  "evaluate_ensemble",
  "evaluate_stream",
  "evaluator",
  "first_tasks",
  "generalisation_gap",
  "gradients_per_task",
  "half_width_over_seeds",
  "interval",
  "log_probabilities",
  "markdown",
  "mean_and_ci95",
  "measure_learner",
  "network_alone",
  "objective",
  "over_domains",
  "plot_comparison",
  "plot_curves",
  "protocol_card",
  "read_column",
  "steps_paid",
  "summarise",
  "task_list",
  "transductive_and_inductive",
]
