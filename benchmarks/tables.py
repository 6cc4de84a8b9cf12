"""Timing and Markdown tables for the benchmarks."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def calls_per_second(run: Callable[[], Any], seconds: float) -> float:
  """Calls of `run` per second, measured over at least `seconds`."""
  count, start = 0, time.perf_counter()
  while count == 0 or time.perf_counter() - start < seconds:
    run()
    count += 1
  return count / (time.perf_counter() - start)


def by_turns(
  timers: Mapping[str, Callable[[float], float]], seconds: float, rounds: int
) -> dict[str, list[float]]:
  """What every timer finds in each round; the timers alternate.

  Args:
    timers: `timer(seconds) -> rate`, by label; each is called once before, with 0.
    seconds: the time for each timer and round.
    rounds: the number of rounds.
  """
  for timer in timers.values():
    timer(0.0)
  rates: dict[str, list[float]] = {label: [] for label in timers}
  for _ in range(rounds):
    for label, timer in timers.items():
      rates[label].append(timer(seconds))
  return rates


def begin_table(columns: Sequence[str]) -> None:
  """Prints the head of a Markdown table."""
  print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def spread(values: Sequence[float], digits: int, kind: str = "f") -> str:
  """Median and range, as "1.5 (1.0 to 2.0)"; with `kind="e"` as powers of ten."""
  ends_and_median = min(values), statistics.median(values), max(values)
  low, mid, high = (f"{value:.{digits}{kind}}" for value in ends_and_median)
  return f"{mid} ({low} to {high})"
