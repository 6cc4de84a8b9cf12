"""Projection of a trajectory of checkpoints onto the plane of a loss landscape."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jsharp import tree as trees
from jsharp._checks import check_count
from jsharp.types import Params


class Projection(NamedTuple):
  """Points of parameter space in the coordinates of a plane.

  Attributes:
    coordinates: `[num_points, 2]` float64, the nearest points of the plane.
    explained: `[num_points]`, the fraction of each point's squared distance from the
      centre that lies in the plane; 1 at the centre itself.
    share: the same fraction for the summed squared distances of all points.
  """

  coordinates: np.ndarray
  explained: np.ndarray
  share: float


class PrincipalDirections(NamedTuple):
  """The plane that fits a trajectory best.

  Attributes:
    first: the direction that explains most, of length 1, a pytree.
    second: the second direction.
    explained: `[2]`, the fraction of the summed squared distances along each.
  """

  first: Params
  second: Params
  explained: np.ndarray


def project(
  trajectory: Sequence[Params], params: Params, first: Params, second: Params
) -> Projection:
  """Projects checkpoints onto the plane of a landscape, by least squares.

  A plane of random directions explains almost nothing of a trajectory, so its
  projection says little: check `explained`, or use the plane of `principal_directions`.

  Args:
    trajectory: pytrees like `params`.
    params: the centre of the plane.
    first: a direction.
    second: another direction, not parallel to the first.

  Returns:
    The coordinates, and the fraction of the distances that they explain.

  Raises:
    ValueError: if the directions are parallel or one of them is zero.

  Example:
    >>> found = project([jnp.array([5.0, 2.0, 2.0])], jnp.array([2.0, 0.0, 2.0]),
    ...   jnp.array([1.0, 0.0, 0.0]), jnp.array([1.0, 1.0, 0.0]))
    >>> found.coordinates.round(6).tolist(), found.explained.round(6).tolist()
    ([[1.0, 2.0]], [1.0])
    >>> f"{found.share:.4f}"
    '1.0000'
  """
  centre, plane = _flat(params), np.stack([_flat(first), _flat(second)])
  lengths = np.linalg.norm(plane, axis=1, keepdims=True)
  units = plane / np.where(lengths == 0, 1, lengths)
  if np.linalg.matrix_rank(units, tol=1e-5) < 2:
    raise ValueError(
      "first and second do not span a plane: one of them is zero, or they are "
      "parallel; draw second with orthogonal_to=first"
    )
  away = np.stack([_flat(point) - centre for point in trajectory])
  coordinates = np.linalg.lstsq(plane.T, away.T, rcond=None)[0].T
  within = ((coordinates @ plane) ** 2).sum(1)
  whole = (away**2).sum(1)
  share = np.where(whole == 0, 1.0, within / np.where(whole == 0, 1, whole))
  total = float(within.sum() / whole.sum()) if whole.any() else 1.0
  return Projection(coordinates, share, total)


def principal_directions(
  trajectory: Sequence[Params], params: Params
) -> PrincipalDirections:
  """The two directions that explain most of a trajectory's distances from its end.

  They are not filter-normalised: coordinates are distances in parameter space. Their
  signs are chosen so that no coordinate of the trajectory's first point is positive.

  Args:
    trajectory: at least two pytrees like `params`.
    params: the point that the directions start from, usually the last one.

  Returns:
    Two orthogonal unit directions and the fractions that they explain.

  Raises:
    ValueError: if there are fewer than two points, or all lie on one line.

  Example:
    >>> points = [jnp.array([3.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])]
    >>> found = principal_directions(points, jnp.zeros(3))
    >>> abs(found.first).tolist(), found.explained.tolist()
    ([1.0, 0.0, 0.0], [0.9, 0.1])
  """
  check_count("len(trajectory)", len(trajectory), minimum=2)
  centre, unravel = ravel_pytree(trees.inexact(params)[0])
  away = np.stack([_flat(point) - _flat(params) for point in trajectory])
  _, sizes, rows = np.linalg.svd(away, full_matrices=False)
  # The effect of rounding in the points' own entries, not in this decomposition.
  rounding = float(jnp.finfo(centre.dtype).eps) * np.linalg.norm(_flat(params))
  if not sizes[1] > max(1e-9 * sizes[0], 10 * rounding):
    raise ValueError(
      "trajectory lies on one line through params, which does not span a plane; pass "
      "points off this line"
    )
  signed = (np.where(away[0] @ row > 0, -row, row) for row in rows[:2])
  first, second = (unravel(jnp.asarray(row, centre.dtype)) for row in signed)
  return PrincipalDirections(first, second, sizes[:2] ** 2 / (sizes**2).sum())


def square_axes(
  paths: Sequence[np.ndarray],
  num_points: int,
  *,
  extent: float = 1.0,
  margin: float = 0.12,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Axes of planes that contain whole trajectories, as squares of equal size.

  Args:
    paths: for each plane the coordinates `[length, 2]`, as in `Projection`.
    num_points: points along each axis; 1 is only the origin.
    extent: 1 for a square around the trajectory and the origin; other values scale the
      square about the origin.
    margin: the margin around the trajectory on every side, as a fraction of the longest
      side that any of the trajectories needs.

  Returns:
    For each plane the coordinates along its two directions, `[num_points]` each.

  Raises:
    ValueError: if `num_points` is not positive.

  Example:
    >>> axes = square_axes([np.array([[-2.0, 0.0]]), np.array([[0.0, 1.0]])], 2)
    >>> [[axis.tolist() for axis in plane] for plane in axes]
    [[[-2.24, 0.24], [-1.24, 1.24]], [[-1.24, 1.24], [-0.74, 1.74]]]
  """
  if check_count("num_points", num_points) == 1:
    return [(np.zeros(1), np.zeros(1)) for _ in paths]
  corners = [(np.minimum(path.min(0), 0), np.maximum(path.max(0), 0)) for path in paths]
  side = max(float((high - low).max()) for low, high in corners)
  half = (0.5 + margin) * side
  found = []
  for corner in corners:
    middle = np.mean(corner, axis=0)
    low, high = extent * (middle - half), extent * (middle + half)
    alphas, betas = np.linspace(low, high, num_points, axis=1)
    found.append((alphas, betas))
  return found


def _flat(tree: Params) -> np.ndarray:
  leaves = jax.tree.leaves(trees.inexact(tree)[0])
  return np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in leaves])
