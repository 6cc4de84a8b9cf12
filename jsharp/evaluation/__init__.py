"""Fixed lists of tasks, ensembles, comparisons, reports and curves."""

from jsharp.evaluation.comparison import (
  Interval,
  Row,
  compare,
  half_width_over_seeds,
  interval,
  markdown,
)
from jsharp.evaluation.curves import plot_curves
from jsharp.evaluation.ensemble import evaluate_ensemble, log_probabilities
from jsharp.evaluation.report import csv_table, environment, protocol_card, summarise
from jsharp.evaluation.tasks import (
  evaluate,
  evaluator,
  mean_and_ci95,
  task_list,
  transductive_and_inductive,
)

__all__ = [
  "Interval",
  "Row",
  "compare",
  "csv_table",
  "environment",
  "evaluate",
  "evaluate_ensemble",
  "evaluator",
  "half_width_over_seeds",
  "interval",
  "log_probabilities",
  "markdown",
  "mean_and_ci95",
  "plot_curves",
  "protocol_card",
  "summarise",
  "task_list",
  "transductive_and_inductive",
]
