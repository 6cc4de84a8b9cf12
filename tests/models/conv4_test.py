"""Conv4: shapes, parameter counts, and second-order meta-gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from jsharp.models import Conv4, all_but_norm, as_functions


def count(params, *, adapted):
  leaves = zip(
    jax.tree.leaves(params), jax.tree.leaves(all_but_norm(params)), strict=True
  )
  return sum(leaf.size for leaf, is_adapted in leaves if is_adapted == adapted)


def gathering_pool(x):
  n, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
  windows = x.transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)
  which = jnp.argmax(lax.stop_gradient(windows), axis=-1, keepdims=True)
  return jnp.take_along_axis(windows, which, axis=-1)[..., 0]


def reference_apply(params, x, stride):
  """The network from scratch: XLA's convolution, ReLU before another pooling."""
  for block in range(4):
    conv, norm = params[f"conv_{block}"], params[f"norm_{block}"]
    x = lax.conv_general_dilated(
      x,
      conv["kernel"],
      (stride, stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # The bias of the papers' networks, which the normalisation takes out.
    x = x + jnp.arange(x.shape[-1], dtype=x.dtype).reshape(1, 1, 1, -1)
    mean = jnp.mean(x, (0, 1, 2), keepdims=True)
    variance = jnp.mean(x * x, (0, 1, 2), keepdims=True) - mean * mean
    x = (x - mean) / jnp.sqrt(variance + 1e-5)
    x = x * norm["scale"].reshape(1, 1, 1, -1) + norm["offset"].reshape(1, 1, 1, -1)
    x = jnp.where(x > 0, x, 0.0)
    if stride == 1:
      x = gathering_pool(x)
  x = x.reshape(x.shape[0], -1) if stride == 1 else jnp.mean(x, (1, 2))
  return x @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)


def meta_loss(apply_fn, params, support, query, num_steps):
  """A task's query loss after at most one plain gradient step on its support set."""

  def loss(params, inputs):
    labels = jnp.eye(inputs.shape[0], 3)
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(apply_fn(params, inputs)), 1))

  if num_steps:
    grads = jax.grad(loss)(params, support)
    params = jax.tree.map(lambda p, g: p - 0.2 * g, params, grads)
  return loss(params, query)


class Conv4Test(parameterized.TestCase):
  @parameterized.parameters(
    ((84, 84, 3), 5, 1, 120_325),
    ((28, 28, 1), 20, 1, 112_468),
    ((28, 28, 1), 20, 2, 112_468),
  )
  def test_shapes_and_parameter_counts(self, image, way, stride, adapted):
    init_fn, apply_fn = as_functions(Conv4(way, stride=stride))
    images = jnp.zeros([3, *image])
    params = jax.eval_shape(init_fn, jax.random.key(0), images)
    # The papers' 120,581 and 112,724 count 4 * 64 convolution biases more.
    self.assertEqual(count(params, adapted=True), adapted)
    self.assertEqual(count(params, adapted=False), 512)
    self.assertEqual(jax.eval_shape(apply_fn, params, images).shape, (3, way))

  @parameterized.product(stride=(1, 2), num_statistics=(None, 2))
  def test_agrees_with_another_formulation(self, stride, num_statistics):
    # A support batch of 2 in front of 3 queries, or the 5 images as one batch.
    init_fn, apply_fn = as_functions(Conv4(3, num_filters=4, stride=stride))
    images = jax.random.normal(jax.random.key(0), (5, 17, 16, 2))
    params = jax.jit(init_fn)(jax.random.key(1), images)
    apply = jax.jit(apply_fn, static_argnums=2)
    actual = apply(params, images, num_statistics)
    rows = num_statistics or 5
    reference = jax.jit(reference_apply, static_argnums=2)
    expected = reference(params, images[:rows], stride)
    np.testing.assert_allclose(actual[:rows], expected, atol=1e-4)
    if num_statistics:
      # A query is alone with the support batch.
      other = apply(params, images.at[3].multiply(-2.0), num_statistics)
      difference = np.abs(other - actual).max(axis=1)
      self.assertLess(difference[[0, 1, 2, 4]].max(), 1e-5)
      self.assertGreater(difference[3], 1e-2)

  # Law 4: a max-pool can be silently wrong here, in float64 and under jit only.
  # Where there is none, the layers' own tests have the second order.
  @parameterized.parameters((1, 1), (2, 0))
  def test_second_order_meta_gradient(self, stride, num_steps):
    with jax.enable_x64(True):
      init_fn, apply_fn = as_functions(Conv4(3, num_filters=4, stride=stride))
      random = np.random.default_rng(0)
      support, query = random.normal(size=(2, 3, 17, 16, 1))
      params = jax.jit(init_fn)(jax.random.key(0), support)

      def ours(params):
        return meta_loss(apply_fn, params, support, query, num_steps)

      def reference(params):
        apply = lambda p, x: reference_apply(p, x, stride)
        return meta_loss(apply, params, support, query, num_steps)

      value_and_grad = jax.jit(jax.value_and_grad(ours))
      value, grads = value_and_grad(params)
      expected_value, expected = jax.jit(jax.value_and_grad(reference))(params)
      np.testing.assert_allclose(value, expected_value, rtol=1e-9)
      scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected))
      for actual, wanted in zip(
        jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
      ):
        np.testing.assert_allclose(actual, wanted, atol=1e-7 * scale, rtol=1e-6)

      params, grads = jax.tree.map(np.asarray, (params, grads))
      direction = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), params)

      def value_at(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return float(value_and_grad(moved)[0])

      slope = sum(
        float(np.vdot(g, d))
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
      )
      # Small enough that no ReLU or pooling window changes its mind.
      difference = (value_at(1e-8) - value_at(-1e-8)) / 2e-8
      np.testing.assert_allclose(slope, difference, rtol=1e-4)

  @parameterized.named_parameters(
    ("too_small", (2, 15, 16, 1), jnp.float32, 1, "at least 16"),
    ("no_batch", (28, 28, 1), jnp.float32, 1, "batch, height"),
    ("integers", (2, 28, 28, 1), jnp.uint8, 1, "uint8"),
    ("stride", (2, 28, 28, 1), jnp.float32, 3, "stride must be 1 or 2"),
  )
  def test_bad_inputs_are_named(self, shape, dtype, stride, message):
    init_fn, _ = as_functions(Conv4(5, num_filters=2, stride=stride))
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(init_fn, jax.random.key(0), jnp.zeros(shape, dtype))

  def test_another_image_size_is_named(self):
    init_fn, apply_fn = as_functions(Conv4(5, num_filters=2))
    params = jax.eval_shape(init_fn, jax.random.key(0), jnp.zeros([2, 28, 28, 1]))
    for shape in ((2, 84, 84, 1), (2, 28, 28, 3)):
      with self.assertRaisesRegex(ValueError, "do not fit inputs"):
        jax.eval_shape(apply_fn, params, jnp.zeros(shape))


if __name__ == "__main__":
  absltest.main()
