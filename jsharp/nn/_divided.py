"""Batches that devices share: the axis of their mesh, and maps of divided examples."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

TASK_AXIS = "tasks"
"""The mesh axis along which tasks, or the examples of a batch, are divided."""


def undivided_mesh() -> AbstractMesh | None:
  """The mesh of the current trace, if the compiler divides work along its axis."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if TASK_AXIS in mesh.auto_axes and mesh.shape[TASK_AXIS] > 1 else None


def over_examples(
  function: Callable[[Any, Any], Any],
  mesh: AbstractMesh,
  *,
  axes: tuple[int | None, int | None, int | None],
) -> Callable[[Any, Any], Any]:
  """A bilinear function of two arrays, computed by each device for its own examples.

  The compiler divides an operation along any axis. A loop over parts of the examples,
  as in most forms of a convolution, would then gather all examples on all devices.

  Args:
    function: linear in either argument.
    mesh: from `undivided_mesh`.
    axes: the axis of the examples in both arguments and in the result; None for an
      array without such an axis. A result without one is the sum over the examples.
  """

  def spec(axis: int | None) -> P:
    return P() if axis is None else P(*[None] * axis, TASK_AXIS)

  def part(a: Any, b: Any) -> Any:
    result = function(a, b)
    return jax.lax.psum(result, TASK_AXIS) if axes[2] is None else result

  divided: Callable[[Any, Any], Any] = jax.shard_map(
    part,
    mesh=mesh,
    in_specs=(spec(axes[0]), spec(axes[1])),
    out_specs=spec(axes[2]),
    check_vma=False,
  )
  return divided
