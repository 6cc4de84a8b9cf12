"""Measurements that others can rerun: python -m benchmarks.NAME."""
