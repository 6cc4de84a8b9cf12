"""Normalisation of one example, and by fixed statistics: other formulas, float64."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.nn import FrozenBatchNorm, GroupNorm, RunningBatchNorm


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


class GroupNormTest(parameterized.TestCase):
  @parameterized.parameters((4, 4), (16, 4), (None, 12))
  def test_each_example_and_group_by_numpy(self, group_size, used):
    x = 3 + random(2, 5, 6, 12)
    scale, offset = random(12, seed=1), random(12, seed=2)
    expected = np.empty_like(x)
    for example in range(len(x)):
      for first in range(0, 12, used):
        part = x[example, :, :, first : first + used]
        expected[example, :, :, first : first + used] = (part - part.mean()) / np.sqrt(
          part.var() + 1e-5
        )
    with jax.enable_x64(True):
      params = {"scale": jnp.asarray(scale), "offset": jnp.asarray(offset)}
      found = GroupNorm(group_size).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(found, expected * scale + offset, atol=1e-12)

  def test_half_precision_is_computed_in_single(self):
    x = jnp.asarray(200 + random(1, 4, 4, 2), jnp.bfloat16)
    ones = {"scale": jnp.ones(2, x.dtype), "offset": jnp.zeros(2, x.dtype)}
    wide = {name: value.astype(jnp.float32) for name, value in ones.items()}
    found = GroupNorm(2).apply({"params": ones}, x)
    expected = GroupNorm(2).apply({"params": wide}, x.astype(jnp.float32))
    self.assertEqual(found.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


class FrozenBatchNormTest(absltest.TestCase):
  def test_is_the_running_one_at_evaluation_and_moves_no_statistics(self):
    x = jnp.asarray(random(3, 4, 4, 2), jnp.float32)
    names = ("scale", "offset", "mean", "variance")
    values = [jnp.asarray(1 + random(2, seed=i) ** 2, jnp.float32) for i in range(4)]
    params = dict(zip(names, values, strict=True))
    running = {
      "params": {name: params[name] for name in names[:2]},
      "batch_stats": {name: params[name] for name in names[2:]},
    }
    found = FrozenBatchNorm().apply({"params": params}, x)
    expected = RunningBatchNorm().apply(running, x, False)
    np.testing.assert_array_equal(found, expected)

    def loss(params):
      return jnp.sum(FrozenBatchNorm().apply({"params": params}, x) ** 2)

    grads = jax.grad(loss)(params)
    for name in names:
      moves = bool(jnp.abs(grads[name]).max() > 0)
      self.assertEqual(moves, name in ("scale", "offset"), name)


if __name__ == "__main__":
  absltest.main()
