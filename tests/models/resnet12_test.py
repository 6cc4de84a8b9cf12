"""ResNet-12: its size, and its values by XLA's own operations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.models import ResNet12, as_functions
from jsharp.models.resnet12 import NARROW, WIDE

TINY = (3, 4)


def reference(params, x):
  """The same network by lax operations, on images as one normalisation batch."""

  def normalised(x, norm):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(variance + 1e-5) * norm["scale"] + norm["offset"]

  def convolved(x, block, name):
    x = jax.lax.conv_general_dilated(
      x,
      block[f"conv_{name}"],
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return normalised(x, block[f"norm_{name}"])

  def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)

  for number in range(len(TINY)):
    block = params[f"block_{number}"]
    y = leaky(convolved(x, block, "0"))
    y = leaky(convolved(y, block, "1"))
    y = leaky(convolved(y, block, "2") + convolved(x, block, "shortcut"))
    x = jax.lax.reduce_window(
      y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
  return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


class ResNet12Test(parameterized.TestCase):
  @parameterized.parameters((WIDE, 12_424_320), (NARROW, 7_996_800))
  def test_the_published_number_of_parameters(self, widths, expected):
    model = ResNet12(num_outputs=None, widths=widths)
    images = jax.ShapeDtypeStruct((1, 84, 84, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    self.assertEqual(sum(x.size for x in jax.tree.leaves(variables)), expected)
    out = jax.eval_shape(model.apply, variables, images)
    self.assertEqual(out.shape, (1, widths[-1]))

  @jax.numpy_rank_promotion("allow")
  def test_values_and_gradients_by_other_operations(self):
    with jax.enable_x64(True):
      init_fn, apply_fn = as_functions(ResNet12(num_outputs=2, widths=TINY))
      images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 10, 3)))
      params = init_fn(jax.random.key(0), images)
      for fn in (
        lambda apply: apply(params, images),
        lambda apply: jax.grad(lambda w: jnp.sum(apply(w, images) ** 2))(params),
      ):
        found, expected = (
          jax.jit(fn, static_argnums=0)(f) for f in (apply_fn, reference)
        )
        jax.tree.map(
          lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8),
          found,
          expected,
        )

  @parameterized.parameters(((2, 15, 20, 3), float), ((2, 16, 16, 3), int))
  def test_refuses(self, shape, dtype):
    with self.assertRaisesRegex(ValueError, "at least 16; got"):
      ResNet12(num_outputs=2).init(jax.random.key(0), jnp.ones(shape, dtype))


if __name__ == "__main__":
  absltest.main()
