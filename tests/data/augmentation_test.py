"""Tests of the augmentation: what may come out, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import augmentation
from jsharp.types import Batch

KEYS = jax.random.split(jax.random.key(0), 2000)
IMAGE = np.arange(1, 1 + 6 * 5 * 2, dtype=np.float32).reshape(6, 5, 2)


def many(function, image=IMAGE, **options):
  return np.asarray(jax.vmap(lambda key: function(key, image, **options))(KEYS))


class AugmentationTest(parameterized.TestCase):
  def test_crops_are_all_the_shifts_equally_often(self):
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 6, j : j + 5] for i in range(3) for j in range(3)]
    out = many(augmentation.random_crop, padding=1)
    matches = np.array([(out == w).all(axis=(1, 2, 3)) for w in windows])
    np.testing.assert_array_equal(matches.sum(0), 1)
    # Binomial with p = 1/9: a standard deviation is 14.
    np.testing.assert_allclose(matches.sum(1), len(KEYS) / 9, atol=70)

  def test_flips_half(self):
    out = many(augmentation.random_flip)
    flipped = (out == IMAGE[:, ::-1]).all(axis=(1, 2, 3))
    self.assertTrue(np.all(flipped | (out == IMAGE).all(axis=(1, 2, 3))))
    self.assertBetween(flipped.sum(), 900, 1100)

  @parameterized.parameters(1, 2, 3, 4)
  def test_cutout_is_a_square_that_may_overhang(self, size):
    image = jnp.ones((8, 8, 2))
    out = many(augmentation.cutout, image, size=size)
    blank = out[..., 0] == 0
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    sides = [blank.any(axis).sum(1) for axis in (1, 2)]
    np.testing.assert_array_equal(blank.sum((1, 2)), sides[0] * sides[1])
    self.assertEqual(max(sides[0].max(), sides[1].max()), size)
    smallest = size // 2 if size % 2 == 0 else size // 2 + 1
    self.assertEqual(sides[0].min(), smallest)
    # A pixel in the middle is blank for size**2 of the 64 centres.
    share = blank[:, 4, 4].mean()
    self.assertAlmostEqual(share, size**2 / 64, delta=0.05)

  def test_standard_is_what_it_is_asked_for(self):
    image = jnp.ones((8, 8, 1))
    self.assertFalse(np.array_equal(*many(augmentation.standard, IMAGE)[:2]))
    plain = many(augmentation.standard, image, padding=0, flip=False)
    np.testing.assert_array_equal(plain, np.ones((len(KEYS), 8, 8, 1)))
    cut = many(augmentation.standard, image, padding=0, cutout_size=4)
    self.assertTrue(np.all((cut == 0).sum((1, 2, 3)) >= 4))

  def test_mixup_is_one_share_of_each_pair_and_its_labels(self):
    inputs = jnp.eye(4)  # An input says which examples it is made of.
    hard = Batch(inputs, jnp.array([2, 0, 1, 2]))
    mix = jax.vmap(lambda key: augmentation.mixup(key, hard, alpha=0.7, num_classes=3))
    out, targets = map(np.asarray, mix(KEYS))
    np.testing.assert_allclose(targets, out @ np.eye(3)[hard.targets], atol=1e-6)
    np.testing.assert_allclose(out.sum((1, 2)), 4, rtol=1e-5)
    own = out.diagonal(axis1=1, axis2=2)  # 1 where an example met itself.
    share = own.min(1)
    is_mixed = own < 1 - 1e-6
    np.testing.assert_allclose(own[is_mixed], np.repeat(share, is_mixed.sum(1)), 1e-5)
    share = share[is_mixed.any(1)]
    # Beta(a, a): mean 1/2 and variance 1 / (8 a + 4), each with its own error.
    self.assertAlmostEqual(share.mean(), 0.5, delta=0.03)
    self.assertAlmostEqual(share.var(), 1 / (8 * 0.7 + 4), delta=0.01)
    np.testing.assert_allclose(np.isclose(own, 1).mean(), 1 / 4, atol=0.05)
    soft = Batch(inputs, jax.nn.one_hot(hard.targets, 3))
    again = augmentation.mixup(KEYS[0], soft, alpha=0.7, num_classes=3)
    np.testing.assert_allclose(again.targets, targets[0], atol=1e-6)


if __name__ == "__main__":
  absltest.main()
