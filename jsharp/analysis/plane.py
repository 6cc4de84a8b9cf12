"""The line or plane through the parameters of networks on which a loss is drawn."""

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
  """Where a loss is drawn: directions through the parameters, and points on them.

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
    "random: the same random directions for all runs, each scaled to its own filters; "
    "path: for each run the two directions that explain most of its own way through "
    "training, which runs with --keep_path have kept; minima: one plane through the "
    "parameters of three runs, or of two that have the same seed and their common "
    "start. The units of path and minima are distances.",
  )
  grid: int = option(
    25,
    "Points along each axis; an odd number has the centre.",
    check=at_least(1, "give a number of at least 1."),
  )
  extent: float = option(
    1.0,
    "The axes go from minus to plus this; at 1 a filter is moved by its own length. "
    "With path and minima a factor: at 1 the whole path or all points lie inside, less "
    "comes closer to the drawn parameters.",
    check=positive("usual extents are 0.2 to 1."),
  )
  orthogonal: bool = option(
    False,
    "Make the second direction exactly orthogonal to the first one, filter by filter; "
    "random ones are nearly so.",
  )
  keep_vectors: bool = option(
    False, "Move biases and the parameters of normalisation too."
  )
  point_chunk: int = option(
    1,
    "Points computed at once: memory against speed on an accelerator.",
    check=at_least(1, "give a number of at least 1."),
    role=Role.MACHINE,
    identity=True,
  )

  def complete(self) -> None:
    """Refuses options that say nothing of a plane through points."""
    if self.is_random:
      return
    if self.is_line:
      raise ValueError(f"--plane={self.plane} is a plane, no line; take --dimensions=2")
    random_only = {"orthogonal": self.orthogonal, "keep_vectors": self.keep_vectors}
    for name in (name for name, is_given in random_only.items() if is_given):
      raise ValueError(
        f"--{name} is about random directions, and those of --plane={self.plane} are "
        f"orthogonal and move all parameters; leave --{name} out"
      )

  @property
  def is_line(self) -> bool:
    """Whether it has one direction alone."""
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
    """Rows of points; a line is one row."""
    return 1 if self.is_line else self.grid

  def directions(
    self, key: jax.Array, params: Params, path: Sequence[Params] = ()
  ) -> Directions:
    """The two directions; a line has the first one.

    Args:
      key: of random directions.
      params: the centre.
      path: what was kept of the training, or the other points of the plane; pytrees
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
    """Where a path lies in it.

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
      num_runs: how many runs are drawn.
      paths: for a plane of paths, of every run the coordinates `[num_points, 2]`.
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
    """What a loss returns on one row of points; rows compile once.

    Args:
      number: of the row: the point on the first axis. A line has row 0 alone.
      loss: any pure function of the parameters that returns a pytree of arrays.
      params: the centre.
      directions: from `directions`.
      axes: from `axes`, of one run.

    Returns:
      The pytree with a leading axis `[grid]`.
    """
    first, second = directions
    alphas, betas = axes
    if self.is_line:
      return line(loss, params, first, alphas, chunk=self.point_chunk)
    some = alphas[number : number + 1]
    found = surface(loss, params, first, second, some, betas, chunk=self.point_chunk)
    return jax.tree.map(lambda x: x[0], found)
