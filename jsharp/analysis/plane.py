"""The line or plane in parameter space on which a loss is drawn."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from jsharp.analysis.landscape import direction, line, surface
from jsharp.analysis.trajectory import (
  Projection,
  principal_directions,
  project,
  square_axes,
)
from jsharp.options import Options, Role, at_least, option, positive
from jsharp.types import Params

Directions = tuple[Params, Params]
Axes = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane(Options):
  """Options for the line or plane on which a loss is drawn.

  Example:
    >>> plane = Plane(grid=3, extent=0.5)
    >>> params = {"kernel": jax.numpy.ones((4, 4))}
    >>> directions = plane.directions(jax.random.key(0), params)
    >>> (axes,) = plane.axes(1)
    >>> axes[0].tolist()
    [-0.5, 0.0, 0.5]
    >>> loss = lambda params: (params["kernel"] ** 2).sum()
    >>> plane.row(1, loss, params, directions, axes).shape
    (3,)
  """

  role: ClassVar[Role] = Role.TESTING

  dimensions: Literal["1", "2"] = option(
    "2", "2: a plane, contours and surfaces; 1: a line, with a band over tasks."
  )
  plane: Literal["random", "path", "minima"] = option(
    "random",
    "random: the same random directions for all runs, scaled to each run's filters; "
    "path: for each run the two directions that explain most of its training "
    "trajectory, as saved by --keep_path; minima: one plane through the parameters of "
    "three runs, or of two runs with the same seed and their common initialisation. "
    "The units of path and minima are distances in parameter space.",
  )
  grid: int = option(
    25,
    "Points along each axis; an odd number includes the centre.",
    check=at_least(1, "give a number of at least 1."),
  )
  extent: float = option(
    1.0,
    "The axes range from minus to plus this value; at 1 a filter is moved by its own "
    "norm. With path and minima a factor: at 1 the plot contains the whole path or all "
    "points, smaller values zoom in on the drawn parameters.",
    check=positive("usual extents are 0.2 to 1."),
  )
  orthogonal: bool = option(
    False,
    "Make the second direction exactly orthogonal to the first, filter by filter; "
    "random directions are nearly orthogonal.",
  )
  keep_vectors: bool = option(
    False, "Move biases and the parameters of normalisation too."
  )
  point_chunk: int = option(
    1,
    "Points computed at a time: more are faster on an accelerator and need more "
    "memory.",
    check=at_least(1, "give a number of at least 1."),
    role=Role.MACHINE,
    identity=True,
  )

  def complete(self) -> None:
    """Rejects options that do not apply to a plane through points."""
    if self.is_random:
      return
    if self.is_line:
      raise ValueError(
        f"--plane={self.plane} is a plane, not a line; use --dimensions=2"
      )
    random_only = {"orthogonal": self.orthogonal, "keep_vectors": self.keep_vectors}
    for name in (name for name, is_given in random_only.items() if is_given):
      raise ValueError(
        f"--{name} applies to random directions only; those of --plane={self.plane} "
        f"are orthogonal and move all parameters; leave --{name} out"
      )

  @property
  def is_line(self) -> bool:
    """Whether it has only one direction."""
    return self.dimensions == "1"

  @property
  def is_random(self) -> bool:
    """Whether its directions are random."""
    return self.plane == "random"

  @property
  def joins_runs(self) -> bool:
    """Whether it is one plane through several runs."""
    return self.plane == "minima"

  @property
  def num_rows(self) -> int:
    """The number of rows of points; a line is one row."""
    return 1 if self.is_line else self.grid

  def directions(
    self, key: jax.Array, params: Params, path: Sequence[Params] = ()
  ) -> Directions:
    """The two directions; a line uses only the first.

    Args:
      key: the key of random directions.
      params: the centre.
      path: the saved training trajectory, or the other points of the plane; pytrees
        like `params`.

    Raises:
      ValueError: see `direction` and `principal_directions`.
    """
    if not self.is_random:
      found = principal_directions(path, params)
      return found.first, found.second
    keys = [jax.random.fold_in(key, number) for number in range(2)]
    first = direction(keys[0], params, keep_vectors=self.keep_vectors)
    second = direction(
      keys[1],
      params,
      orthogonal_to=first if self.orthogonal else None,
      keep_vectors=self.keep_vectors,
    )
    return first, second

  def project(
    self, key: jax.Array, params: Params, path: Sequence[Params]
  ) -> Projection:
    """Projects a path onto the plane.

    Args:
      key: as for `directions`.
      params: the centre.
      path: pytrees like `params`.

    Raises:
      ValueError: as for `directions`.
    """
    return project(path, params, *self.directions(key, params, path))

  def axes(self, num_runs: int, paths: Sequence[np.ndarray] = ()) -> list[Axes]:
    """The coordinates along each direction for every run, `[grid]` each.

    Args:
      num_runs: the number of runs that are drawn.
      paths: for --plane=path, the coordinates `[num_points, 2]` of every run's path.
    """
    if not self.is_random:
      return square_axes(paths, self.grid, extent=self.extent)
    extent = self.extent if self.grid > 1 else 0.0
    axis = np.linspace(-extent, extent, self.grid)
    return [(axis, axis)] * num_runs

  def row(
    self,
    number: int,
    loss: Callable[[Params], Any],
    params: Params,
    directions: Directions,
    axes: Axes,
  ) -> Any:
    """Evaluates a loss on one row of points; all rows share one compilation.

    Args:
      number: the row's number, its index on the first axis. A line has only row 0.
      loss: any pure function of the parameters that returns a pytree of arrays.
      params: the centre.
      directions: from `directions`.
      axes: from `axes`, of one run.

    Returns:
      The pytree that `loss` returns, with a leading axis `[grid]`.
    """
    first, second = directions
    alphas, betas = axes
    if self.is_line:
      return line(loss, params, first, alphas, chunk=self.point_chunk)
    some = alphas[number : number + 1]
    found = surface(loss, params, first, second, some, betas, chunk=self.point_chunk)
    return jax.tree.map(lambda x: x[0], found)
