"""Labelled images for ordinary training: batches as a pure function of the step.

The counterpart of `episodes`: the datasets have the same form, but train and test have
the same classes, and a step's batch is the next part of an epoch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.data.dataset import Dataset
from jsharp.types import Batch

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""`augment(key, image) -> image`, one float image `[height, width, channels]`."""


class Examples(NamedTuple):
  """Images, their labels and how they are normalised.

  Attributes:
    images: `[num_examples, height, width, channels]` uint8.
    labels: `[num_examples]` int32, or `[num_examples, num_classes]` float32 class
      weights.
    mean: `[channels]` float32, subtracted from pixel values of 0 to 255.
    scale: `[channels]` float32, multiplied by the difference.
  """

  images: Any
  labels: Any
  mean: Any
  scale: Any


def from_dataset(
  dataset: Dataset, *, like: Examples | None = None, standardised: bool = True
) -> Examples:
  """Converts a dataset to examples, labelled by the numbers of their classes.

  Args:
    dataset: on the host, without rotations.
    like: the examples whose normalisation to use. None computes the mean and standard
      deviation of every channel over all pixels of `dataset`, the training set.
    standardised: if False, and without `like`, pixels are only scaled to [0, 1].

  Returns:
    The examples, on the host, one class after the other.

  Raises:
    ValueError: if the dataset has rotations, which would be additional classes.

  Example:
    >>> images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    >>> dataset = Dataset.from_class_arrays({"a": images, "b": images}, split="train")
    >>> examples = from_dataset(dataset)
    >>> examples.labels.tolist(), examples.mean.tolist()
    ([0, 0, 1, 1], [3.5])
  """
  if dataset.num_rotations > 1:
    raise ValueError(
      f"num_rotations is {dataset.num_rotations}; ordinary training needs 1"
    )
  images = np.asarray(dataset.images)
  counts = np.asarray(dataset.counts)
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  if like is not None:
    return Examples(images, labels, like.mean, like.scale)
  if not standardised:
    ones = np.ones(images.shape[-1], np.float32)
    return Examples(images, labels, 0 * ones, ones / 255)
  # From a histogram, so that sums are exact and no float copy is needed.
  values = np.arange(256.0)
  tables = [np.bincount(plane.ravel(), minlength=256) for plane in _planes(images)]
  means = np.array([table @ values / table.sum() for table in tables])
  squares = np.array([table @ values**2 / table.sum() for table in tables])
  deviations = np.sqrt(squares - means**2)
  scale = 1 / np.where(deviations == 0, 1, deviations)
  return Examples(images, labels, means.astype(np.float32), scale.astype(np.float32))


def _planes(images: np.ndarray) -> list[np.ndarray]:
  return [images[..., channel] for channel in range(images.shape[-1])]


def inputs_of(data: Examples, images: jax.Array) -> jax.Array:
  """Normalises uint8 images to float32.

  Example:
    >>> data = Examples(None, None, jnp.array([2.0]), jnp.array([0.5]))
    >>> inputs_of(data, jnp.array([[[[4]]]], jnp.uint8)).tolist()
    [[[[1.0]]]]
  """
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean, scale = data.mean.reshape(shape), data.scale.reshape(shape)
  return (images.astype(jnp.float32) - mean) * scale


