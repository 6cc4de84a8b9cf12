"""Random augmentation of one image `[height, width, channels]`; use `vmap` for several.

Pixels from outside the image, and those that are cut out, are zero. For images that
were normalised before (`jsharp.data.examples`) this is the mean colour.
"""

import jax
import jax.numpy as jnp

from jsharp._labels import one_hot
from jsharp.types import Batch


def random_crop(key: jax.Array, image: jax.Array, *, padding: int = 4) -> jax.Array:
  """Pads the image with zeros and takes a random crop of the original size.

  Args:
    key: decides the shift; all `(2 * padding + 1)**2` shifts are equally likely.
    image: `[height, width, channels]`.
    padding: rows and columns of zeros on each side.

  Returns:
    An array like `image`.

  Example:
    >>> image = jnp.ones((32, 32, 3))
    >>> random_crop(jax.random.key(0), image).shape
    (32, 32, 3)
  """
  around = ((padding, padding), (padding, padding), (0, 0))
  row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  start = (row, column, jnp.zeros_like(row))
  return jax.lax.dynamic_slice(jnp.pad(image, around), start, image.shape)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
  """Mirrors left and right with probability one half.

  Args:
    key: decides whether the image is mirrored.
    image: `[height, width, channels]`.

  Returns:
    An array like `image`.

  Example:
    >>> image = jnp.array([[[1.0], [2.0]]])
    >>> random_flip(jax.random.key(1), image)[0, :, 0].tolist()
    [2.0, 1.0]
  """
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def cutout(key: jax.Array, image: jax.Array, *, size: int = 16) -> jax.Array:
  """Cutout: zeroes a square (DeVries and Taylor 2017, arXiv 1708.04552).

  The centre is uniform over the pixels, so the square may extend beyond the border and
  zero fewer than `size**2` pixels, as in the paper.

  Args:
    key: decides the centre.
    image: `[height, width, channels]`.
    size: side of the square in pixels; the paper uses 16 for CIFAR-10.

  Returns:
    An array like `image`.

  Example:
    >>> cut = cutout(jax.random.key(0), jnp.ones((8, 8, 1)), size=4)
    >>> 4 <= int((cut == 0).sum()) <= 16
    True
  """
  height, width, _ = image.shape
  inside = []
  for side, one_key in zip((height, width), jax.random.split(key), strict=True):
    first = jax.random.randint(one_key, (), 0, side) - size // 2
    position = jnp.arange(side) - first
    inside.append((position >= 0) & (position < size))
  square = inside[0][:, None, None] & inside[1][None, :, None]
  return jnp.where(square, jnp.zeros_like(image), image)


def standard(
  key: jax.Array,
  image: jax.Array,
  *,
  padding: int = 4,
  flip: bool = True,
  cutout_size: int = 0,
) -> jax.Array:
  """The standard augmentation on CIFAR: crop, flip and, optionally, cutout.

  Args:
    key: a random key.
    image: `[height, width, channels]`.
    padding: as for `random_crop`.
    flip: whether to mirror at random; not for letters and digits.
    cutout_size: as for `cutout`; 0 for none.

  Returns:
    An array like `image`.

  Example:
    >>> standard(jax.random.key(0), jnp.ones((32, 32, 3)), cutout_size=16).shape
    (32, 32, 3)
  """
  crop_key, flip_key, cutout_key = jax.random.split(key, 3)
  image = random_crop(crop_key, image, padding=padding)
  if flip:
    image = random_flip(flip_key, image)
  return cutout(cutout_key, image, size=cutout_size) if cutout_size else image


def mixup(
  key: jax.Array, batch: Batch, *, alpha: float = 1.0, num_classes: int
) -> Batch:
  """Mixup: mixes each example with another one (Zhang et al. 2018, arXiv 1710.09412).

  Args:
    key: decides the weight, from Beta(alpha, alpha) and the same for the whole batch,
      and the pairs of examples.
    batch: inputs `[batch, ...]` float, targets `[batch]` integers or `[batch,
      num_classes]` class weights.
    alpha: 1 gives a uniform weight; smaller values mix less.
    num_classes: number of classes.

  Returns:
    The batch with targets `[batch, num_classes]`, the weights of the classes.

  Example:
    >>> batch = Batch(jnp.array([[0.0], [1.0]]), jnp.array([0, 1]))
    >>> mixed = mixup(jax.random.key(0), batch, num_classes=2)
    >>> bool(jnp.allclose(mixed.inputs[:, 0], mixed.targets[:, 1]))
    True
  """
  share_key, order_key = jax.random.split(key)
  share = jax.random.beta(share_key, alpha, alpha)
  order = jax.random.permutation(order_key, batch.targets.shape[0])
  targets = batch.targets
  if targets.ndim == 1:
    targets = one_hot(targets, num_classes)

  def mixed(x: jax.Array) -> jax.Array:
    own = share.astype(x.dtype)
    return own * x + (1 - own) * x[order]

  return Batch(mixed(batch.inputs), mixed(targets))
