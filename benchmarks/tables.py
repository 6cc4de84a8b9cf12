"""How the benchmarks write their figures."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int) -> str:
  """Median and range, as "1.5 (1.0 to 2.0)"."""
  low, mid, high = min(values), statistics.median(values), max(values)
  return f"{mid:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
