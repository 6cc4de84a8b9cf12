"""Evaluators, fixed lists of tasks, ensembles, comparisons, reports and curves."""

from jsharp.evaluation.tasks import evaluator

__all__ = ["evaluator"]
