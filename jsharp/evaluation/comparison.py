"""Comparison of methods on the same tasks: means, intervals, paired differences.

Two sources of randomness have one interval each. *Over tasks*: the test tasks are a
sample of all tasks; `1.96 * std / sqrt(num_tasks)` over tasks, each averaged over
seeds, as in the papers. *Over seeds*: training runs with other seeds end in other
parameters; Student's t interval of the runs' means, which accounts for a small number
of seeds. Differences are paired, task by task and seed by seed, because all methods are
measured on the same tasks; their intervals are usually much smaller.
"""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jsharp._files import save_figure


class Interval(NamedTuple):
  """A mean and the half-widths of its two 95 % intervals.

  Attributes:
    mean: over seeds and tasks.
    over_tasks: half-width for the choice of test tasks.
    over_seeds: half-width for the choice of training seeds; NaN with a single seed.
  """

  mean: float
  over_tasks: float
  over_seeds: float


class Row(NamedTuple):
  """One method of a comparison.

  Attributes:
    name: the method's name.
    num_seeds: the number of runs.
    num_tasks: the number of test tasks.
    value: the measured value.
    difference: the paired difference from the baseline; None for the baseline itself,
      or without a baseline.
  """

  name: str
  num_seeds: int
  num_tasks: int
  value: Interval
  difference: Interval | None


