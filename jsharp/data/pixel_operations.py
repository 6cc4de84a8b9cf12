"""Pillow's pixel operations as pure functions, bitwise equal for uint8 images.

Neither dm-pix nor augmax has all of them, or Pillow's rounding. An image is int32
`[height, width, channels]` with values from 0 to 255. Amounts may be traced, so with
`jax.vmap` every image of a batch can have its own. Factors are rounded to thousandths.
"""

import jax
import jax.numpy as jnp

FILL = 128
"""The value of pixels from outside the image."""

_LEVELS = 256


def invert(image: jax.Array) -> jax.Array:
  """255 minus each pixel, as `ImageOps.invert`.

  Example:
    >>> invert(jnp.array([[[0, 100, 255]]])).tolist()
    [[[255, 155, 0]]]
  """
  return 255 - image


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
  """Inverts pixels at or above `threshold`, as `ImageOps.solarize`.

  Example:
    >>> solarize(jnp.array([[[0, 100, 255]]]), 100).tolist()
    [[[0, 155, 0]]]
  """
  return jnp.where(image < jnp.asarray(threshold, jnp.int32), image, 255 - image)


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
  """Keeps the highest `bits` of 8 bits, as `ImageOps.posterize`.

  Example:
    >>> posterize(jnp.array([[[0, 100, 255]]]), 1).tolist()
    [[[0, 0, 128]]]
  """
  unit = jnp.left_shift(1, 8 - jnp.asarray(bits, jnp.int32))
  return image // unit * unit


def auto_contrast(image: jax.Array) -> jax.Array:
  """Stretches each channel to 0 and 255, as `ImageOps.autocontrast`.

  Example:
    >>> auto_contrast(jnp.array([[[50], [150]]])).tolist()
    [[[0], [255]]]
  """
  low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
  flat = high <= low
  span = jnp.where(flat, 1, high - low)
  # Exact, where Pillow truncates 255 / span * (image - low) computed in float64.
  stretched = (image - low) * 255 // span
  return jnp.where(flat, image, stretched)


