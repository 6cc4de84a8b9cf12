"""Programs that come with the library: what `python -m jsharp.NAME` runs."""
