"""Reproducible measurements, run as `python -m benchmarks.NAME`."""