def equalize(image: jax.Array) -> jax.Array:
  """Equalises each channel's histogram, as `ImageOps.equalize`.

  Example:
    >>> equalize(jnp.arange(0, 64).reshape(8, 8, 1))[0, :3, 0].tolist()
    [0, 1, 2]
  """

  def of_channel(plane: jax.Array) -> jax.Array:
    pixels = plane.ravel()
    counts = jnp.zeros(_LEVELS, jnp.int32).at[pixels].add(1)
    step = (pixels.size - counts[pixels.max()]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step == 0, plane, table[plane])

  return jax.vmap(of_channel, in_axes=2, out_axes=2)(image)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Scales the difference from black by `factor`, as `ImageEnhance.Brightness`.

  Example:
    >>> brightness(jnp.array([[[0, 100, 255]]]), 1.5).tolist()
    [[[0, 150, 255]]]
  """
  return _blend(jnp.zeros_like(image), image, factor)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Scales the difference from grey by `factor`, as `ImageEnhance.Color`.

  An image with one channel does not change.

  Example:
    >>> color(jnp.array([[[0, 100, 255]]]), 0.0).tolist()
    [[[88, 88, 88]]]
  """
  grey = jnp.broadcast_to(_grey(image)[..., None], image.shape)
  return _blend(grey, image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Scales the difference from the mean grey by `factor`, as `ImageEnhance.Contrast`.

  Example:
    >>> contrast(jnp.array([[[0], [100]]]), 0.5).tolist()
    [[[25], [75]]]
  """
  grey = _grey(image)
  mean = (2 * grey.sum() + grey.size) // (2 * grey.size)
  return _blend(jnp.full_like(image, mean), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Scales the difference from the smoothed image, as `ImageEnhance.Sharpness`.

  Example:
    >>> sharpness(jnp.full((3, 3, 1), 7), 2.0).tolist() == [[[7]] * 3] * 3
    True
  """
  height, width, _ = image.shape
  if min(height, width) < 3:
    return image  # Only border, which Pillow does not smooth.
  total = 4 * image[1:-1, 1:-1]
  for row in range(3):
    for column in range(3):
      total += image[row : row + height - 2, column : column + width - 2]
  inner = jnp.clip((2 * total + 13) // 26, 0, 255)
  return _blend(image.at[1:-1, 1:-1].set(inner), image, factor)


def shear_x(image: jax.Array, amount: jax.Array) -> jax.Array:
  """Shears horizontally: row `y` comes from `amount * y` pixels further right.

  Example:
    >>> shear_x(jnp.arange(4).reshape(2, 2, 1), 1.0)[..., 0].tolist()
    [[1, 128], [128, 128]]
  """
  return _affine(image, (1.0, amount, 0.0), (0.0, 1.0, 0.0))


def shear_y(image: jax.Array, amount: jax.Array) -> jax.Array:
  """Shears vertically: column `x` comes from `amount * x` pixels further down.

  Example:
    >>> shear_y(jnp.arange(4).reshape(2, 2, 1), 1.0)[..., 0].tolist()
    [[2, 128], [128, 128]]
  """
  return _affine(image, (1.0, 0.0, 0.0), (amount, 1.0, 0.0))


def translate_x(image: jax.Array, pixels: jax.Array) -> jax.Array:
  """Translates horizontally: each pixel comes from `pixels` further right.

  Example:
    >>> translate_x(jnp.arange(4).reshape(2, 2, 1), 1.0)[..., 0].tolist()
    [[1, 128], [3, 128]]
  """
  return _affine(image, (1.0, 0.0, pixels), (0.0, 1.0, 0.0))


def translate_y(image: jax.Array, pixels: jax.Array) -> jax.Array:
  """Translates vertically: each pixel comes from `pixels` further down.

  Example:
    >>> translate_y(jnp.arange(4).reshape(2, 2, 1), 1.0)[..., 0].tolist()
    [[2, 3], [128, 128]]
  """
  return _affine(image, (1.0, 0.0, 0.0), (0.0, 1.0, pixels))


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
  """Rotates the image counter-clockwise about its centre, as `Image.rotate`.

  Example:
    >>> rotate(jnp.arange(4).reshape(2, 2, 1), 90.0)[..., 0].tolist()
    [[1, 3], [0, 2]]
  """
  height, width, _ = image.shape
  angle = -jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  x, y = width / 2, height / 2
  return _affine(
    image,
    (cosine, sine, x - cosine * x - sine * y),
    (-sine, cosine, y + sine * x - cosine * y),
  )


def _grey(image: jax.Array) -> jax.Array:
  if image.shape[-1] != 3:
    return image[..., 0]
  red, green, blue = (image[..., channel] for channel in range(3))
  # Pillow's weights, scaled by 2**16.
  return jnp.right_shift(19595 * red + 38470 * green + 7471 * blue + 0x8000, 16)


def _blend(start: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
  """`start + factor * (image - start)`, truncated to integers from 0 to 255.

  It is computed in thousandths, which is exact: in floating point, a fused multiply-add
  would give 10.9999993 where Pillow gives 11.
  """
  thousandths = jnp.rint(jnp.asarray(factor, jnp.float32) * 1000).astype(jnp.int32)
  return jnp.clip((start * 1000 + thousandths * (image - start)) // 1000, 0, 255)


def _affine(
  image: jax.Array,
  along_x: tuple[jax.Array | float, ...],
  along_y: tuple[jax.Array | float, ...],
) -> jax.Array:
  """The nearest pixel at `a * x + b * y + c`, in Pillow's 16-bit fixed point.

  Args:
    image: `[height, width, channels]`.
    along_x: a, b and c of the source's column.
    along_y: a, b and c of the source's row.

  Returns:
    An array like `image`, `FILL` where the source is outside the image.
  """
  height, width, _ = image.shape
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

  def fixed(value: jax.Array | float) -> jax.Array:
    scaled = jnp.asarray(value, jnp.float32) * 65536
    return (scaled + jnp.where(scaled < 0, -0.5, 0.5)).astype(jnp.int32)

  def source(line: tuple[jax.Array | float, ...]) -> jax.Array:
    a, b, c = line
    start = fixed(c + a * 0.5 + b * 0.5)
    return jnp.right_shift(start + columns * fixed(a) + rows * fixed(b), 16)

  x, y = source(along_x), source(along_y)
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  found = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
  return jnp.where(inside[..., None], found, FILL)
