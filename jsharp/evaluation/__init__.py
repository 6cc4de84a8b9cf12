"""Fixed lists of tasks, ensembles, comparisons, reports and curves."""
