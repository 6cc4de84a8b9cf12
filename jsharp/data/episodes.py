"""Few-shot tasks from a dataset, as a pure function of a key.

A task has `way` distinct classes in random order and, within each class,
`shot` support and `query_shot` query images, all distinct; every such choice is equally
likely. The tasks depend only on (seed, step):

    tasks = sample_tasks(task_key(seed, step), dataset, num_tasks=32, ...)

Task i depends only on the key and on i, so chunks, devices and hosts can each draw
their own part of the same tasks. A dataset in host memory (`Dataset.on_host`) gives the
same tasks.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.data.dataset import Dataset
from jsharp.data.host import HostImages
from jsharp.types import Batch, Task

Stream = Literal["train", "val", "test", "member"]
_STREAMS: tuple[Stream, ...] = ("train", "val", "test", "member")
_MAX_STREAMS = 4

# A factor instead of a division by 255, which XLA would compile to a multiplication:
# so NumPy on the host and every device give the same float32.
UNIT = np.float32(1 / 255)


class TaskIndices(NamedTuple):
  """The images of a task.

  Attributes:
    support: `[way, shot]` int32 rows of `Dataset.images`.
    query: `[way, query_shot]` int32 rows of `Dataset.images`.
    rotation: `[way]` int32 quarter turns, counter-clockwise.
  """

  support: Any
  query: Any
  rotation: Any


def task_key(
  seed: int, step: int | jax.Array, *, stream: Stream = "train"
) -> jax.Array:
  """The random key of a step's tasks.

  For one seed, all pairs (step, stream) have different keys: both are packed into one
  number, and `fold_in` with different numbers gives different keys.

  Example:
    >>> key = task_key(0, 7)
    >>> bool(key == task_key(0, 7)), bool(key == task_key(0, 7, stream="val"))
    (True, False)

  Args:
    seed: seed of the run.
    step: meta-step, in `[0, 2**30)`; may be traced.
    stream: the independent sequence of tasks; "member" is for other random choices of a
      step, such as the member in `jsharp.training.mixture`.

  Returns:
    A typed key.

  Raises:
    ValueError: if the stream is unknown.
  """
  if stream not in _STREAMS:
    raise ValueError(f"stream is {stream!r}; expected one of {', '.join(_STREAMS)}")
  # Room for four streams, so that adding one does not change existing runs.
  number = jnp.asarray(step, jnp.uint32) * jnp.uint32(_MAX_STREAMS)
  return jax.random.fold_in(
    jax.random.key(seed), number + jnp.uint32(_STREAMS.index(stream))
  )


def check_task_shape(dataset: Dataset, *, way: int, shot: int, query_shot: int) -> None:
  """Checks that the dataset is large enough for tasks of a shape.

  Example:
    >>> images = np.zeros([5, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="val")
    >>> check_task_shape(dataset, way=2, shot=1, query_shot=4)
    >>> check_task_shape(dataset, way=2, shot=1, query_shot=15)
    Traceback (most recent call last):
    ...
    ValueError: shot + query_shot is 1 + 15 = 16, but class 'a' of split 'val' has \
only 5 images: use at most 5 images per class, or leave that class out

  Raises:
    ValueError: if a number is below 1, or there are too few classes, or the smallest
      class has too few images; the message names that class with its count.
  """
  for name, value in (("way", way), ("shot", shot), ("query_shot", query_shot)):
    if value < 1:
      raise ValueError(f"{name} is {value}; it must be at least 1")
  if way > dataset.num_classes:
    raise ValueError(
      f"way is {way}, but split {dataset.split!r} has only {dataset.num_classes} "
      f"classes: use way <= {dataset.num_classes}"
    )
  name, count = dataset.smallest
  if shot + query_shot > count:
    raise ValueError(
      f"shot + query_shot is {shot} + {query_shot} = {shot + query_shot}, but class "
      f"{name!r} of split {dataset.split!r} has only {count} images: use at most "
      f"{count} images per class, or leave that class out"
    )


def draw_distinct(key: jax.Array, population: jax.Array | int, num: int) -> jax.Array:
  """Draws `num` distinct numbers below `population`, all orders equally likely.

  The i-th draw picks among the `population - i` numbers left (a Lehmer code);
  decoding it takes `num` steps on `num` numbers, however large the population.

  Example:
    >>> sorted(draw_distinct(jax.random.key(0), 4, 4).tolist())
    [0, 1, 2, 3]

  Args:
    key: a typed key.
    population: `[...]` int32, each at least `num`; may be traced.
    num: how many to draw from each population.

  Returns:
    `[..., num]` int32, independent for each population. If a population is smaller than
    `num`, all its numbers are drawn, and the remaining entries are meaningless.
  """
  population = jnp.asarray(population, jnp.int32)[..., None]
  shape = (*population.shape[:-1], num)
  position = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
  left = jnp.maximum(population - position, 1)
  draws = jax.random.randint(key, shape, 0, left, jnp.int32)

  def decode(i: jax.Array, draws: jax.Array) -> jax.Array:
    current = num - 2 - i
    passed = (position > current) & (draws >= draws[..., current, None])
    return draws + passed.astype(jnp.int32)

  return jax.lax.fori_loop(0, num - 1, decode, draws)


def sample_indices(
  key: jax.Array, dataset: Dataset, *, way: int, shot: int, query_shot: int
) -> TaskIndices:
  """Chooses the images of one task from offsets and counts, without reading images.

  Example:
    >>> images = np.zeros([5, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="val")
    >>> key = jax.random.key(0)
    >>> sample_indices(key, dataset, way=2, shot=1, query_shot=4).query.shape
    (2, 4)

  The arguments are those of `sample_task`.

  Raises:
    ValueError: see `check_task_shape`.
  """
  check_task_shape(dataset, way=way, shot=shot, query_shot=query_shot)
  class_key, image_key = jax.random.split(key)
  rotation, base = jnp.divmod(
    draw_distinct(class_key, dataset.num_classes, way),
    jnp.int32(dataset.num_base_classes),
  )
  counts = jnp.asarray(dataset.counts, jnp.int32)[base]
  within = draw_distinct(image_key, counts, shot + query_shot)
  rows = jnp.asarray(dataset.offsets, jnp.int32)[base][:, None] + within
  return TaskIndices(support=rows[:, :shot], query=rows[:, shot:], rotation=rotation)


def sample_task(
  key: jax.Array, dataset: Dataset, *, way: int, shot: int, query_shot: int
) -> Task:
  """Draws one task; a pure function, to be compiled with `dataset` as an argument.

  Example:
    >>> images = np.zeros([5, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="val")
    >>> task = sample_task(jax.random.key(0), dataset, way=2, shot=2, query_shot=3)
    >>> task.support.inputs.shape, task.support.targets.tolist()
    ((4, 8, 8, 1), [0, 0, 1, 1])

  Args:
    key: a typed key.
    dataset: where the images come from (`Dataset.on_device` or `on_host`).
    way: classes per task.
    shot: support images per class.
    query_shot: query images per class.

  Returns:
    A task with inputs `[way * shot, height, width, channels]` float32 in [0, 1]
    and targets `[way * shot]` int32 in `[0, way)`, class after class; the query
    set likewise with `query_shot`.

  Raises:
    ValueError: see `check_task_shape`.
  """
  indices = sample_indices(key, dataset, way=way, shot=shot, query_shot=query_shot)

  def gather(rows: jax.Array) -> Batch:
    return Batch(
      inputs=gathered(dataset, rows, indices.rotation),
      targets=jnp.repeat(jnp.arange(way, dtype=jnp.int32), rows.shape[1]),
    )

  return Task(support=gather(indices.support), query=gather(indices.query))


def gathered(dataset: Dataset, rows: jax.Array, rotation: jax.Array) -> jax.Array:
  """Gathers images as task inputs, rotating each group by its own number of turns.

  Args:
    dataset: where they come from.
    rows: `[num_groups, size]` int32 rows of `Dataset.images`.
    rotation: `[num_groups]` int32 quarter turns, counter-clockwise.

  Returns:
    `[num_groups * size, height, width, channels]` float32 in [0, 1], group after group.

  Example:
    >>> images = np.full([2, 8, 8, 1], 255, np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images}, split="val")
    >>> gathered(dataset, jnp.array([[1, 0, 1]]), jnp.array([0])).shape
    (3, 8, 8, 1)
  """
  on_host = isinstance(dataset.images, HostImages)
  images = (dataset.images if on_host else jnp.asarray(dataset.images))[rows]
  if dataset.num_rotations > 1:
    turned = jax.vmap(functools.partial(_turn, num_rotations=dataset.num_rotations))
    images = turned(images, rotation)
  inputs = images.astype(jnp.float32) * UNIT
  return inputs.reshape(-1, *dataset.image_shape)


def sample_many(
  sample_one: Callable[[jax.Array], Any],
  key: jax.Array,
  *,
  num_tasks: int,
  first_task: int | jax.Array = 0,
) -> Any:
  """Draws tasks `first_task`, ..., `first_task + num_tasks - 1` of a key.

  Example:
    >>> draw = lambda key: jax.random.normal(key)
    >>> five = sample_many(draw, jax.random.key(0), num_tasks=5)
    >>> last = sample_many(draw, jax.random.key(0), num_tasks=2, first_task=3)
    >>> bool((five[3:] == last).all())
    True

  Args:
    sample_one: a function from a key to a task.
    key: a typed key.
    num_tasks: how many tasks.
    first_task: number of the first one; may be traced.

  Returns:
    What `sample_one` returns, with a leading axis `[num_tasks]`.

  Raises:
    ValueError: if `num_tasks` is below 1.
  """
  if num_tasks < 1:
    raise ValueError(f"num_tasks is {num_tasks}; it must be at least 1")
  numbers = jnp.asarray(first_task, jnp.int32) + jnp.arange(num_tasks, dtype=jnp.int32)
  return jax.vmap(lambda number: sample_one(jax.random.fold_in(key, number)))(numbers)


def sample_tasks(
  key: jax.Array,
  dataset: Dataset,
  *,
  num_tasks: int,
  way: int,
  shot: int,
  query_shot: int,
  first_task: int | jax.Array = 0,
) -> Task:
  """Draws many tasks; task i is `sample_task` with the key `fold_in(key, i)`.

  Example:
    >>> images = np.zeros([5, 8, 8, 1], np.uint8)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="val")
    >>> tasks = sample_tasks(
    ...   task_key(0, 0), dataset, num_tasks=3, way=2, shot=1, query_shot=4
    ... )
    >>> tasks.query.inputs.shape
    (3, 8, 8, 8, 1)

  Args:
    key: a typed key, usually from `task_key`.
    dataset: where the images come from (`Dataset.on_device` or `on_host`).
    num_tasks: how many tasks.
    way: classes per task.
    shot: support images per class.
    query_shot: query images per class.
    first_task: number of the first task, for drawing them in parts.

  Returns:
    A task whose arrays have one more leading axis `[num_tasks]`.

  Raises:
    ValueError: see `check_task_shape`.
  """
  sample_one = functools.partial(
    sample_task, dataset=dataset, way=way, shot=shot, query_shot=query_shot
  )
  return sample_many(sample_one, key, num_tasks=num_tasks, first_task=first_task)


def _turn(images: jax.Array, rotation: jax.Array, *, num_rotations: int) -> jax.Array:
  """Rotates `[num, size, size, channels]` by `rotation` (traced) quarter turns."""
  turned = [jnp.rot90(images, r, axes=(1, 2)) for r in range(num_rotations)]
  return jax.lax.select_n(rotation, *turned)
