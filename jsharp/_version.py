"""The version, apart from everything that could be imported with it."""

__version__ = "0.1.0"
