"""Operations on pixels against Pillow's, and policies against their tables."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image, ImageEnhance, ImageOps

from jsharp.data import auto_augment, pixel_operations
from jsharp.data.auto_augment import POLICIES

GREY = (128, 128, 128)


def affine(*matrix):
  return lambda image: image.transform(
    image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY
  )


def enhanced(kind):
  return lambda amount: lambda image: kind(image).enhance(amount)


PILLOW = {
  "auto_contrast": lambda _: ImageOps.autocontrast,
  "equalize": lambda _: ImageOps.equalize,
  "invert": lambda _: ImageOps.invert,
  "solarize": lambda t: lambda image: ImageOps.solarize(image, t),
  "posterize": lambda bits: lambda image: ImageOps.posterize(image, bits),
  "brightness": enhanced(ImageEnhance.Brightness),
  "color": enhanced(ImageEnhance.Color),
  "contrast": enhanced(ImageEnhance.Contrast),
  "sharpness": enhanced(ImageEnhance.Sharpness),
  "shear_x": lambda a: affine(1, a, 0, 0, 1, 0),
  "shear_y": lambda a: affine(1, 0, 0, a, 1, 0),
  "translate_x": lambda a: affine(1, 0, a, 0, 1, 0),
  "translate_y": lambda a: affine(1, 0, 0, 0, 1, a),
  "rotate": lambda a: lambda image: image.rotate(a, fillcolor=GREY),
}
AMOUNTS = {
  "solarize": (0, 77, 128, 256),
  "posterize": (1, 2, 4, 8),
  "shear_x": (-0.27, 0.0, 0.12),
  "shear_y": (-0.27, 0.0, 0.12),
  "translate_x": (-9, 0, 8),
  "translate_y": (-9, 0, 8),
  "rotate": (-27, 0, 6, 90),
  **dict.fromkeys(
    ("brightness", "color", "contrast", "sharpness"), (0.1, 0.64, 1.0, 1.72)
  ),
}


def pictures():
  rng = np.random.default_rng(0)
  smooth = np.linspace(20, 200, 32 * 24).reshape(32, 24, 1) + np.array([0, 20, 40])
  return {
    "noise": rng.integers(0, 256, (32, 24, 3), np.uint8),
    "smooth": smooth.astype(np.uint8),
    "flat": np.full((32, 24, 3), 77, np.uint8),
    "two": np.where(rng.random((32, 24, 3)) < 0.3, 250, 3).astype(np.uint8),
  }


class PillowTest(parameterized.TestCase):
  @parameterized.parameters(*PILLOW)
  def test_equals_pillow(self, name):
    function = getattr(pixel_operations, name)
    amounts = AMOUNTS.get(name, ())
    jitted = jax.jit(function)
    for picture, image in pictures().items():
      for amount in amounts or (None,):
        given = () if amount is None else (amount,)
        actual = np.asarray(jitted(jnp.asarray(image, jnp.int32), *given))
        expected = np.asarray(PILLOW[name](amount)(Image.fromarray(image)))
        with self.subTest(picture=picture, amount=amount):
          np.testing.assert_array_equal(actual, expected)


class PolicyTest(parameterized.TestCase):
  @parameterized.parameters(*POLICIES)
  def test_has_25_pairs_of_known_operations(self, name):
    operations, probabilities, amounts = auto_augment._table(name, 32)
    self.assertEqual(operations.shape, (25, 2))
    self.assertTrue(((probabilities >= 0) & (probabilities <= 1)).all())
    self.assertTrue(np.isfinite(amounts).all())

  def test_draws_pairs_and_operations_as_often_as_the_table_says(self):
    # Of a flat grey image only these operations leave anything: which one ran shows.
    image = jnp.full((8, 8, 3), 200, jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 4000)
    augment = functools.partial(auto_augment.auto_augment, policy="imagenet")
    out = jax.jit(jax.vmap(augment, in_axes=(0, None)))(keys, image)
    centre = np.asarray(out[:, 4, 4, 0])
    counted = collections.Counter(centre.tolist())
    expected = collections.Counter()
    functions = {"Invert": lambda v, a: 255 - v}
    functions["Brightness"] = lambda v, a: min(int(v * a + 1e-3), 255)
    functions["Solarize"] = lambda v, a: v if v < a else 255 - v
    functions["Posterize"] = lambda v, a: v >> (8 - int(a)) << (8 - int(a))
    names = list(auto_augment._OPERATIONS)
    operations, probabilities, amounts = auto_augment._table("imagenet", 8)
    for pair in range(25):
      states = {200: 1.0}
      for i in range(2):
        function = functions.get(names[operations[pair, i]], lambda v, a: v)
        after = collections.Counter()
        for value, weight in states.items():
          done = probabilities[pair, i]
          after[value] += weight * (1 - done)
          after[function(value, amounts[pair, i])] += weight * done
        states = after
      for value, weight in states.items():
        expected[value] += weight / 25
    for value, share in expected.items():
      deviation = np.sqrt(share * (1 - share) / 4000)
      self.assertLess(abs(counted[value] / 4000 - share), 5 * deviation + 1e-9, value)
    self.assertEqual(set(counted) - {v for v, s in expected.items() if s}, set())

  def test_refuses_what_does_not_fit(self):
    for image, policy, message in (
      (jnp.zeros((8, 8, 2), jnp.uint8), "cifar", "one or three channels, got uint8"),
      (jnp.zeros((8, 8, 3)), "cifar", "takes uint8 images .*got float32"),
      (jnp.zeros((8, 8, 3), jnp.uint8), "svhn", "one of cifar, imagenet; got 'svhn'"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        auto_augment.auto_augment(jax.random.key(0), image, policy=policy)


if __name__ == "__main__":
  absltest.main()
