"""One start of `experiments.landscape`: what is missing is computed and recorded."""

import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import landscape_parts, landscape_plane, landscape_report, session
from experiments.landscape_runs import Run
from jsharp import analysis
from jsharp.evaluation.report import jsonable
from jsharp.training.run_directory import RunDirectory
from jsharp.training.stop_signal import StopRequested, StopSignal

Measure = Callable[[landscape_parts.Parts, StopSignal], dict[str, Any]]


def run(options: dict[str, Any], runs: Sequence[Run], *, benign: Sequence[str]) -> int:
  """Computes what is missing in `--out`, then writes pictures and tables.

  Args:
    options: the values of the flags.
    runs: what is compared.
    benign: names of the options that change no number.

  Returns:
    The exit code.
  """
  session.use_compilation_cache(options["compilation_cache_dir"])
  which = options["checkpoint"]
  identity = {name: value for name, value in options.items() if name not in benign}
  identity["runs"] = [
    {"name": run.name, "step": getattr(run, f"{which}_step"), "run": run.digest}
    for run in runs
  ]
  with (
    RunDirectory.open(options["out"], identity=identity) as directory,
    StopSignal() as stop,
  ):
    records = directory.read_metrics()
    try:
      _project_paths(runs, options, directory, records, stop)
      for number, one in enumerate(runs):
        for record in _missing(number, one, options, records, stop):
          directory.append_metrics(record)
          records.append(json.loads(json.dumps(record)))
    except StopRequested:
      print(
        f"landscape: interrupted, what was computed is saved in {options['out']}; go "
        f"on with the same command:\n  {shlex.join(sys.orig_argv)}",
        file=sys.stderr,
      )
      return stop.exit_code
    except (ValueError, OSError):
      if not records:  # Nothing holds on to these settings yet.
        (directory.path / "run.json").unlink()
      raise
    landscape_report.write(directory, options, runs, records)
  return 0


def _project_paths(
  runs: Sequence[Run],
  options: Mapping[str, Any],
  directory: RunDirectory,
  records: list[dict[str, Any]],
  stop: StopSignal,
) -> None:
  """Records where the kept paths lie: before all else, the axes depend on them."""
  for number, run in enumerate(runs):
    begun = any(record["run"] == number for record in records)
    if run.has_path and options["dimensions"] == "2" and not begun:
      stop.check()
      parts = landscape_parts.load(run, options)
      if found := landscape_plane.project(run, parts, options):
        record = {"run": number, "path": found}
        directory.append_metrics(record)
        records.append(json.loads(json.dumps(record)))


def _missing(
  number: int,
  run: Run,
  options: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
  stop: StopSignal,
) -> Iterator[dict[str, Any]]:
  """The records of one run that are not there yet, one after another."""
  ours = [record for record in records if record["run"] == number]
  rows = range(options["grid"] if options["dimensions"] == "2" else 1)
  rows_left = [row for row in rows if row not in {r.get("row") for r in ours}]
  measures = _measures(options) if options["measure"] else {}
  names_left = [
    name for name in measures if name not in {r.get("measure") for r in ours}
  ]
  if not rows_left and not names_left:
    return
  stop.check()
  print(f"{run.name}: loading {run.path}", flush=True)
  parts = landscape_parts.load(run, options)
  if rows_left:
    row_fn = _row_function(number, run, parts, options, records)
  started = time.monotonic()
  for done, row in enumerate(rows_left):
    stop.check()
    values = {name: _exact(x) for name, x in row_fn(row).items()}
    yield {"run": number, "row": row, **values}
    left = (time.monotonic() - started) / (done + 1) * (len(rows_left) - done - 1)
    print(f"{run.name}: row {row + 1} of {len(rows)}, {left:.0f} s left", flush=True)
  for name in names_left:
    stop.check()
    started = time.monotonic()
    values = measures[name](parts, stop)
    yield {"run": number, "measure": name, **jsonable(values)}
    shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
    print(
      f"{run.name}: {name}: {shown} ({time.monotonic() - started:.0f} s)", flush=True
    )


def _row_function(
  number: int,
  run: Run,
  parts: landscape_parts.Parts,
  options: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
) -> Callable[[int], dict[str, np.ndarray]]:
  """`row -> metrics`.

  On a plane a row is `[grid]`, means over tasks; on a line `[grid, num_tasks]`.
  """
  alphas, betas = landscape_plane.axes(options, records, number)
  first, second = landscape_plane.directions(run, parts, options)
  chunk = {"chunk": options["point_chunk"]}
  if options["plane"] == "path":
    landscape_plane.check_path(run, parts, records, number)

  def whole(row: int) -> dict[str, np.ndarray]:
    found = analysis.line(parts.metrics, parts.params, first, alphas, **chunk)
    return {name: np.asarray(x, np.float64) for name, x in found.items()}

  def one(row: int) -> dict[str, np.ndarray]:
    found = analysis.surface(
      parts.metrics, parts.params, first, second, alphas[row : row + 1], betas, **chunk
    )
    return {name: np.asarray(x, np.float64)[0].mean(-1) for name, x in found.items()}

  return whole if options["dimensions"] == "1" else one


def _exact(values: np.ndarray) -> Any:
  """Numbers as JSON holds them without loss; what is not finite as words."""
  return jsonable(values.tolist())


def _measures(options: Mapping[str, Any]) -> dict[str, Measure]:
  """Every figure of the table by its name."""
  key = jax.random.fold_in(jax.random.key(options["seed"]), 2)

  def eigenvalue(parts: landscape_parts.Parts, stop: StopSignal) -> dict[str, float]:
    found = analysis.largest_eigenvalues(
      parts.loss,
      parts.params,
      num_steps=options["hessian_steps"],
      key=key,
      between=stop.check,
    )
    return {"value": float(found.values[0]), "residual": float(found.residuals[0])}

  def trace(parts: landscape_parts.Parts, stop: StopSignal) -> dict[str, float]:
    found = analysis.trace(
      parts.loss,
      parts.params,
      num_samples=options["trace_samples"],
      key=key,
      between=stop.check,
    )
    return found._asdict()

  def worst(
    rho: float, adaptive: bool, parts: landscape_parts.Parts, stop: StopSignal
  ) -> dict[str, float]:
    found = analysis.worst_case_rise(
      parts.loss,
      parts.params,
      rho=rho,
      adaptive=adaptive,
      num_steps=options["ascent_steps"],
      key=key,
      between=stop.check,
    )
    return {"value": found.rise, "one_step": found.one_step}

  def average(
    rho: float, adaptive: bool, parts: landscape_parts.Parts, stop: StopSignal
  ) -> dict[str, float]:
    found = analysis.average_case_rise(
      parts.loss,
      parts.params,
      rho=rho,
      adaptive=adaptive,
      num_samples=options["average_samples"],
      key=key,
      between=stop.check,
    )
    return found._asdict()

  measures: dict[str, Measure] = {
    "gap": lambda parts, stop: parts.gap(parts.params, stop=stop),
    "largest eigenvalue": eigenvalue,
    "trace": trace,
  }
  for flag, name, measure, adaptive in (
    ("radii", "worst rise", worst, False),
    ("adaptive_radii", "worst rise, adaptive", worst, True),
    ("average_radii", "average rise", average, False),
    ("adaptive_average_radii", "average rise, adaptive", average, True),
  ):
    for radius in map(float, options[flag]):
      measures[f"{name}, rho {radius:g}"] = functools.partial(measure, radius, adaptive)
  return measures
