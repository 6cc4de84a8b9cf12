"""Programs: one question per file, run with `python -m experiments.NAME`."""