def sample_batch(
  seed: int,
  step: Any,
  data: Examples,
  *,
  batch_size: int,
  distort: Augment | None = None,
  augment: Augment | None = None,
  mix: Callable[[jax.Array, Batch], Batch] | None = None,
) -> Batch:
  """The batch of a step, a pure function of (seed, step).

  Every epoch visits the examples in a new random order, without replacement; an
  incomplete batch at its end is dropped. Each example is augmented by a key that
  depends on (seed, step, example).

  Args:
    seed: seed of the run.
    step: steps taken so far; may be traced.
    data: on the device.
    batch_size: examples per batch.
    distort: `distort(key, image) -> image`, on uint8 images.
    augment: `augment(key, image) -> image`, on normalised images.
    mix: `mix(key, batch) -> batch`, applied last.

  Returns:
    Inputs `[batch_size, height, width, channels]` float32, targets `[batch_size]`.

  Raises:
    ValueError: if there are fewer examples than one batch.

  Example:
    >>> data = Examples(
    ...   jnp.zeros((5, 1, 1, 1), jnp.uint8), jnp.arange(5), jnp.zeros(1), jnp.ones(1))
    >>> epoch = [sample_batch(0, step, data, batch_size=2).targets for step in (0, 1)]
    >>> len(set(np.concatenate(epoch).tolist()))
    4
  """
  num_examples = data.labels.shape[0]
  per_epoch = steps_per_epoch(num_examples, batch_size)
  order_key, augment_key = jax.random.split(jax.random.key(seed))
  step = jnp.asarray(step, jnp.int32)
  epoch_key = jax.random.fold_in(order_key, step // per_epoch)
  order = jax.random.permutation(epoch_key, num_examples)
  start = step % per_epoch * batch_size
  chosen = jax.lax.dynamic_slice(order, (start,), (batch_size,))
  taken = data._replace(images=data.images[chosen], labels=data.labels[chosen])
  step_key = jax.random.fold_in(augment_key, step)
  return augmented(step_key, taken, chosen, distort=distort, augment=augment, mix=mix)


def augmented(
  key: jax.Array,
  data: Examples,
  chosen: jax.Array,
  *,
  distort: Augment | None = None,
  augment: Augment | None = None,
  mix: Callable[[jax.Array, Batch], Batch] | None = None,
) -> Batch:
  """Normalises and augments the examples of one batch.

  Args:
    key: the key of the step.
    data: only the examples of the batch.
    chosen: `[batch_size]` the numbers of the examples, which determine their keys.
    distort: as for `sample_batch`.
    augment: as for `sample_batch`.
    mix: as for `sample_batch`.

  Returns:
    As for `sample_batch`.

  Example:
    >>> data = Examples(
    ...   jnp.ones((2, 1, 1, 1), jnp.uint8), jnp.arange(2), jnp.zeros(1), jnp.ones(1))
    >>> augmented(jax.random.key(0), data, jnp.array([7, 3])).inputs.ravel().tolist()
    [1.0, 1.0]
  """
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(chosen)
  images = data.images
  if distort is not None:
    images = jax.vmap(distort)(jax.vmap(jax.random.fold_in)(keys, chosen), images)
  inputs = inputs_of(data, images)
  if augment is not None:
    inputs = jax.vmap(augment)(keys, inputs)
  batch = Batch(inputs, data.labels)
  # The numbers of examples are smaller than the number of this key.
  return batch if mix is None else mix(jax.random.fold_in(key, 2**31), batch)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
  """The number of complete batches per epoch.

  Raises:
    ValueError: if there is not even one.

  Example:
    >>> steps_per_epoch(50_000, 256)
    195
  """
  if not 1 <= batch_size <= num_examples:
    raise ValueError(
      f"batch_size is {batch_size}, but there are {num_examples} training examples: "
      f"use at least 1 and at most {num_examples}"
    )
  return num_examples // batch_size


def example_at(index: jax.Array, data: Examples) -> Batch:
  """One example without augmentation, for `jsharp.evaluation.tasks.evaluate`.

  Args:
    index: its number; numbers past the end give the last example.
    data: on the device.

  Returns:
    A `Batch` without the axis of examples.

  Example:
    >>> data = Examples(
    ...   jnp.zeros((5, 1, 1, 1), jnp.uint8), jnp.arange(5), jnp.zeros(1), jnp.ones(1))
    >>> int(example_at(3, data).targets)
    3
  """
  return Batch(inputs_of(data, data.images[index]), data.labels[index])


def take(data: Examples, chosen: np.ndarray) -> Examples:
  """Selects examples by number, in this order.

  Example:
    >>> data = Examples(np.zeros((3, 1, 1, 1)), np.arange(3), None, None)
    >>> take(data, np.array([2, 0])).labels.tolist()
    [2, 0]
  """
  return data._replace(images=data.images[chosen], labels=data.labels[chosen])


def hold_out(data: Examples, num_held: int, *, seed: int) -> tuple[Examples, Examples]:
  """Splits off random examples, for validation.

  Args:
    data: on the host.
    num_held: the number of examples to hold out.
    seed: decides which examples, independently of the machine.

  Returns:
    The remaining and the held-out examples, both in their order in `data`.

  Raises:
    ValueError: if one of the two would be empty.

  Example:
    >>> data = Examples(np.zeros((5, 1, 1, 1)), np.arange(5), None, None)
    >>> rest, held = hold_out(data, 2, seed=0)
    >>> rest.labels.tolist(), held.labels.tolist()
    ([1, 3, 4], [0, 2])
  """
  num_examples = len(data.labels)
  if not 0 < num_held < num_examples:
    raise ValueError(
      f"num_held is {num_held} of {num_examples} examples; hold out at least 1 and "
      f"at most {num_examples - 1}"
    )
  # RandomState's stream is frozen for all NumPy versions; Generator's is not.
  order = np.random.RandomState(seed).permutation(num_examples)
  rest, held = np.sort(order[num_held:]), np.sort(order[:num_held])
  return take(data, rest), take(data, held)


def in_batches(
  data: Examples, num_examples: int, batch_size: int, *, seed: int
) -> Batch:
  """Random examples without augmentation, in batches, for measurements.

  Args:
    data: on the host.
    num_examples: the largest number of examples; an incomplete batch is dropped.
    batch_size: examples per batch; fewer if there are fewer in all.
    seed: decides which examples, independently of the machine.

  Returns:
    Inputs `[num_batches, batch, height, width, channels]` float32, targets
    `[num_batches, batch]`.

  Example:
    >>> data = Examples(
    ...   np.zeros((5, 1, 1, 1), np.uint8), np.arange(5), np.zeros(1), np.ones(1))
    >>> in_batches(data, 5, 2, seed=0).targets.tolist()
    [[2, 0], [1, 3]]
  """
  num_examples = min(num_examples, len(data.labels))
  size = min(batch_size, num_examples)
  # RandomState's stream is frozen for all NumPy versions; Generator's is not.
  order = np.random.RandomState(seed).permutation(len(data.labels))
  chosen = take(data, order[: num_examples // size * size])
  images: Any = np.asarray(chosen.images)
  batch = Batch(inputs_of(chosen, images), chosen.labels)
  return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), batch)
