"""Experiments: each module answers one question; run `python -m experiments.NAME`."""

from jsharp import _early

_early.listen("experiments")
