"""Networks with random branches, and the large ones: sizes, equations, randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import jsharp
from jsharp.algorithms.supervised import classifier, supervised
from jsharp.models import ImageNetResNet, PyramidNet, ShakeShake
from jsharp.models._shake import seen_as
from jsharp.models.imagenet_resnet import ImageNetResNetOptions
from jsharp.models.pyramid_net import PyramidNetOptions
from jsharp.models.shake_shake import ShakeShakeOptions
from jsharp.types import Batch

SHAKE = ShakeShake(3, depth=8, width=4)
DROP = PyramidNet(3, depth=11, alpha=12, shake_drop=0.9)
NORMALISED = np.float32(1 / np.sqrt(1 + 1e-5))


def images(*shape, seed=1):
  return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def variables_of(model, *shape):
  return jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros(shape), False))()


@functools.cache
def applied(model, train):
  """`f(variables, x, key) -> outputs`, compiled once for each network."""

  def outputs(variables, x, key):
    rngs = None if key is None else {"shake": key}
    mutable = ["batch_stats"] if train else []
    return model.apply(variables, x, train, mutable=mutable, rngs=rngs)[0]

  return jax.jit(outputs)


def convolution(x, w, *, stride=1, margins="SAME"):
  return NORMALISED * jax.lax.conv_general_dilated(
    x, w, (stride, stride), margins, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


class SizesTest(parameterized.TestCase):
  @parameterized.parameters(
    (ShakeShake(10), 32, 26_192_922),  # 26.2 M in the paper
    (PyramidNet(10), 32, 26_210_842),  # 26.0 M with the widths cut, not rounded
    (ImageNetResNet(1000), 224, 25_557_032),
    (ImageNetResNet(1000, depth=152), 224, 60_192_808),
    (ImageNetResNet(1000, depth=18), 224, 11_689_512),
    (ImageNetResNet(1000, depth=34), 224, 21_797_672),
  )
  def test_as_many_parameters_as_published(self, model, side, expected):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), x)
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    self.assertEqual(counted, expected)

  @parameterized.parameters(
    (ShakeShake(3, depth=10), "depth must be 6n \\+ 2 .* got 10. Use 8"),
    (PyramidNet(3, depth=19), "depth must be 9n \\+ 2 .* got 19. Use 11"),
    (ImageNetResNet(3, depth=20), "depth must be one of 18, 26, .* got 20"),
  )
  def test_refuses_other_depths(self, model, message):
    with self.assertRaisesRegex(ValueError, message):
      model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)

  @parameterized.parameters(
    (ShakeShakeOptions(depth=8, width=4), SHAKE, "shake_shake8_2x4d"),
    (
      PyramidNetOptions(depth=11, pyramid_alpha=12, shake_drop=0.9),
      DROP,
      "pyramid_net11_12_shake_drop",
    ),
    (ImageNetResNetOptions(), ImageNetResNet(3), "imagenet_resnet50"),
  )
  def test_descriptions(self, description, module, label):
    self.assertEqual(description.module(3), module)
    self.assertEqual(description.label, label)


class EquationsTest(parameterized.TestCase):
  def test_shake_shake_at_test_is_the_mean_of_its_branches(self):
    x = images(2, 8, 8, 3)
    variables = variables_of(SHAKE, 1, 8, 8, 3)
    params = variables["params"]
    actual = applied(SHAKE, False)(variables, x, None)

    @jax.jit
    def by_hand(params, x):
      x = convolution(x, params["conv"]["kernel"])
      for stage in range(3):
        block, stride = params[f"stage_{stage}_block_0"], 2 if stage else 1
        branches = []
        for name in "ab":
          y = convolution(
            jax.nn.relu(x), block[f"conv_{name}_0"]["kernel"], stride=stride
          )
          y = convolution(jax.nn.relu(y), block[f"conv_{name}_1"]["kernel"])
          branches.append(y)
        behind = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        short = [
          NORMALISED
          * path[:, ::stride, ::stride]
          @ block[f"shortcut_{i}"]["kernel"][0, 0]
          for i, path in enumerate((x, behind))
        ]
        x = jnp.concatenate(short, -1) + (branches[0] + branches[1]) / 2
      return jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"]

    expected = by_hand(params, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

  def test_pyramid_net_at_test_takes_the_expected_branch(self):
    x = images(2, 8, 8, 3)
    variables = variables_of(DROP, 1, 8, 8, 3)
    params = variables["params"]
    actual = applied(DROP, False)(variables, x, None)

    @jax.jit
    def by_hand(params, x):
      x = convolution(x, params["conv"]["kernel"])
      for stage, width in enumerate((20, 24, 28)):
        block, stride = params[f"stage_{stage}_block_0"], 2 if stage else 1
        y = convolution(NORMALISED * x, block["conv_0"]["kernel"])
        y = convolution(jax.nn.relu(y), block["conv_1"]["kernel"], stride=stride)
        y = convolution(jax.nn.relu(y), block["conv_2"]["kernel"])
        self.assertEqual(y.shape[-1], 4 * width)
        if stride > 1:
          x = (
            x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
          ) / 4
        short = jnp.zeros_like(y).at[..., : x.shape[-1]].set(x)
        x = short + (1 - 0.9 * (stage + 1) / 3) * y
      return jax.nn.relu(NORMALISED * x).mean((1, 2)) @ params["head"]["kernel"]

    expected = by_hand(params, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)

  def test_a_large_network_pads_alike_on_all_sides(self):
    # Even sides, which "SAME" pads on the right only, and odd ones.
    model = ImageNetResNet(3, depth=26, width=2)
    x = images(2, 64, 65, 3)
    variables = variables_of(model, 1, 64, 64, 3)
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    for name, block in params.items():  # The scales that begin at 0 hide the branches.
      if "block" in name:
        block["norm_2"]["scale"] = jnp.ones_like(block["norm_2"]["scale"])
    actual = applied(model, False)({**variables, "params": params}, x, None)

    @jax.jit
    def by_hand(params, x):
      around = ((3, 3), (3, 3))
      x = convolution(x, params["conv"]["kernel"], stride=2, margins=around)
      x = jax.lax.reduce_window(
        jax.nn.relu(x),
        -jnp.inf,
        jax.lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
      )
      for stage in range(4):
        for number in range(2):
          block = params[f"stage_{stage}_block_{number}"]
          stride = 2 if stage and not number else 1
          y = jax.nn.relu(convolution(x, block["conv_0"]["kernel"]))
          around = ((1, 1), (1, 1))
          y = convolution(y, block["conv_1"]["kernel"], stride=stride, margins=around)
          y = convolution(jax.nn.relu(y), block["conv_2"]["kernel"])
          if not number:
            x = convolution(x, block["shortcut"]["kernel"], stride=stride)
          x = jax.nn.relu(x + y)
      return x.mean((1, 2)) @ params["head"]["kernel"]

    expected = by_hand(params, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


class RandomnessTest(parameterized.TestCase):
  @parameterized.parameters(SHAKE, DROP)
  def test_draws_in_training_only_one_set_of_numbers_for_each_key(self, model):
    x = images(4, 8, 8, 3)
    variables = variables_of(model, 1, 8, 8, 3)
    train, test = applied(model, True), applied(model, False)
    keys = jax.random.split(jax.random.key(3), 2)
    once = train(variables, x, keys[0])
    np.testing.assert_array_equal(once, train(variables, x, keys[0]))
    self.assertGreater(np.abs(once - train(variables, x, keys[1])).max(), 1e-3)
    np.testing.assert_array_equal(
      test(variables, x, keys[0]), test(variables, x, keys[1])
    )

  @parameterized.parameters(SHAKE, DROP)
  def test_every_image_has_numbers_of_its_own(self, model):
    # Without normalisation by the batch equal images would give equal answers.
    x = jnp.repeat(images(1, 8, 8, 3), 4, axis=0)
    variables = variables_of(model, 1, 8, 8, 3)
    outputs = applied(model, True)(variables, x, jax.random.key(0))
    self.assertLen({tuple(row) for row in np.asarray(outputs).round(4).tolist()}, 4)

  def test_seen_as_is_one_value_with_the_derivatives_of_another(self):
    f = lambda x: seen_as(x**2, jnp.sin(x))
    self.assertEqual(float(f(3.0)), 9.0)
    np.testing.assert_allclose(jax.grad(f)(3.0), np.cos(3.0), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(jax.grad(f))(3.0), -np.sin(3.0), rtol=1e-6)
    np.testing.assert_allclose(
      jax.jvp(f, (3.0,), (2.0,))[1], 2 * np.cos(3.0), rtol=1e-6
    )

  def test_both_passes_of_sam_see_one_network(self):
    # SAM's step by hand, with the one key of the step for both gradients.
    class Dropping(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(8)(x)))
        return nn.Dense(3)(x)

    init_fn, loss_fn = classifier(Dropping())
    batch = Batch(images(4, 5), jnp.array([0, 1, 2, 0]))
    start = init_fn(jax.random.key(0), batch.inputs)
    key, rho, lr = jax.random.key(7), 0.5, 0.1
    optimizer = optax.chain(jsharp.sam(rho), optax.sgd(lr))
    algorithm = supervised(loss_fn, optimizer, key=key)
    state, _ = jax.jit(algorithm.step)(algorithm.init(start), batch)

    @jax.jit
    def gradient(params, key):
      loss = lambda p: loss_fn(start._replace(params=p), batch, True, key)[0]["loss"]
      return ravel_pytree(jax.grad(lambda p: loss(p).mean())(params))[0]

    flat, unravel = ravel_pytree(start.params)

    def by_hand(first, second):
      ascent = gradient(start.params, first)
      above = unravel(flat + rho * ascent / jnp.linalg.norm(ascent))
      return flat - lr * gradient(above, second)

    own = jax.random.fold_in(key, 0)
    actual, _ = ravel_pytree(state.params.params)
    np.testing.assert_allclose(actual, by_hand(own, own), rtol=1e-5, atol=1e-6)
    other = by_hand(own, jax.random.fold_in(key, 1))
    self.assertGreater(np.abs(actual - other).max(), 1e-3)


if __name__ == "__main__":
  absltest.main()
