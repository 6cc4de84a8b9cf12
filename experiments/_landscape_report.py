"""The output of `experiments.landscape`: arrays, tables, pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments._landscape_measures import Records
from experiments._landscape_runs import Run
from jsharp import analysis, options
from jsharp._terminal import tell
from jsharp.analysis import Plane
from jsharp.evaluation import report
from jsharp.training import RunDirectory

if TYPE_CHECKING:
  from experiments.landscape import Landscape

_LEAST_SHARE = 0.1  # If a plane explains less of a path, the path is not drawn.
_PRINCIPAL = ("first principal direction", "second principal direction")
_WHAT = {
  "meta": "Query loss after adaptation",
  "task": "Query loss without adaptation",
  "adapted": "Query loss around the adapted parameters",
}


def write(
  directory: RunDirectory,
  landscape: Landscape,
  plane: Plane,
  runs: Sequence[Run],
  drawn: Sequence[Run],
  records: Records,
) -> None:
  """Writes everything that follows from the records, and prints the table."""
  names = [run.name for run in drawn]
  paths = {name: records.path(number) for number, name in enumerate(names)}
  alphas, betas = np.stack(records.axes(plane, len(drawn)), axis=1)
  arrays = {
    name: np.stack([_grid(records, number, name) for number in range(len(drawn))])
    for name in ("loss", "accuracy")
  }
  contents: dict[str, Any] = {"runs": np.array(names), **arrays}
  is_shared = plane.is_random
  contents |= {"axis": alphas[0]} if is_shared else {"alphas": alphas, "betas": betas}
  for number, path in enumerate(paths.values()):
    if path:
      contents[f"path_{number}"] = np.array(path["coordinates"])
      contents[f"path_steps_{number}"] = np.array(path["steps"])
  buffer = io.BytesIO()
  np.savez(buffer, **contents)
  directory.write("landscape.npz", buffer.getvalue())
  written = ["landscape.npz"]
  losses = dict(zip(names, arrays["loss"], strict=True))
  words = _words(landscape, runs)
  if plane.is_line:
    analysis.plot_lines(losses, alphas[0], directory.path / "lines.png", **words)
    written += ["lines.png"]
  elif plane.joins_runs and plane.grid > 1:
    written += _draw_minima(directory, words, losses, (alphas[0], betas[0]), paths)
  elif plane.grid > 1:
    written += _draw_planes(directory, words, is_shared, losses, (alphas, betas), paths)
  for name, path in paths.items():
    if path and not plane.joins_runs:
      undrawn = "" if _is_drawn(path) else "; it is not drawn"
      tell(f"{name}: {_percent(path['share'])} of its path in the plane{undrawn}")
  if landscape.measure:
    kept = not plane.joins_runs  # The points of such a plane are not a path.
    _write_figures(directory, landscape, runs, records, paths=kept)
    written += ["sharpness.json", "sharpness.md"]
  tell(f"{directory.path}/: {', '.join(written)}")


def _grid(records: Records, number: int, name: str) -> np.ndarray:
  """A metric `[grid, grid]` of a plane, `[grid, num_tasks]` of a line."""
  rows = [row[name] for _, row in sorted(records.rows(number).items())]
  # A line is one row.
  return np.array(rows[0] if np.ndim(rows[0]) == 2 else rows, np.float64)


def _what(landscape: Landscape, runs: Sequence[Run]) -> str:
  """The loss of the landscape, and what it is averaged over."""
  unit = runs[0].unit
  loss = _WHAT[landscape.objective] if unit == "task" else "Cross-entropy"
  plural = "" if landscape.num_tasks == 1 else "s" if unit == "task" else "es"
  return f"{loss}, {landscape.num_tasks} {landscape.split} {unit}{plural}"


def _words(landscape: Landscape, runs: Sequence[Run]) -> dict[str, Any]:
  return {
    "title": _what(landscape, runs),
    "label": "cross-entropy (nats)",
    "ceiling": landscape.ceiling,
  }


def _draw_planes(
  directory: RunDirectory,
  words: dict[str, Any],
  is_shared: bool,
  losses: Mapping[str, np.ndarray],
  axes: tuple[np.ndarray, np.ndarray],
  paths: Mapping[str, Mapping[str, Any] | None],
) -> list[str]:
  """Plots planes: the same random plane for all runs, or each run's own."""
  headings = {name: _heading(name, path) for name, path in paths.items()}
  drawn = {
    headings[name]: np.array(path["coordinates"])
    for name, path in paths.items()
    if path and _is_drawn(path)
  }
  panels = {headings[name]: values for name, values in losses.items()}
  x, y = (dict(zip(panels, axis, strict=True)) for axis in axes)
  if is_shared:
    x, y = axes[0][0], axes[1][0]
  else:
    of = "its path" if len(losses) == 1 else "each run's own path"
    words["title"] += f"\nin the plane of {of}"
    words["directions"] = _PRINCIPAL
  contours, surfaces = (directory.path / f"{n}.png" for n in ("contours", "surfaces"))
  analysis.plot_surfaces(panels, x, y, surfaces, **words)
  if drawn:
    words["title"] += "; o start, + centre"
  if not is_shared:
    words["directions"] = tuple(f"{which} (distance)" for which in _PRINCIPAL)
  analysis.plot_contours(panels, x, y, contours, trajectories=drawn, **words)
  return [contours.name, surfaces.name]


