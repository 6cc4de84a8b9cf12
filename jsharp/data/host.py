"""The tasks of `episodes.py`, gathered on the host.

For datasets that do not fit on the device. The indices come from the same
function, so the tasks are those of `sample_tasks`, bit by bit.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jsharp.data.dataset import Dataset
from jsharp.data.episodes import UNIT, TaskIndices, sample_indices, sample_many
from jsharp.types import Batch, Task


def gather_task(indices: TaskIndices, dataset: Dataset) -> Task:
  """Collects one task's images on the host, equal to `sample_task` bit by bit.

  Example:
    >>> images = np.zeros([5, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="val")
    >>> key = jax.random.key(0)
    >>> indices = sample_indices(key, dataset, way=2, shot=1, query_shot=4)
    >>> gather_task(indices, dataset).query.inputs.shape
    (8, 8, 8, 1)

  Args:
    indices: from `sample_indices`.
    dataset: the dataset, on the host.

  Returns:
    A task of numpy arrays.
  """
  rotations = np.asarray(indices.rotation)

  def gather(rows: Any) -> Batch:
    images = np.asarray(dataset.images)[np.asarray(rows)]
    turned = [
      np.rot90(a, r, axes=(1, 2)) for a, r in zip(images, rotations, strict=True)
    ]
    return Batch(
      inputs=np.concatenate(turned).astype(np.float32) * UNIT,
      targets=np.repeat(np.arange(len(images), dtype=np.int32), images.shape[1]),
    )

  return Task(support=gather(indices.support), query=gather(indices.query))


def sample_tasks_on_host(
  key: jax.Array,
  dataset: Dataset,
  *,
  num_tasks: int,
  way: int,
  shot: int,
  query_shot: int,
  first_task: int = 0,
) -> Task:
  """`sample_tasks` for a dataset on the host: the same tasks, as numpy arrays.

  Example:
    >>> images = np.zeros([5, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="val")
    >>> key = jax.random.key(0)
    >>> tasks = sample_tasks_on_host(
    ...   key, dataset, num_tasks=3, way=2, shot=1, query_shot=4
    ... )
    >>> tasks.query.inputs.shape
    (3, 8, 8, 8, 1)

  Args:
    key: a typed key, usually from `task_key`.
    dataset: the dataset, on the host.
    num_tasks: how many tasks.
    way: classes per task.
    shot: support images per class.
    query_shot: query images per class.
    first_task: number of the first task.

  Returns:
    A task of numpy arrays with a leading axis `[num_tasks]`.

  Raises:
    ValueError: see `check_task_shape`.
  """
  indices = _indices_of_many(
    key,
    dataclasses.replace(dataset, images=None),
    first_task,
    num_tasks=num_tasks,
    way=way,
    shot=shot,
    query_shot=query_shot,
  )
  rows = jax.tree.map(np.asarray, indices)
  tasks = [
    gather_task(jax.tree.map(lambda array, i=i: array[i], rows), dataset)
    for i in range(num_tasks)
  ]
  return jax.tree.map(lambda *arrays: np.stack(arrays), *tasks)


@functools.partial(jax.jit, static_argnames=("num_tasks", "way", "shot", "query_shot"))
def _indices_of_many(
  key: jax.Array,
  dataset: Dataset,
  first_task: int | jax.Array,
  *,
  num_tasks: int,
  way: int,
  shot: int,
  query_shot: int,
) -> TaskIndices:
  sample_one = functools.partial(
    sample_indices, dataset=dataset, way=way, shot=shot, query_shot=query_shot
  )
  return sample_many(sample_one, key, num_tasks=num_tasks, first_task=first_task)
