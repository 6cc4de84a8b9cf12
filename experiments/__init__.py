"""Programs: one question per file, run with `python -m experiments.NAME`."""

import jsharp as jsharp  # First of all, for signals that come early.