def _draw_minima(
  directory: RunDirectory,
  words: dict[str, Any],
  losses: Mapping[str, np.ndarray],
  axes: tuple[np.ndarray, np.ndarray],
  paths: Mapping[str, Mapping[str, Any] | None],
) -> list[str]:
  """Plots the plane through three points, and their names."""
  ((first, others),) = paths.items()
  assert others is not None  # Computed first.
  places = zip(others["steps"], others["coordinates"], strict=True)
  marks = {first: np.zeros(2)} | {name: np.array(place) for name, place in places}
  heading = f"through {', '.join(marks)}"
  contours, surfaces = (directory.path / f"{n}.png" for n in ("contours", "surfaces"))
  words["directions"] = ("distance", "distance")
  panel = {heading: losses[first]}
  analysis.plot_surfaces(panel, *axes, surfaces, **words)
  analysis.plot_contours(panel, *axes, contours, marks=marks, **words)
  return [contours.name, surfaces.name]


def _heading(name: str, path: Mapping[str, Any] | None) -> str:
  """The heading of a panel: the run, and how much of its path is shown."""
  if not path or not _is_drawn(path):
    return name
  shown = _percent(path["share"])
  steps = path["steps"]
  return f"{name}\nsteps {steps[0]} to {steps[-1]}: {shown} of the path"


def _is_drawn(path: Mapping[str, Any]) -> bool:
  """Whether a plane explains enough of a path to draw it."""
  return path["share"] >= _LEAST_SHARE


def _percent(share: float) -> str:
  return f"{100 * share:.{3 if share > 0.01 else 2}g} %"


def _write_figures(
  directory: RunDirectory,
  landscape: Landscape,
  runs: Sequence[Run],
  records: Records,
  *,
  paths: bool,
) -> None:
  """Writes and prints figures per run, and rank correlations over runs."""
  figures = {run.name: records.figures(number) for number, run in enumerate(runs)}
  found = [records.path(number) if paths else None for number in range(len(runs))]
  shares = [path["share"] if path else None for path in found]
  correlations = analysis.rank_correlations(list(figures.values()), seed=landscape.seed)
  what = ("objective", "checkpoint", "split", "num_tasks", "gap_tasks", "seed")
  content = {
    **{name: options.to_json(landscape)[name] for name in what},
    "runs": [
      {"name": run.name, "run_dir": str(run.files.path), "path_share": share}
      | figures[run.name]
      for run, share in zip(runs, shares, strict=True)
    ],
    "rank_correlations": {
      measure: {outcome: found._asdict() for outcome, found in by_outcome.items()}
      for measure, by_outcome in correlations.items()
    },
    "environment": report.environment(),
  }
  directory.write_json("sharpness.json", report.jsonable(content))
  cells = ["not saved" if share is None else _percent(share) for share in shares]
  further = {"path within the plane": cells} if any(found) else {}
  table = analysis.sharpness_table(figures, correlations, further=further)
  gap = f"classes, {landscape.gap_tasks} tasks each"
  if runs[0].unit == "batch":
    gap = f"images, at most {landscape.gap_tasks} batches each"
  text = (
    f"{_what(landscape, runs)}, {landscape.checkpoint} checkpoint. Gap: training minus "
    f"test {gap}.\n\n{table}"
  )
  directory.write("sharpness.md", text.encode())
  tell(f"\n{text}")
