"""The programs that `python -m jsharp.NAME` runs."""