def interval(values: Any) -> Interval:
  """The mean over runs and tasks, with both intervals.

  Args:
    values: `[num_seeds, num_tasks]`, at least two tasks.

  Returns:
    The interval.

  Raises:
    ValueError: if `values` is not such an array.

  Example:
    >>> mean, over_tasks, over_seeds = interval([[0.5, 1.0, 0.5], [0.75, 1.0, 0.75]])
    >>> f"{mean:.3f} {over_tasks:.3f} {over_seeds:.3f}"
    '0.750 0.245 1.059'
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
    raise ValueError(
      f"values has shape {values.shape}; expected [num_seeds, num_tasks] with at least "
      "two tasks"
    )
  num_tasks = values.shape[1]
  by_task, by_seed = values.mean(axis=0), values.mean(axis=1)
  over_tasks = 1.96 * by_task.std(ddof=1) / math.sqrt(num_tasks)
  over_seeds = half_width_over_seeds(by_seed)
  return Interval(float(values.mean()), float(over_tasks), over_seeds)


def half_width_over_seeds(by_seed: Any) -> float:
  """Half-width of Student's 95 % interval of the mean over runs.

  Args:
    by_seed: `[num_seeds]`, a number per run.

  Returns:
    The half-width; NaN with a single run.

  Example:
    >>> f"{half_width_over_seeds([0.5, 0.75, 1.0]):.3f}"
    '0.621'
  """
  by_seed = np.asarray(by_seed, np.float64)
  if len(by_seed) < 2:
    return math.nan
  from scipy import stats

  quantile = stats.t.ppf(0.975, len(by_seed) - 1)
  return float(quantile * by_seed.std(ddof=1) / math.sqrt(len(by_seed)))


def compare(
  results: Mapping[str, Any],
  *,
  baseline: str | None,
  seeds: Mapping[str, Sequence[int]] | None = None,
) -> list[Row]:
  """Compares methods with a baseline.

  Args:
    results: per method an array `[num_seeds, num_tasks]`, all on the same tasks.
    baseline: the method that the others are compared with; None for no differences.
    seeds: per method the seeds of its rows; None if all methods have the same seeds in
      the same order. A method with fewer seeds is compared with the baseline's runs of
      these seeds.

  Returns:
    One row per method, in the given order.

  Raises:
    ValueError: if the baseline is not among the methods, or a method has another number
      of tasks or a seed that the baseline lacks.

  Example:
    >>> rows = compare(
    ...   {"maml": [[0.5, 0.7, 0.9]], "anil": [[0.6, 0.8, 1.0]]}, baseline="maml")
    >>> difference = rows[1].difference
    >>> f"{difference.mean:.2f} ± {difference.over_tasks:.2f}"
    '0.10 ± 0.00'
  """
  arrays = {name: np.asarray(values, np.float64) for name, values in results.items()}
  if baseline is None:
    return [_row(name, values, None) for name, values in arrays.items()]
  if baseline not in results:
    raise ValueError(
      f"baseline {baseline!r} is not among the methods {', '.join(results)}"
    )
  rows = []
  for name, values in arrays.items():
    reference = arrays[baseline]
    if seeds is not None:
      known = list(seeds[baseline])
      if missing := set(seeds[name]) - set(known):
        raise ValueError(
          f"{name!r} has seeds {sorted(missing)}, the baseline {baseline!r} has "
          f"{known}; a paired comparison needs the same ones"
        )
      reference = reference[[known.index(seed) for seed in seeds[name]]]
    if values.shape != reference.shape:
      raise ValueError(
        f"{name!r} has {values.shape} seeds and tasks, the baseline {baseline!r} has "
        f"{reference.shape}; a paired comparison needs the same ones"
      )
    difference = None if name == baseline else interval(values - reference)
    rows.append(_row(name, values, difference))
  return rows


def _row(name: str, values: np.ndarray, difference: Interval | None) -> Row:
  value, (num_seeds, num_tasks) = interval(values), values.shape
  return Row(name, num_seeds, num_tasks, value, difference)


def markdown(
  rows: list[Row],
  *,
  measure: str = "accuracy, %",
  scale: float = 100,
  over: str = "tasks",
) -> str:
  """The comparison as a Markdown table.

  Args:
    rows: from `compare`.
    measure: the heading of the value column.
    scale: factor of the values; 100 for percent.
    over: the unit of testing, such as "tasks", for the column headings.

  Returns:
    The lines of the table; "± tasks" and "± seeds" are the half-widths. A difference is
    bold if both of its intervals exclude zero. Without differences the table has no
    columns for them.

  Example:
    >>> rows = compare({"a": [[0.5, 0.7]], "b": [[0.6, 0.9]]}, baseline="a")
    >>> print(markdown(rows))
    | method | seeds | accuracy, % | ± tasks | ± seeds | minus a | ± tasks | ± seeds |
    |---|---|---|---|---|---|---|---|
    | a | 1 | 60.00 | 19.60 | | | | |
    | b | 1 | 75.00 | 29.40 | | +15.00 | 9.80 | |
  """

  def width(half: float) -> str:
    return "" if math.isnan(half) else f"{scale * half:.2f}"

  head = ["method", "seeds", measure, f"± {over}", "± seeds"]
  if has_differences := any(row.difference for row in rows):
    head += [f"minus {_baseline(rows)}", f"± {over}", "± seeds"]
  lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
  for row in rows:
    value, other = row.value, row.difference
    cells = [row.name, str(row.num_seeds), f"{scale * value.mean:.2f}"]
    cells += map(width, value[1:])
    if other is not None:
      difference = f"{scale * other.mean:+.2f}"
      if all(abs(other.mean) > half for half in other[1:]):  # never with one seed
        difference = f"**{difference}**"
      cells += [difference, *map(width, other[1:])]
    elif has_differences:
      cells += ["", "", ""]
    lines.append("".join(f"| {cell} ".replace("|  ", "| ") for cell in cells) + "|")
  return "\n".join(lines)


def comparison_csv(rows: list[Row]) -> str:
  """The comparison as comma-separated values, with exact numbers.

  Args:
    rows: from `compare`.

  Returns:
    A header line, then one line per method: the numbers of seeds and tasks, the mean
    with both half-widths, and the same for the difference, empty if there is none.

  Example:
    >>> rows = compare({"a": [[0.5, 0.5]], "b": [[0.75, 0.75]]}, baseline="a")
    >>> print(comparison_csv(rows).splitlines()[2])
    b,1,2,0.75,0.0,nan,0.25,0.0,nan
  """
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  differences = [f"difference_{name}" for name in Interval._fields]
  writer.writerow(["method", "seeds", "tasks", *Interval._fields, *differences])
  for row in rows:
    difference = row.difference or ("",) * len(differences)
    writer.writerow([row.name, row.num_seeds, row.num_tasks, *row.value, *difference])
  return buffer.getvalue()


def plot_comparison(
  rows: list[Row],
  path: str | os.PathLike[str],
  *,
  measure: str = "accuracy, %",
  scale: float = 100,
) -> None:
  r"""Plots every method's mean and, next to it, its difference from the baseline.

  A dot is the mean, a thick bar its interval over tasks, a thin bar over seeds.

  Args:
    rows: from `compare`.
    path: the PNG to write.
    measure: the label of the axis.
    scale: factor of the values; 100 for percent.

  Raises:
    OSError: if `path` cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> rows = compare({"a": [[0.5, 0.7]], "b": [[0.6, 0.9]]}, baseline="a")
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...   plot_comparison(rows, file.name)
    ...   pathlib.Path(file.name).read_bytes()[:4]
    b'\x89PNG'
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9.0, 1.4 + 0.38 * len(rows)), layout="constrained")
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2, sharey=True)
  for place, row in enumerate(rows):
    _bar(left, place, row.value, scale, "tab:blue")
    if row.difference is not None:
      _bar(right, place, row.difference, scale, "tab:orange")
  left.set_yticks(range(len(rows)), [row.name for row in rows])
  left.set_ylim(len(rows) - 0.4, -0.6)
  left.set_xlabel(measure)
  if any(row.difference for row in rows):
    right.axvline(0, color="0.4", linewidth=1, linestyle=":")
    right.set_xlabel(f"difference from {_baseline(rows)}, paired")
  else:
    right.set_visible(False)
  for axes in (left, right):
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
  save_figure(figure, path, dpi=150)


def _baseline(rows: list[Row]) -> str:
  return next(row.name for row in rows if row.difference is None)


def _bar(axes: Any, place: int, value: Interval, scale: float, color: str) -> None:
  mean = scale * value.mean
  style = {"color": color, "solid_capstyle": "butt"}
  for half, width, alpha in ((value.over_seeds, 1.5, 1.0), (value.over_tasks, 7, 0.35)):
    ends = (mean - scale * half, mean + scale * half)  # NaN draws nothing
    axes.plot(ends, (place, place), linewidth=width, alpha=alpha, **style)
  axes.plot(mean, place, "o", color=color, markersize=5)
