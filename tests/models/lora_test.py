"""Low-rank adapters: what they change, what moves, and MAML over them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jsharp
from jsharp import losses, models
from jsharp.models.lora import Adapter


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def params():
  return {
    "conv": random(3, 3, 2, 5),
    "dense": {"kernel": random(6, 4, seed=1), "bias": random(4, seed=2)},
  }


def apply_fn(params, x):
  return jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"][None])


class LoraTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def made(self, rank=2, **options):
    return models.with_adapters(jax.random.key(0), params(), rank=rank, **options)

  def test_matrices_get_adapters_and_begin_as_they_are(self):
    made = self.made(rank=5)
    shapes = {name: [x.shape for x in pair] for name, pair in made.adapters.items()}
    self.assertEqual(
      shapes,
      {"['conv']": [(18, 5), (5, 5)], "['dense']['kernel']": [(6, 4), (4, 4)]},
    )
    jax.tree.map(np.testing.assert_array_equal, models.merge_adapters(made), params())

  def test_the_change_is_the_scaled_product(self):
    made = self.made()
    moved = {
      name: Adapter(pair.down, random(*pair.up.shape, seed=7))
      for name, pair in made.adapters.items()
    }
    found = models.merge_adapters(made._replace(adapters=moved), scale=0.5)
    for name, leaf, new in (
      ("['conv']", made.params["conv"], found["conv"]),
      (
        "['dense']['kernel']",
        made.params["dense"]["kernel"],
        found["dense"]["kernel"],
      ),
    ):
      product = np.asarray(moved[name].down) @ np.asarray(moved[name].up)
      expected = leaf + 0.5 * product.reshape(leaf.shape)
      np.testing.assert_allclose(new, expected, rtol=1e-12)
    np.testing.assert_array_equal(found["dense"]["bias"], params()["dense"]["bias"])

  def test_where_and_frozen(self):
    def dense_alone(tree):
      return {"conv": False, "dense": {"kernel": True, "bias": False}}

    made = self.made(where=dense_alone)
    self.assertEqual(list(made.adapters), ["['dense']['kernel']"])
    x = random(3, 6, seed=4)
    for frozen in (False, True):
      apply_lora = models.lora(apply_fn, frozen=frozen)
      grads = jax.grad(lambda tree, f=apply_lora: (f(tree, x) ** 2).sum())(made)
      still = float(jnp.abs(grads.params["dense"]["kernel"]).max()) == 0
      self.assertEqual(still, frozen)
      # By the chain rule, of the gradient by the whole matrix.
      whole = jax.grad(lambda tree: (apply_fn(tree, x) ** 2).sum())(made.params)
      pair = made.adapters["['dense']['kernel']"]
      np.testing.assert_allclose(
        grads.adapters["['dense']['kernel']"].up,
        pair.down.T @ whole["dense"]["kernel"],
        rtol=1e-10,
      )

  def test_maml_adapts_the_adapters_and_learns_all(self):
    start = self.made()
    algorithm = jsharp.maml(
      losses.batch_loss(models.lora(apply_fn), losses.cross_entropy),
      optax.sgd(0.5),
      optax.sgd(0.1),
      num_inner_steps=2,
      adapted_mask=models.adapters_alone,
    )
    batch = jsharp.Batch(random(6, 6, seed=3), jnp.arange(6) % 4)
    adapted = algorithm.adapt(start, batch)
    jax.tree.map(np.testing.assert_array_equal, adapted.params, start.params)
    one = algorithm.adapt(start, batch, num_steps=1).adapters["['dense']['kernel']"]
    first = start.adapters["['dense']['kernel']"]
    # The first step moves `up` alone: its zeros are the gradient's factor.
    np.testing.assert_array_equal(one.down, first.down)
    self.assertGreater(float(jnp.abs(one.up).max()), 1e-3)
    tasks = jax.tree.map(lambda x: x[None], jsharp.Task(batch, batch))
    state, _ = algorithm.step(algorithm.init(start), tasks)
    for name in ("kernel", "bias"):
      moved = state.params.params["dense"][name] - start.params["dense"][name]
      self.assertGreater(float(jnp.abs(moved).max()), 1e-4)

  def test_integers_get_no_adapter(self):
    mixed = {"kernel": random(3, 4), "table": jnp.ones((3, 4), jnp.int32)}
    made = models.with_adapters(jax.random.key(0), mixed, rank=1)
    self.assertEqual(list(made.adapters), ["['kernel']"])
    with self.assertRaisesRegex(ValueError, r"\['table'\], int32\[3, 4\], but"):
      models.with_adapters(
        jax.random.key(0), mixed, rank=1, where=lambda tree: dict.fromkeys(tree, True)
      )

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "bias.*and two axes; leave it out"):
      self.made(where=lambda tree: jax.tree.map(lambda _: True, tree))
    with self.assertRaisesRegex(ValueError, "where returns 2 bools for 3 parameters"):
      self.made(where=lambda tree: {"conv": True, "dense": True})
    with self.assertRaisesRegex(ValueError, "where selects no parameter; select"):
      self.made(where=lambda tree: jax.tree.map(lambda _: False, tree))
    with self.assertRaisesRegex(ValueError, "rank"):
      self.made(rank=0)


if __name__ == "__main__":
  absltest.main()
