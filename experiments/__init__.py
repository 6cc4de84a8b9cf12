"""Programs: one question per file, run with `python -m experiments.NAME`."""

from jsharp import _early

_early.listen("experiments")
