"""A backbone as an ordinary classifier: the same function as the few-shot network."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.models import Conv4, ImageNetResNet, ResNet12, WideResNet
from jsharp.models.drop_block import drop_blocks
from jsharp.models.pretraining import Pretraining, cosines, unit
from jsharp.models.resnet12 import ResNet12Classifier, ResNet12Options


def images(size=16):
  return jnp.asarray(np.random.default_rng(0).uniform(size=(3, size, size, 3)), "f4")


def joined(params, statistics):
  """Parameters of a frozen network from those of a pretrained one."""
  made = {name: dict(part) for name, part in params.items() if name != "head"}
  for name, part in statistics.items():
    for layer, values in part.items():
      if isinstance(values, dict):
        made[name][layer] = {**made[name][layer], **values}
      else:
        made[name][layer] = values
  return made


class PretrainingTest(parameterized.TestCase):
  @parameterized.parameters(
    (Conv4, {"num_filters": 4}),
    (Conv4, {"num_filters": 4, "stride": 2}),
    (ResNet12, {"widths": (3, 4)}),
    (WideResNet, {"depth": 10, "widen": 1}),
    (ImageNetResNet, {"depth": 18, "width": 2}),
  )
  def test_the_frozen_network_is_the_pretrained_one(self, cls, options):
    x = images()
    model = Pretraining(cls(None, norm="running", **options), num_outputs=6)
    variables = model.init(jax.random.key(0), x, False)
    _, changed = model.apply(variables, x, True, mutable=["batch_stats"])
    statistics = changed["batch_stats"]
    frozen = cls(6, norm="frozen", **options)
    params = joined(variables["params"], statistics)
    params["head"] = variables["params"]["head"]
    # Scales that start at zero would hide half of a block.
    params, variables = (
      jax.tree.map(lambda x: x + 0.1, tree) for tree in (params, variables)
    )
    statistics = jax.tree.map(lambda x: x + 0.1, statistics)
    jax.tree.map(
      lambda a, b: self.assertEqual(a.shape, b.shape),
      params,
      frozen.init(jax.random.key(1), x)["params"],
    )
    np.testing.assert_allclose(
      frozen.apply({"params": params}, x),
      model.apply({"params": variables["params"], "batch_stats": statistics}, x, False),
      rtol=1e-5,
      atol=1e-5,
    )

  @parameterized.parameters((200, 2.0), (201, 10.0))
  def test_the_cosine_head(self, num_outputs, scale):
    model = Pretraining(
      Conv4(None, num_filters=8, stride=2, norm="running"), num_outputs, "cosine"
    )
    x = images(4)
    variables = model.init(jax.random.key(0), x, False)
    self.assertEqual(list(variables["params"]["head"]), ["kernel"])
    features = Conv4(None, num_filters=8, stride=2, norm="running").apply(
      {
        "params": {k: v for k, v in variables["params"].items() if k != "head"},
        "batch_stats": variables["batch_stats"],
      },
      x,
      False,
    )
    weights = np.asarray(variables["params"]["head"]["kernel"], np.float64)
    rows = np.asarray(features, np.float64)
    expected = rows @ weights / np.linalg.norm(weights, axis=0)
    expected *= scale / np.linalg.norm(rows, axis=1, keepdims=True)
    found = model.apply(variables, x, False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

  def test_unit_vectors_keep_their_digits_and_zero_has_a_gradient(self):
    rows = jnp.array([[3e-20, 4e-20], [3e30, 4e30], [0.0, 0.0]])
    # A length below 1e-12 counts as none.
    np.testing.assert_allclose(unit(rows), [[0, 0], [0.6, 0.8], [0, 0]], rtol=1e-6)
    grads = jax.grad(lambda x: unit(x).sum())(rows)
    self.assertTrue(bool(jnp.isfinite(grads).all()))
    square = jnp.array([[3.0, 4.0], [5.0, 12.0]])
    np.testing.assert_allclose(
      cosines(square, square.T), [[1, 63 / 65], [63 / 65, 1]], rtol=1e-6
    )

  def test_group_norm_makes_the_policies_one(self):
    x = images()
    model = ResNet12Options(norm="group", widths="narrow").module(None)
    small = model.clone(widths=(4, 4))
    params = small.init(jax.random.key(0), x)
    together = small.apply(params, x)
    alone = jnp.concatenate([small.apply(params, x[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)

  def test_refuses_a_norm_that_there_is_not(self):
    with self.assertRaisesRegex(ValueError, "norm='median'; choose batch"):
      Conv4(5, norm="median").init(jax.random.key(0), images())


class DropBlockTest(absltest.TestCase):
  def test_squares_and_their_share(self):
    x = jnp.ones((4000, 11, 11, 1))
    dropped = np.asarray(drop_blocks(jax.random.key(3), x, 0.05, size=5))
    share = (dropped == 0).mean()
    # Squares overlap: 1 - (1 - gamma) ** 25 in the middle, less at the rim.
    self.assertBetween(share, 0.044, 0.052)
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=1e-5)
    for image in dropped[:40, :, :, 0] == 0:
      for row, column in np.argwhere(image):
        square = any(
          image[r : r + 5, c : c + 5].all() and image[r : r + 5, c : c + 5].size == 25
          for r in range(max(0, row - 4), row + 1)
          for c in range(max(0, column - 4), column + 1)
        )
        self.assertTrue(square)

  def test_a_small_map_is_dropped_whole(self):
    dropped = np.asarray(
      drop_blocks(jax.random.key(0), jnp.ones((50, 2, 3, 4)), 0.3, size=5)
    )
    whole = (dropped == 0).reshape(50, -1, 4)
    # Squares of side 2, the map's shorter side.
    self.assertTrue((whole.any(1) <= (whole.sum(1) >= 4)).all())

  def test_only_training_drops_and_passes_are_counted(self):
    network = ResNet12Classifier(drop_rate=0.5, widths="narrow")
    backbone = network.backbone().clone(widths=(2, 2, 4, 4))
    model = Pretraining(backbone, 3)
    x = images(32)
    variables = model.init(jax.random.key(0), x, False)
    counted = variables["batch_stats"]
    self.assertEqual(counted["drop_2"]["passes"], 0.0)

    def trained(key, passes):
      some = {
        **counted,
        **{name: {"passes": jnp.float32(passes)} for name in ("drop_2", "drop_3")},
      }
      return model.apply(
        {**variables, "batch_stats": some},
        x,
        True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(key)},
      )

    first, changed = trained(0, 20_000)
    again, _ = trained(0, 20_000)
    other, _ = trained(1, 20_000)
    self.assertEqual(changed["batch_stats"]["drop_3"]["passes"], 20_001.0)
    np.testing.assert_array_equal(first, again)
    self.assertGreater(float(jnp.abs(first - other).max()), 1e-6)
    plain = model.apply(variables, x, False)
    np.testing.assert_array_equal(plain, model.apply(variables, x, False))


if __name__ == "__main__":
  absltest.main()
