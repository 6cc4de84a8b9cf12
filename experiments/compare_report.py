"""The outcome of a comparison: tables and a figure."""

import csv
import io
import math
import pathlib
import re
from typing import Any

import numpy as np

from experiments.compare_plan import Plan
from jsharp._files import write_atomically
from jsharp.evaluation.comparison import Row, compare, interval, markdown


def read_column(path: pathlib.Path, column: str) -> np.ndarray:
  """One column of a run's `test_tasks.csv`, the last one if unnamed.

  Returns:
    `[num_seeds, num_tasks]`; a run of several seeds has a column for each.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it has no such column.
  """
  with path.open(newline="") as file:
    names, *rows = list(csv.reader(file))
  wanted = column or names[-1]
  places = [i for i, name in enumerate(names) if name == wanted]
  if not places:
    pattern = re.compile(rf"{re.escape(wanted)}_\d+")
    places = [i for i, name in enumerate(names) if pattern.fullmatch(name)]
  if not places:
    raise ValueError(f"{path} has no column {wanted!r}, it has {', '.join(names)}")
  return np.array([[float(row[place]) for row in rows] for place in places])


def write(
  plan: Plan, runs: dict[str, list[pathlib.Path]], facts: dict[str, Any], out: Any
) -> str:
  """Writes `comparison.md`, `.csv` and `.png`.

  Args:
    plan: the comparison.
    runs: per method the directories of its finished runs; without the baseline's
      there are no differences.
    facts: per method what else the table says, such as the meta-steps.
    out: the directory.

  Returns:
    The Markdown text.
  """
  column, scale, measure = plan.measure
  results = {
    name: np.concatenate(
      [read_column(path / "test_tasks.csv", column) for path in paths]
    )
    for name, paths in runs.items()
  }
  if plan.baseline in results:
    rows = compare(results, baseline=plan.baseline, seeds=plan.seeds)
    table = markdown(rows, measure=measure, scale=scale)
  else:
    rows = [
      Row(name, len(values), values.shape[1], interval(values), None)
      for name, values in results.items()
    ]
    table = _without_differences(markdown(rows, measure=measure, scale=scale))
    table += f"\n\nThe baseline {plan.baseline} has no results: no differences."
  text = table + "\n\n" + _facts(plan, facts)
  write_atomically(out / "comparison.md", text.encode())
  write_atomically(out / "comparison.csv", _csv(rows).encode())
  draw(rows, out / "comparison.png", measure=measure, scale=scale)
  return text


def draw(rows: list[Row], path: Any, *, measure: str, scale: float) -> None:
  """Draws every method's mean and its difference from the baseline.

  A thick bar is the interval over tasks, a thin one over seeds; a dot is the mean.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  compared = [row for row in rows if row.difference is not None]
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
  baseline = next(row.name for row in rows if row.difference is None)
  right.axvline(0, color="0.4", linewidth=1, linestyle=":")
  right.set_xlabel(f"difference from {baseline}, paired")
  if not compared:
    right.set_visible(False)
  for axes in (left, right):
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
  figure.savefig(path, dpi=150)


def _without_differences(table: str) -> str:
  """The method, its seeds, its mean and both half-widths of every line."""
  return "\n".join("|".join(line.split("|")[:6]) + "|" for line in table.split("\n"))


def _bar(axes: Any, place: float, value: Any, scale: float, color: str) -> None:
  mean = scale * value.mean
  for half, width, alpha in ((value.over_seeds, 1.5, 1.0), (value.over_tasks, 7, 0.35)):
    if not math.isnan(half):
      ends = (mean - scale * half, mean + scale * half)
      axes.plot(
        ends,
        (place, place),
        color=color,
        linewidth=width,
        alpha=alpha,
        solid_capstyle="butt",
      )
  axes.plot(mean, place, "o", color=color, markersize=5)


def _csv(rows: list[Row]) -> str:
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  names = ("mean", "over_tasks", "over_seeds")
  writer.writerow(
    ["method", "seeds", "tasks", *names, *(f"difference_{name}" for name in names)]
  )
  for row in rows:
    difference = row.difference or ("",) * 3
    writer.writerow([row.name, row.num_seeds, row.num_tasks, *row.value, *difference])
  return buffer.getvalue()


def _facts(plan: Plan, facts: dict[str, Any]) -> str:
  kind, amount = plan.budget
  tested = plan.settings(plan.baseline)
  lines = [
    f"Budget: {amount:g} {kind} per run. ± are half-widths of 95 % intervals: over "
    f"{tested.eval_tasks} test tasks (1.96 standard errors), and over the training "
    "seeds (Student's t). Differences are paired by task and by seed; bold where both "
    "intervals leave out zero.",
    "",
    "| method | meta-steps | tasks per step | example gradients per task | tasks/s |",
    "|---|---|---|---|---|",
  ]
  for name, fact in facts.items():
    cells = (
      name,
      f"{fact['num_steps']:,}",
      str(fact["num_tasks"]),
      f"{fact['gradients_per_task']:g}",
      f"{fact['tasks_per_second']:.1f}",
    )
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"
