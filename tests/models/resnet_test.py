"""Tests of the residual networks: sizes of the papers, statistics, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.models import ResNet, WideResNet
from jsharp.models.resnet import ResNetOptions, WideResNetOptions


def init(model, shape, train=False):
  x = jnp.zeros(shape)
  return _jitted_init(model, train)(jax.random.key(0), x)


@functools.cache
def _jitted_init(model, train):
  return jax.jit(lambda key, x: model.init(key, x, train))


def convolution(x, w, stride):
  return jax.lax.conv_general_dilated(
    x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


# What a normalisation does that has seen nothing.
NORMALISED = np.float32(1 / np.sqrt(1 + 1e-5))


class ResNetTest(parameterized.TestCase):
  @parameterized.parameters(
    (ResNet(10, depth=20), 269_722),  # 0.27 M in the paper
    (ResNet(10, depth=32), 464_154),  # 0.46 M
    (ResNet(10, depth=56), 853_018),  # 0.85 M
    (WideResNet(10, depth=28, widen=10), 36_479_194),  # 36.5 M
    (WideResNet(10, depth=16, widen=4), 2_748_890),  # 2.7 M
    (WideResNet(10, depth=40, widen=4), 8_949_210),  # 8.9 M
  )
  def test_as_many_parameters_as_in_the_papers(self, model, expected):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), x)
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    self.assertEqual(counted, expected)

  @parameterized.parameters(ResNet(3, depth=8), WideResNet(3, depth=10, widen=1))
  def test_only_a_training_pass_changes_the_statistics(self, model):
    x = jax.random.normal(jax.random.key(1), (4, 9, 9, 1))  # odd sides too
    variables = init(model, x.shape)
    apply = jax.jit(
      lambda variables, train: model.apply(
        variables, x, train, mutable=["batch_stats"] if train else []
      ),
      static_argnums=1,
    )
    outputs, changed = apply(variables, False)
    self.assertEqual((outputs.shape, changed), ((4, 3), {}))
    _, changed = apply(variables, True)
    before, after = variables["batch_stats"], changed["batch_stats"]
    self.assertEqual(jax.tree.structure(before), jax.tree.structure(after))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
      self.assertFalse(np.array_equal(old, new))

  def test_every_layer_learns_and_norms_are_named_so(self):
    model = WideResNet(3, depth=10, widen=1)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    variables = init(model, x.shape)

    def loss(params):
      outputs, _ = model.apply(
        {**variables, "params": params}, x, True, mutable=["batch_stats"]
      )
      return jnp.sum(outputs[:, 0])

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.all(np.isfinite(leaf)), name)
      self.assertTrue("norm" in name or "head" in name or np.any(leaf), name)
      self.assertEqual("norm" in name, path[-1].key in ("scale", "offset"), name)

  def test_equals_the_equations_of_a_block(self):
    model = ResNet(2, depth=8)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = init(model, x.shape)
    params = variables["params"]

    def conv(x, w, stride=1):
      return NORMALISED * convolution(x, w["kernel"], stride)

    @jax.jit
    def equations(params, x):
      x = jax.nn.relu(conv(x, params["conv"]))
      for stage in range(3):
        block = params[f"stage_{stage}_block_0"]
        stride = 2 if stage else 1
        y = jax.nn.relu(conv(x, block["conv_0"], stride))
        y = conv(y, block["conv_1"])
        short = x[:, ::stride, ::stride]
        short = jnp.concatenate(
          [short, jnp.zeros((*short.shape[:3], y.shape[3] - x.shape[3]))], axis=3
        )
        x = jax.nn.relu(y + short)
      return x.mean((1, 2)) @ params["head"]["kernel"]

    actual = jax.jit(model.apply, static_argnums=2)(variables, x, False)
    np.testing.assert_allclose(actual, equations(params, x), rtol=1e-4, atol=1e-5)

  def test_equals_the_equations_of_a_wide_block(self):
    model = WideResNet(2, depth=10, widen=2)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = init(model, x.shape)
    params = variables["params"]

    @jax.jit
    def equations(params, x):
      x = convolution(x, params["conv"]["kernel"], 1)
      for stage in range(3):
        block = params[f"stage_{stage}_block_0"]
        stride = 2 if stage else 1
        y = jax.nn.relu(NORMALISED * x)
        short = convolution(y, block["shortcut"][None, None], stride)
        y = convolution(y, block["conv_0"]["kernel"], stride)
        y = jax.nn.relu(NORMALISED * y)
        x = short + convolution(y, block["conv_1"]["kernel"], 1)
      x = jax.nn.relu(NORMALISED * x)
      return x.mean((1, 2)) @ params["head"]["kernel"]

    actual = jax.jit(model.apply, static_argnums=2)(variables, x, False)
    np.testing.assert_allclose(actual, equations(params, x), rtol=1e-4, atol=1e-5)

  @parameterized.parameters(
    (ResNet(3, depth=10), (1, 8, 8, 1), "depth must be 6n \\+ 2 .* got 10. Use 8"),
    (WideResNet(3, depth=4), (1, 8, 8, 1), "depth must be 6n \\+ 4 .* got 4. Use 10"),
    (WideResNet(3, depth=10, widen=0), (1, 8, 8, 1), "widen must be at least 1; got 0"),
    (ResNet(3, depth=8), (8, 8, 1), "inputs must be a float array"),
  )
  def test_refusals(self, model, shape, message):
    with self.assertRaisesRegex(ValueError, message):
      init(model, shape)


class OptionsTest(parameterized.TestCase):
  @parameterized.parameters(
    (ResNetOptions(), ResNet(3, depth=8), "resnet8"),
    (ResNetOptions(depth=20), ResNet(3, depth=20), "resnet20"),
    (WideResNetOptions(), WideResNet(3, depth=10, widen=2), "wide_resnet10x2"),
    (
      WideResNetOptions(depth=16, widen=4),
      WideResNet(3, depth=16, widen=4),
      "wide_resnet16x4",
    ),
  )
  def test_the_module_and_the_name_of_its_size(self, description, module, label):
    self.assertEqual(description.module(3), module)
    self.assertEqual(description.label, label)

  @parameterized.parameters(
    (ResNetOptions, {"depth": 9}, "depth must be 6n \\+ 2 .* got 9. Use 8"),
    (WideResNetOptions, {"depth": 8}, "depth must be 6n \\+ 4 .* got 8. Use 10"),
    (WideResNetOptions, {"widen": 0}, "widen=0: must be .* at least 1"),
  )
  def test_refusals(self, cls, values, message):
    with self.assertRaisesRegex(ValueError, message):
      cls(**values)


if __name__ == "__main__":
  absltest.main()
