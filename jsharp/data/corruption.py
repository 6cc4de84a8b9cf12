"""Corrupted tasks: wrong labels, and distorted images.

Each function takes a sampler of one task and returns a sampler that draws the same
classes and images, then changes them by a separate key. So each corrupted task can be
compared with its clean counterpart.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.data.label_noise import corrupt
from jsharp.types import Task

SampleOne = Callable[..., Task]
"""`sample_one(key, ...) -> Task`; further arguments are passed on."""

Range = tuple[float, float]

_NOISE, _DISTORTION = 0x6E6F, 0x6469  # Streams of a task's key.


def with_label_noise(
  sample_one: SampleOne,
  *,
  way: int | None,
  support_rate: float = 0.0,
  query_rate: float = 0.0,
) -> SampleOne:
  """Replaces a fraction of a task's labels by other classes of the task.

  Exactly `round(rate * num_examples)` labels of a set are wrong, each replaced by a
  class drawn uniformly from the others: at 0.2, one of the five labels of a 5-way
  1-shot support set. The task's key decides which ones.

  Args:
    sample_one: `sample_one(key, ...) -> Task` with integer targets.
    way: classes per task; None if it varies, with labels from 0 to the largest one of
      the support set.
    support_rate: fraction of wrong labels in the support set, from 0 to 1.
    query_rate: fraction of wrong labels in the query set.

  Returns:
    A sampler of the same kind.

  Raises:
    ValueError: if a rate lies outside 0 to 1 or `way` is below 2; when called, if a
      rate above 0 rounds to no wrong label.

  Example:
    >>> from jsharp.types import Batch
    >>> clean = lambda key: Task(*[Batch(None, jnp.arange(5))] * 2)
    >>> task = with_label_noise(clean, way=5, support_rate=0.4)(jax.random.key(0))
    >>> int((task.support.targets != jnp.arange(5)).sum()), task.query.targets.tolist()
    (2, [0, 1, 2, 3, 4])
  """
  rates = {"support_rate": support_rate, "query_rate": query_rate}
  for name, rate in rates.items():
    if not 0 <= rate <= 1:
      raise ValueError(f"{name} must lie between 0 and 1, got {rate!r}; 0.2 is 20 %")
  if way is not None and way < 2:
    raise ValueError(f"way must be at least 2 for labels to be wrong, got {way}")

  def sample(key: jax.Array, *args: Any, **options: Any) -> Task:
    task = sample_one(key, *args, **options)
    classes = task.support.targets.max() + 1 if way is None else way
    keys = jax.random.split(jax.random.fold_in(key, _NOISE))
    noisy = []
    for batch, key, (name, rate) in zip(task, keys, rates.items(), strict=True):
      if rate > 0:
        wrong = corrupt(key, batch.targets, rate, classes, other_classes_only=True)
        _check_any_wrong(name, rate, wrong.shape[0])
        batch = batch._replace(targets=wrong)
      noisy.append(batch)
    return Task(*noisy)

  return sample


def _check_any_wrong(name: str, rate: float, num_examples: int) -> None:
  # Rounded as `corrupt` does it, halves to even.
  if np.round(np.float32(rate) * np.float32(num_examples)) < 1:
    smallest = f"{1 / num_examples:.3g}" if num_examples else "no rate"
    raise ValueError(
      f"{name}={rate!r} of {num_examples} examples rounds to no wrong label; use "
      f"{smallest} or more for at least one, or 0 for none"
    )


def affine(
  image: jax.Array, *, rotation: Any = 0.0, shear: Any = 0.0, scale: Any = 1.0
) -> jax.Array:
  """Rotates, shears and scales an image about its centre, in this order.

  Pixels are interpolated linearly; outside the image the border is repeated.

  Args:
    image: `[height, width, channels]`, float.
    rotation: counter-clockwise, in degrees.
    shear: columns to the right per row upwards; 0 for no shear.
    scale: the scale factor; 2 doubles the size and cuts off the margins.

  Returns:
    An array like `image`.

  Raises:
    ValueError: if `image` is not float or does not have three axes.

  Example:
    >>> image = jnp.arange(9.0).reshape(3, 3, 1)
    >>> turned = affine(image, rotation=90.0)
    >>> bool(jnp.allclose(turned, jnp.rot90(image), atol=1e-5))
    True
  """
  if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(
      "image must be float [height, width, channels], got "
      f"{image.dtype} {list(image.shape)}; divide uint8 images by 255, give a grey "
      "image a last axis, and use jax.vmap for several"
    )
  height, width, _ = image.shape
  dtype = image.dtype
  center = jnp.array([(height - 1) / 2, (width - 1) / 2], dtype)
  rows = jnp.arange(height, dtype=dtype)[:, None] - center[0]
  columns = jnp.arange(width, dtype=dtype)[None, :] - center[1]
  # The inverse map, from each output pixel to its source.
  rows, columns = jnp.broadcast_arrays(rows / scale, columns / scale)
  columns = columns + shear * rows
  angle = jnp.deg2rad(jnp.asarray(rotation, dtype))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  sources = [
    cos * rows + sin * columns + center[0],
    cos * columns - sin * rows + center[1],
  ]

  def one_channel(channel: jax.Array) -> jax.Array:
    return jax.scipy.ndimage.map_coordinates(channel, sources, order=1, mode="nearest")

  return jax.vmap(one_channel, in_axes=-1, out_axes=-1)(image)


def with_distortion(
  sample_one: SampleOne,
  *,
  rotation: Range = (0.0, 0.0),
  shear: Range = (0.0, 0.0),
  scale: Range = (1.0, 1.0),
) -> SampleOne:
  """Distorts all images of a task in the same way, drawn for each task.

  Beyond the ranges of training this tests whether a learner still learns from the
  support set when tasks differ from those in training. Finn and Levine (2018, arXiv
  1710.11622) compare gradient-based and black-box learners in this way.

  Args:
    sample_one: `sample_one(key, ...) -> Task` with images as inputs.
    rotation: range in degrees of each task's rotation, which is uniform; equal ends
      give a fixed rotation.
    shear: range of the shear, see `affine`.
    scale: range of the scale, see `affine`.

  Returns:
    A sampler of the same kind.

  Raises:
    ValueError: if a range is not finite or has `low` above `high`, or a scale is not
      positive.

  Example:
    >>> from jsharp.types import Batch
    >>> clean = lambda key: Task(*[Batch(jnp.eye(3)[None, :, :, None], None)] * 2)
    >>> turned = with_distortion(clean, rotation=(90.0, 90.0))(jax.random.key(0))
    >>> turned.query.inputs[0, :, :, 0].round(3).tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
  """
  ranges = {"rotation": rotation, "shear": shear, "scale": scale}
  for name, (low, high) in ranges.items():
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
      raise ValueError(f"{name} must be a finite (low, high), got {(low, high)}")
  if scale[0] <= 0:
    raise ValueError(f"scale must be positive, got {scale}; 1 leaves the size")

  def sample(key: jax.Array, *args: Any, **options: Any) -> Task:
    task = sample_one(key, *args, **options)
    keys = jax.random.split(jax.random.fold_in(key, _DISTORTION), len(ranges))
    chosen = {
      name: jax.random.uniform(one_key, (), jnp.float32, low, high)
      for one_key, (name, (low, high)) in zip(keys, ranges.items(), strict=True)
    }

    def bend(images: jax.Array) -> jax.Array:
      return jax.vmap(lambda image: affine(image, **chosen))(images)

    support, query = (batch._replace(inputs=bend(batch.inputs)) for batch in task)
    return Task(support, query)

  return sample
