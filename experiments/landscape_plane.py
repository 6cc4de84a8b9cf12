"""The plane that is drawn: its directions, its axes, the way of training in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.landscape_parts import Parts
from experiments.landscape_runs import Run
from jsharp import analysis
from jsharp.types import Params

_MARGIN = 0.12  # Of the longer side, on every side of a path.
_LEAST_SHARE = 0.1  # A path of which a plane shows less is not drawn on it.


def directions(
  run: Run, parts: Parts, options: Mapping[str, Any]
) -> tuple[Params, Params]:
  """The directions of the plane; a line has the first one.

  Raises:
    ValueError: if the kept path spans no plane.
  """
  if options["plane"] == "path":
    try:
      found = analysis.principal_directions(list(parts.path().values()), parts.params)
    except ValueError as error:
      raise ValueError(
        f"--plane=path: the path that {run.path} has kept spans no plane; train it "
        "anew with a smaller --eval_every, or take --plane=random"
      ) from error
    return found.first, found.second
  keys = [jax.random.fold_in(jax.random.key(options["seed"]), k) for k in range(2)]
  keep = {"keep_vectors": options["keep_vectors"]}
  first = analysis.direction(keys[0], parts.params, **keep)
  other = first if options["orthogonal"] else None
  return first, analysis.direction(keys[1], parts.params, orthogonal_to=other, **keep)


def project(
  run: Run, parts: Parts, options: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Where a run's path lies in its plane, ready for JSON.

  Returns:
    `steps` and `coordinates` of its points, and `share`: how much of their summed
    squared distances from the parameters that are drawn lies in the plane. None if
    all of its points are damaged and the plane is another one.

  Raises:
    ValueError: as for `directions`.
  """
  path = parts.path()
  if not path and options["plane"] != "path":
    return None
  seen = analysis.project(
    list(path.values()), parts.params, *directions(run, parts, options)
  )
  return {
    "steps": list(path),
    "coordinates": seen.coordinates.tolist(),
    "share": seen.share,
  }


def path_of(
  records: Sequence[Mapping[str, Any]], number: int
) -> Mapping[str, Any] | None:
  """What `project` found for a run, None where it kept no path."""
  found = [r["path"] for r in records if r["run"] == number and "path" in r]
  return found[0] if found else None


def is_drawn(path: Mapping[str, Any]) -> bool:
  """Whether a plane shows enough of a path for its picture to say something."""
  return path["share"] >= _LEAST_SHARE


def check_path(
  run: Run, parts: Parts, records: Sequence[Mapping[str, Any]], number: int
) -> None:
  """Raises ValueError if a path is no more what the rows so far were computed with."""
  path = path_of(records, number)
  if path is None or list(parts.path()) != path["steps"]:
    raise ValueError(
      f"--runs: the path that {run.path} has kept is no more the one that this picture "
      "was begun with; put its files back, or draw anew with another --out"
    )


def axes(
  options: Mapping[str, Any], records: Sequence[Mapping[str, Any]], number: int
) -> tuple[np.ndarray, np.ndarray]:
  """The coordinates along each direction for one run, `[grid]` each.

  In planes of paths: a square around the run's own path and the origin, of one size
  for all runs, times `extent` from the origin.
  """
  extent, grid = options["extent"], options["grid"]
  low, high = -np.ones(2), np.ones(2)
  if options["plane"] == "path":
    boxes = {
      r["run"]: _box(np.array(r["path"]["coordinates"])) for r in records if "path" in r
    }
    side = max(float((high - low).max()) for low, high in boxes.values())
    middle = np.mean(boxes[number], axis=0)
    half = (0.5 + _MARGIN) * side
    low, high = middle - half, middle + half
  if grid == 1:
    return np.zeros(1), np.zeros(1)
  alphas, betas = np.linspace(extent * low, extent * high, grid, axis=1)
  return alphas, betas


def _box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The corners of the box that holds `[num_points, 2]` and the origin."""
  return np.minimum(points.min(0), 0), np.maximum(points.max(0), 0)
