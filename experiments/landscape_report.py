"""What `experiments.landscape` leaves behind: arrays, tables, pictures."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import landscape_plane
from experiments.landscape_runs import Run
from jsharp import analysis
from jsharp._files import write_atomically
from jsharp.analysis import drawing
from jsharp.evaluation import report
from jsharp.training.run_directory import RunDirectory

_WHAT = {
  "meta": "Query loss after adaptation",
  "task": "Query loss without adaptation",
  "adapted": "Query loss around the adapted parameters",
}
_PRINCIPAL = ("first principal direction", "second principal direction")
_OUTCOMES = ("test_accuracy", "accuracy_gap", "loss_gap")


def write(
  directory: RunDirectory,
  options: Mapping[str, Any],
  runs: Sequence[Run],
  records: Sequence[Mapping[str, Any]],
) -> None:
  """Writes everything that follows from the records, and prints the table."""
  numbers = range(len(runs))
  grids = [_grids(options, records, number) for number in numbers]
  names = [run.name for run in runs]
  arrays = {
    name: np.stack([grid[name] for grid in grids]) for name in ("loss", "accuracy")
  }
  alphas, betas = np.stack(
    [landscape_plane.axes(options, records, number) for number in numbers], axis=1
  )
  is_own = options["plane"] == "path"
  contents: dict[str, Any] = {"runs": np.array(names), **arrays}
  contents |= {"alphas": alphas, "betas": betas} if is_own else {"axis": alphas[0]}
  paths = {run.name: landscape_plane.path_of(records, n) for n, run in enumerate(runs)}
  for number, path in enumerate(paths.values()):
    if path:
      contents[f"path_{number}"] = np.array(path["coordinates"])
      contents[f"path_steps_{number}"] = np.array(path["steps"])
  buffer = io.BytesIO()
  np.savez(buffer, **contents)
  write_atomically(directory.path / "landscape.npz", buffer.getvalue())
  written = ["landscape.npz"]
  losses = dict(zip(names, arrays["loss"], strict=True))
  if options["dimensions"] == "1":
    words = _words(options)
    drawing.plot_lines(losses, alphas[0], directory.path / "lines.png", **words)
    written += ["lines.png"]
  elif options["grid"] > 1:
    written += _draw_planes(directory, options, losses, alphas, betas, paths)
  for name, path in paths.items():
    if path:
      undrawn = "" if landscape_plane.is_drawn(path) else "; it is not drawn"
      print(f"{name}: {_percent(path['share'])} of its path in the plane{undrawn}")
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


def _words(options: Mapping[str, Any]) -> dict[str, Any]:
  number, split = options["num_tasks"], options["split"]
  plural = "" if number == 1 else "s"
  return {
    "title": f"{_WHAT[options['objective']]}, {number} {split} task{plural}",
    "label": "cross-entropy (nats)",
    "ceiling": options["ceiling"],
  }


def _draw_planes(
  directory: RunDirectory,
  options: Mapping[str, Any],
  losses: Mapping[str, np.ndarray],
  alphas: np.ndarray,
  betas: np.ndarray,
  paths: Mapping[str, Mapping[str, Any] | None],
) -> list[str]:
  words = _words(options)
  headings = {name: _heading(name, path) for name, path in paths.items()}
  drawn = {
    headings[name]: np.array(path["coordinates"])
    for name, path in paths.items()
    if path and landscape_plane.is_drawn(path)
  }
  if options["plane"] == "path":
    of = "its path" if len(losses) == 1 else "each run's own path"
    words["title"] += f"\nin the plane of {of}"
    words["directions"] = _PRINCIPAL
  panels = {headings[name]: values for name, values in losses.items()}
  x: drawing.Axis = dict(zip(panels, alphas, strict=True))
  y: drawing.Axis = dict(zip(panels, betas, strict=True))
  if options["plane"] == "random":
    x, y = alphas[0], betas[0]
  contours, surfaces = (directory.path / f"{n}.png" for n in ("contours", "surfaces"))
  drawing.plot_surfaces(panels, x, y, surfaces, **words)
  if drawn:
    words["title"] += "; o start, + centre"
  if options["plane"] == "path":
    words["directions"] = tuple(f"{which} (distance)" for which in _PRINCIPAL)
  drawing.plot_contours(panels, x, y, contours, trajectories=drawn, **words)
  return [contours.name, surfaces.name]


def _heading(name: str, path: Mapping[str, Any] | None) -> str:
  """What stands above a panel: the run, and what is to be seen of its path."""
  if not path:
    return name
  shown = _percent(path["share"])
  if not landscape_plane.is_drawn(path):
    return f"{name}\npath not drawn: {shown} of it in this plane"
  steps = path["steps"]
  return f"{name}\nsteps {steps[0]} to {steps[-1]}: {shown} of the path"


def _percent(share: float) -> str:
  return f"{100 * share:.{3 if share > 0.01 else 2}g} %"


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
    path = landscape_plane.path_of(records, number)
    share = path["share"] if path else None
    rows.append(
      {"name": run.name, "run_dir": str(run.path), "path_share": share, **figures}
    )
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
  shares = [row["path_share"] for row in rows]
  if any(share is not None for share in shares):
    cells = ["not kept" if share is None else _percent(share) for share in shares]
    lines.append("| path within the plane | " + " | ".join(cells) + " |")
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
