"""What `experiments.landscape` leaves behind: arrays, tables, pictures."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.landscape_runs import Run
from jsharp import analysis, report
from jsharp.analysis import drawing
from jsharp.files import write_atomically
from jsharp.run_directory import RunDirectory

_WHAT = {
  "meta": "Query loss after adaptation",
  "task": "Query loss without adaptation",
  "adapted": "Query loss around the adapted parameters",
}
_OUTCOMES = ("test_accuracy", "accuracy_gap", "loss_gap")


def axis(options: Mapping[str, Any]) -> np.ndarray:
  """The coordinates along each direction, `[grid]`."""
  extent, grid = options["extent"], options["grid"]
  return np.linspace(-extent, extent, grid) if grid > 1 else np.zeros(1)


def write(
  directory: RunDirectory,
  options: Mapping[str, Any],
  runs: Sequence[Run],
  records: Sequence[Mapping[str, Any]],
) -> None:
  """Writes everything that follows from the records, and prints the table."""
  coordinates = axis(options)
  grids = [_grids(options, records, number) for number in range(len(runs))]
  names = [run.name for run in runs]
  arrays = {
    name: np.stack([grid[name] for grid in grids]) for name in ("loss", "accuracy")
  }
  buffer = io.BytesIO()
  contents: dict[str, Any] = {"runs": np.array(names), "axis": coordinates, **arrays}
  np.savez(buffer, **contents)
  write_atomically(directory.path / "landscape.npz", buffer.getvalue())
  written = ["landscape.npz"]
  written += _draw(directory, options, dict(zip(names, arrays["loss"], strict=True)))
  if options["measure"]:
    found = _summary(options, runs, records)
    directory.write_json("sharpness.json", report.jsonable(found))
    text = markdown(found)
    write_atomically(directory.path / "sharpness.md", text.encode())
    written += ["sharpness.json", "sharpness.md"]
    print(f"\n{text}")
  print(f"{directory.path}/: {', '.join(written)}")


def _grids(
  options: Mapping[str, Any], records: Sequence[Mapping[str, Any]], number: int
) -> dict[str, np.ndarray]:
  """The metrics `[grid, grid]` of a plane, `[grid, num_tasks]` of a line."""
  rows = {r["row"]: r for r in records if r["run"] == number and "row" in r}
  ordered = [rows[row] for row in sorted(rows)]
  on_line = options["dimensions"] == "1"  # All of it is one row.
  return {
    name: np.array(
      ordered[0][name] if on_line else [row[name] for row in ordered], np.float64
    )
    for name in ("loss", "accuracy")
  }


def _draw(
  directory: RunDirectory, options: Mapping[str, Any], losses: dict[str, np.ndarray]
) -> list[str]:
  number, split = options["num_tasks"], options["split"]
  plural = "" if number == 1 else "s"
  words: dict[str, Any] = {
    "title": f"{_WHAT[options['objective']]}, {number} {split} task{plural}",
    "label": "cross-entropy (nats)",
    "ceiling": options["ceiling"],
  }
  coordinates = axis(options)
  if options["dimensions"] == "1":
    drawing.plot_lines(losses, coordinates, directory.path / "lines.png", **words)
    return ["lines.png"]
  if options["grid"] < 2:
    return []
  planes = (losses, coordinates, coordinates)
  drawing.plot_contours(*planes, directory.path / "contours.png", **words)
  drawing.plot_surfaces(*planes, directory.path / "surfaces.png", **words)
  return ["contours.png", "surfaces.png"]


def _summary(
  options: Mapping[str, Any],
  runs: Sequence[Run],
  records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """Figures per run, and over runs the rank correlations."""
  rows: list[dict[str, Any]] = []
  for number, run in enumerate(runs):
    figures = {
      record["measure"]: {
        key: float(value)
        for key, value in record.items()
        if key not in ("run", "measure")
      }
      for record in records
      if record["run"] == number and "measure" in record
    }
    rows.append({"name": run.name, "run_dir": str(run.path), **figures})
  measures = [name for name, value in rows[0].items() if isinstance(value, dict)]
  correlations: dict[str, Any] = {}
  if len(rows) >= 3:
    for measure in (name for name in measures if name != "gap"):
      for outcome in _OUTCOMES:
        x = np.array([row[measure]["value"] for row in rows])
        y = np.array([row["gap"][outcome] for row in rows])
        finite = np.isfinite(x) & np.isfinite(y)
        if finite.sum() >= 3:
          found = analysis.rank_correlation(x[finite], y[finite], seed=options["seed"])
          correlations.setdefault(measure, {})[outcome] = found._asdict()
  return {
    "objective": options["objective"],
    "checkpoint": options["checkpoint"],
    "split": options["split"],
    "num_tasks": options["num_tasks"],
    "gap_tasks": options["gap_tasks"],
    "seed": options["seed"],
    "runs": rows,
    "rank_correlations": correlations,
    "environment": report.environment(),
  }


def markdown(found: Mapping[str, Any]) -> str:
  """The figures as Markdown: one column per run, then the correlations."""
  rows = found["runs"]
  lines = [
    f"{_WHAT[found['objective']]}, {found['num_tasks']} {found['split']} tasks, "
    f"{found['checkpoint']} checkpoint. Gap: training minus test classes, "
    f"{found['gap_tasks']} tasks each.",
    "",
    "| | " + " | ".join(row["name"] for row in rows) + " |",
    "|---|" + "---|" * len(rows),
  ]
  for name in (name for name, value in rows[0].items() if isinstance(value, dict)):
    if name != "gap":
      cells = [_cell(row[name]) for row in rows]
      lines.append(f"| {name} | " + " | ".join(cells) + " |")
      continue
    for outcome in ("train_accuracy", "test_accuracy", "accuracy_gap"):
      cells = [f"{100 * row['gap'][outcome]:.2f} %" for row in rows]
      lines.append(f"| {outcome.replace('_', ' ')} | " + " | ".join(cells) + " |")
    for outcome in ("train_loss", "test_loss", "loss_gap"):
      cells = [f"{row['gap'][outcome]:.4f}" for row in rows]
      lines.append(f"| {outcome.replace('_', ' ')} | " + " | ".join(cells) + " |")
  if found["rank_correlations"]:
    lines += [
      "",
      f"Kendall's tau-b over {len(rows)} runs with its 95 % bootstrap interval:",
      "",
      "| | " + " | ".join(name.replace("_", " ") for name in _OUTCOMES) + " |",
      "|---|" + "---|" * len(_OUTCOMES),
    ]
    for measure, by_outcome in found["rank_correlations"].items():
      cells = [_interval(by_outcome[outcome]) for outcome in _OUTCOMES]
      lines.append(f"| {measure} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _cell(figure: Mapping[str, float]) -> str:
  error = figure.get("standard_error")
  return f"{figure['value']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _interval(found: Mapping[str, float]) -> str:
  return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
