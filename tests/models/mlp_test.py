"""MLP: the sinusoid network and the Omniglot network without convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.models import MLP, all_but_norm, as_functions


class MLPTest(parameterized.TestCase):
  def test_sinusoid_network_is_its_formula(self):
    init_fn, apply_fn = as_functions(MLP((40, 40, 1)))
    x = jax.random.normal(jax.random.key(0), (7, 1))
    params = jax.jit(init_fn)(jax.random.key(1), x)
    self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(params)), 1_761)
    hidden = np.asarray(x)
    for layer in range(3):
      p = jax.tree.map(np.asarray, params[f"dense_{layer}"])
      hidden = hidden @ p["kernel"] + p["bias"]
      if layer < 2:
        hidden = np.maximum(hidden, 0)
    np.testing.assert_allclose(apply_fn(params, x), hidden, atol=1e-6)
    self.assertTrue(all(jax.tree.leaves(all_but_norm(params))))

  def test_activation_is_an_attribute(self):
    init_fn, apply_fn = as_functions(MLP((4, 1), activation=jnp.tanh))
    x = jax.random.normal(jax.random.key(0), (7, 2))
    params = jax.jit(init_fn)(jax.random.key(1), x)
    first, last = (
      jax.tree.map(np.asarray, params[name]) for name in ("dense_0", "dense_1")
    )
    hidden = np.tanh(np.asarray(x) @ first["kernel"] + first["bias"])
    expected = hidden @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(apply_fn(params, x), expected, atol=1e-6)

  def test_omniglot_network_flattens_and_normalises(self):
    init_fn, apply_fn = as_functions(MLP((256, 128, 64, 64, 5), normalize=True))
    images = jax.random.normal(jax.random.key(0), (10, 28, 28, 1))
    params = jax.jit(init_fn)(jax.random.key(1), images)
    apply_fn = jax.jit(apply_fn)
    self.assertEqual(params["dense_0"]["kernel"].shape, (784, 256))
    sizes = {k: v["scale"].size for k, v in params.items() if "norm" in k}
    self.assertEqual(sizes, {"norm_0": 256, "norm_1": 128, "norm_2": 64, "norm_3": 64})
    outputs = apply_fn(params, images)
    self.assertEqual(outputs.shape, (10, 5))
    # Batch statistics take out a common shift and scale of the images.
    np.testing.assert_allclose(apply_fn(params, 10 * images + 3), outputs, atol=1e-3)

  def test_num_statistics_leaves_each_query_alone(self):
    init_fn, apply_fn = as_functions(MLP((8, 2), normalize=True))
    x = jax.random.normal(jax.random.key(0), (5, 3))
    params = jax.jit(init_fn)(jax.random.key(1), x)
    apply_fn = jax.jit(apply_fn, static_argnums=2)
    np.testing.assert_allclose(
      apply_fn(params, x, 3)[4], apply_fn(params, x[jnp.array([0, 1, 2, 4])], 3)[3],
      atol=1e-6,
    )  # fmt: skip
    self.assertGreater(
      float(jnp.abs(apply_fn(params, x, 3) - apply_fn(params, x)).max()), 0.01
    )

  @parameterized.parameters(
    ((), (3, 1), jnp.float32, "features"),
    ((4, 1), (3,), jnp.float32, "at least two axes"),
    ((4, 1), (3, 1), jnp.int32, "int32"),
  )
  def test_bad_arguments_are_named(self, features, shape, dtype, message):
    init_fn, _ = as_functions(MLP(features))
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(init_fn, jax.random.key(0), jnp.zeros(shape, dtype))


if __name__ == "__main__":
  absltest.main()
