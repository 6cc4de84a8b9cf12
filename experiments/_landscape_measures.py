"""The computations for each run: its path, the points of its picture, its figures."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments import _landscape_runs
from experiments._landscape_runs import Measured, Run
from jsharp._terminal import tell
from jsharp.analysis import Measures, Plane
from jsharp.evaluation.report import jsonable
from jsharp.training import RunDirectory, StopSignal

if TYPE_CHECKING:
  from experiments.landscape import Landscape


class Records:
  """The results computed so far for each run, as lines of metrics.jsonl.

  Args:
    directory: the run directory that holds them.
  """

  def __init__(self, directory: RunDirectory):
    self._directory = directory
    self._all = directory.read_metrics()

  def is_empty(self) -> bool:
    """Whether nothing was computed yet."""
    return not self._all

  def add(self, number: int, values: Mapping[str, Any]) -> None:
    """Saves results of a run; non-finite numbers are written as strings."""
    record = {"run": number, **jsonable(values)}
    self._directory.append_metrics(record)
    self._all.append(json.loads(json.dumps(record)))

  def of(self, number: int) -> list[dict[str, Any]]:
    """All records of a run."""
    return [record for record in self._all if record.get("run") == number]

  def path(self, number: int) -> Mapping[str, Any] | None:
    """A run's path in its plane; None if it saved no path.

    `steps` and `coordinates` of its points, and `share`: the fraction of their summed
    squared distances from the drawn parameters that lies in the plane.
    """
    found = [record["path"] for record in self.of(number) if "path" in record]
    return found[0] if found else None

  def rows(self, number: int) -> dict[int, Mapping[str, Any]]:
    """The rows of a run's picture: for a plane metrics `[grid]`, means over tasks.

    A line is one row, `[grid, num_tasks]`.
    """
    return {record["row"]: record for record in self.of(number) if "row" in record}

  def figures(self, number: int) -> dict[str, dict[str, float]]:
    """The sharpness figures of a run, and its gap."""
    return {
      record["measure"]: {
        name: float(value)
        for name, value in record.items()
        if name not in ("run", "measure")
      }
      for record in self.of(number)
      if "measure" in record
    }

  def axes(self, plane: Plane, num_runs: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The coordinates along each direction for every run, `[grid]` each."""
    paths = [self.path(number) for number in range(num_runs)]
    return plane.axes(
      num_runs, [np.array(path["coordinates"]) for path in paths if path]
    )


@dataclasses.dataclass(frozen=True)
class Work:
  """The computations to do, and their progress."""

  landscape: Landscape
  plane: Plane
  measures: Measures
  runs: Sequence[Run]
  records: Records
  stop: StopSignal

  @property
  def drawn(self) -> Sequence[Run]:
    """The runs with a panel; for a plane through several runs only the first one."""
    return self.runs[:1] if self.plane.joins_runs else self.runs

  def complete(self) -> None:
    """Computes what is missing; results so far survive an interruption."""
    for number, run in enumerate(self.drawn):  # First, since the axes depend on it.
      has_points = run.files.has_path or self.plane.joins_runs
      is_wanted = has_points and not self.plane.is_line
      if is_wanted and not self.records.of(number):
        self.stop.check()
        if found := self._projected(run):
          self.records.add(number, {"path": found})
    for number in range(len(self.runs)):
      for values in self._missing(number):
        self.records.add(number, values)

  def _projected(self, run: Run) -> dict[str, Any] | None:
    """The path as returned by `Records.path`.

    None if all points of the path are damaged and the plane does not need them.
    """
    measured = _landscape_runs.load(run, self.landscape)
    path = self._points(measured)
    if not path and self.plane.is_random:
      return None
    key = jax.random.key(self.landscape.seed)
    try:
      seen = self.plane.project(key, measured.params, list(path.values()))
    except ValueError as error:
      if self.plane.is_random:
        raise
      if self.plane.joins_runs:
        raise ValueError(
          "--plane=minima: the parameters of these runs lie on one line; use others"
        ) from error
      raise ValueError(
        f"--plane=path: the path saved in {run.files.path} does not span a plane; "
        "train again with a smaller --eval_every, or use --plane=random"
      ) from error
    coordinates = seen.coordinates.tolist()
    return {"steps": list(path), "coordinates": coordinates, "share": seen.share}

  def _points(self, measured: Measured) -> dict[Any, Any]:
    """The points of the run's plane: its path, or the plane's other two points."""
    if not self.plane.joins_runs:
      return measured.path()
    load, others = _landscape_runs.load, self.runs[1:]
    found = {run.name: load(run, self.landscape).params for run in others}
    return found if len(found) == 2 else found | {"start": measured.start()}

  def _missing(self, number: int) -> Iterator[dict[str, Any]]:
    """The missing records of one run, one after another."""
    run, records, num_rows = self.runs[number], self.records, self.plane.num_rows
    rows = [row for row in range(num_rows) if row not in records.rows(number)]
    rows = rows if run in self.drawn else []
    wanted = self._figures() if self.landscape.measure else {}
    names = [name for name in wanted if name not in records.figures(number)]
    if not rows and not names:
      return
    self.stop.check()
    tell(f"{run.name}: loading {run.files.path}")
    measured = _landscape_runs.load(run, self.landscape)
    if rows:
      row_fn = self._row_function(number, measured)
    started = time.monotonic()
    for count, row in enumerate(rows, start=1):
      self.stop.check()
      yield {"row": row, **{name: x.tolist() for name, x in row_fn(row).items()}}
      seconds = (time.monotonic() - started) / count * (len(rows) - count)
      shown = f"row {row + 1} of {num_rows}, {seconds:.0f} s left"
      tell(f"{run.name}: {shown}")
    for name in names:
      self.stop.check()
      started = time.monotonic()
      values = wanted[name](measured)
      yield {"measure": name, **values}
      shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
      seconds = time.monotonic() - started
      tell(f"{run.name}: {name}: {shown} ({seconds:.0f} s)")

  def _row_function(
    self, number: int, measured: Measured
  ) -> Callable[[int], dict[str, np.ndarray]]:
    """`row -> metrics`, as `Records.rows` returns them."""
    points = {} if self.plane.is_random else self._points(measured)
    path = self.records.path(number)
    if not self.plane.is_random and (path is None or list(points) != path["steps"]):
      raise ValueError(
        f"--runs: the path saved in {self.runs[number].files.path} is not the one that "
        "this picture was started with; restore its files, or start over with another "
        "--out"
      )
    axes = self.records.axes(self.plane, len(self.drawn))[number]
    key = jax.random.key(self.landscape.seed)
    directions = self.plane.directions(key, measured.params, list(points.values()))

    metrics = measured.elsewhere if self.plane.joins_runs else measured.metrics

    def row_fn(row: int) -> dict[str, np.ndarray]:
      found = self.plane.row(row, metrics, measured.params, directions, axes)
      values = {name: np.asarray(x, np.float64) for name, x in found.items()}
      if self.plane.is_line:
        return values
      return {name: each.mean(-1) for name, each in values.items()}

    return row_fn

  def _figures(self) -> dict[str, Callable[[Measured], dict[str, float]]]:
    """The figures of the table by name."""
    key = jax.random.fold_in(jax.random.key(self.landscape.seed), 2)
    figures: dict[str, Any] = {"gap": lambda measured: measured.gap(self.stop)}
    for name, measure in self.measures.by_name(key).items():
      figures[name] = lambda measured, measure=measure: measure(
        measured.loss, measured.params, self.stop.check
      )
    return figures
