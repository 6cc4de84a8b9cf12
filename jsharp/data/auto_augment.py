"""AutoAugment's policies (Cubuk et al. 2019, arXiv 1805.09501) as pure functions.

A policy is 25 pairs of operations. One random pair is applied to each image; each of
its operations has a probability and a level from 0 to 10, which the authors' code
(tensorflow/models, research/autoaugment) converts to an amount.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.data import pixel_operations as pixels

_Operation = tuple[Callable[..., jax.Array], Callable[[float, int], float] | None, bool]

# By name: the function, its amount by level and side of the image, and whether its sign
# is random.
_OPERATIONS: dict[str, _Operation] = {
  "AutoContrast": (pixels.auto_contrast, None, False),
  "Brightness": (pixels.brightness, lambda level, side: 0.1 + 0.18 * level, False),
  "Color": (pixels.color, lambda level, side: 0.1 + 0.18 * level, False),
  "Contrast": (pixels.contrast, lambda level, side: 0.1 + 0.18 * level, False),
  "Equalize": (pixels.equalize, None, False),
  "Invert": (pixels.invert, None, False),
  "Posterize": (pixels.posterize, lambda level, side: 4 - int(0.4 * level), False),
  "Rotate": (pixels.rotate, lambda level, side: int(3 * level), True),
  "Sharpness": (pixels.sharpness, lambda level, side: 0.1 + 0.18 * level, False),
  "ShearX": (pixels.shear_x, lambda level, side: 0.03 * level, True),
  "ShearY": (pixels.shear_y, lambda level, side: 0.03 * level, True),
  "Solarize": (pixels.solarize, lambda level, side: 256 - int(25.6 * level), False),
  "TranslateX": (pixels.translate_x, lambda level, side: level * side // 32, True),
  "TranslateY": (pixels.translate_y, lambda level, side: level * side // 32, True),
}

# Tables 7 and 9 of the paper: operation, probability in tenths, level, twice.
POLICIES = {
  "cifar": """
    Invert 1 7 Contrast 2 6, Rotate 7 2 TranslateX 3 9, Sharpness 8 1 Sharpness 9 3,
    ShearY 5 8 TranslateY 7 9, AutoContrast 5 8 Equalize 9 2, ShearY 2 7 Posterize 3 7,
    Color 4 3 Brightness 6 7, Sharpness 3 9 Brightness 7 9, Equalize 6 5 Equalize 5 1,
    Contrast 6 7 Sharpness 6 5, Color 7 7 TranslateX 5 8, Equalize 3 7 AutoContrast 4 8,
    TranslateY 4 3 Sharpness 2 6, Brightness 9 6 Color 2 8, Solarize 5 2 Invert 0 3,
    Equalize 2 0 AutoContrast 6 0, Equalize 2 8 Equalize 6 4, Color 9 9 Equalize 6 6,
    AutoContrast 8 4 Solarize 2 8, Brightness 1 3 Color 7 0,
    Solarize 4 5 AutoContrast 9 3, TranslateY 9 9 TranslateY 7 9,
    AutoContrast 9 2 Solarize 8 3, Equalize 8 8 Invert 1 3,
    TranslateY 7 9 AutoContrast 9 1""",
  "imagenet": """
    Posterize 4 8 Rotate 6 9, Solarize 6 5 AutoContrast 6 5, Equalize 8 8 Equalize 6 3,
    Posterize 6 7 Posterize 6 6, Equalize 4 7 Solarize 2 4, Equalize 4 4 Rotate 8 8,
    Solarize 6 3 Equalize 6 7, Posterize 8 5 Equalize 10 2, Rotate 2 3 Solarize 6 8,
    Equalize 6 8 Posterize 4 6, Rotate 8 8 Color 4 0, Rotate 4 9 Equalize 6 2,
    Equalize 0 7 Equalize 8 8, Invert 6 4 Equalize 10 8, Color 6 4 Contrast 10 8,
    Rotate 8 8 Color 10 2, Color 8 8 Solarize 8 7, Sharpness 4 7 Invert 6 8,
    ShearX 6 5 Equalize 10 9, Color 4 0 Equalize 6 3, Equalize 4 7 Solarize 2 4,
    Solarize 6 5 AutoContrast 6 5, Invert 6 4 Equalize 10 8, Color 6 4 Contrast 10 8,
    Equalize 8 8 Equalize 6 3""",
}


@functools.cache
def _table(name: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Operation, probability and amount, each `[pairs, 2]`, of one policy."""
  rows: list[list[Any]] = []
  names = list(_OPERATIONS)
  for pair in POLICIES[name].split(","):
    words = pair.split()
    for operation, tenths, level in (words[:3], words[3:]):
      amount_of = _OPERATIONS[operation][1]
      amount = amount_of(int(level), side) if amount_of else 0
      rows.append([names.index(operation), int(tenths) / 10, amount])
  table = np.array(rows).reshape(-1, 2, 3)
  return table[..., 0].astype(np.int32), table[..., 1], table[..., 2]


def auto_augment(key: jax.Array, image: jax.Array, *, policy: str) -> jax.Array:
  """Distorts an image by a random pair of operations of a policy.

  Args:
    key: decides the pair, which of its operations are applied, and the signs.
    image: `[height, width, channels]`, one or three channels, uint8.
    policy: "cifar", found on CIFAR-10 and also used on CIFAR-100, or "imagenet".

  Returns:
    An array like `image`. Pixels from outside the image are grey, 128.

  Raises:
    ValueError: if there is no such policy, or the image does not have one or three
      channels or is not uint8.

  Example:
    >>> image = jnp.arange(3 * 64, dtype=jnp.uint8).reshape(8, 8, 3)
    >>> auto_augment(jax.random.key(0), image, policy="cifar").shape
    (8, 8, 3)
  """
  if policy not in POLICIES:
    raise ValueError(f"policy must be one of {', '.join(POLICIES)}; got {policy!r}")
  if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != jnp.uint8:
    raise ValueError(
      "auto_augment takes uint8 images of one or three channels, got "
      f"{image.dtype} {image.shape}; use another --augment for these images"
    )
  side = max(image.shape[:2])
  operations, probabilities, amounts = _table(policy, side)
  pair_key, *keys = jax.random.split(key, 3)
  pair = jax.random.randint(pair_key, (), 0, len(operations))
  is_signed = np.array([signed for *_, signed in _OPERATIONS.values()])
  branches = [
    lambda image, amount, of=of, scaled=amount_of is not None: (
      of(image, amount) if scaled else of(image)
    )
    for of, amount_of, _ in _OPERATIONS.values()
  ]
  changed = image.astype(jnp.int32)
  for i, one_key in enumerate(keys):
    done_key, sign_key = jax.random.split(one_key)
    operation = jnp.asarray(operations)[pair, i]
    amount = jnp.asarray(amounts[:, i], jnp.float32)[pair]
    turned = jax.random.bernoulli(sign_key) & jnp.asarray(is_signed)[operation]
    amount = jnp.where(turned, -amount, amount)
    probability = jnp.asarray(probabilities[:, i], jnp.float32)[pair]
    done = jax.random.uniform(done_key) < probability
    result = jax.lax.switch(operation, branches, changed, amount)
    changed = jnp.where(done, result, changed)
  return changed.astype(image.dtype)
