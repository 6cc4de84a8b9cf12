"""The installed JAX is not one that computes wrong results on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest


class JaxVersionTest(absltest.TestCase):
  def test_a_reduction_after_a_batched_matrix_vector_product(self):
    # JAX 0.10.2 is wrong from row 32768 on.
    rows = 40_000
    generator = np.random.default_rng(0)
    matrices = generator.normal(size=(rows, 4, 4)).astype(np.float32)
    vectors = generator.normal(size=(rows, 4)).astype(np.float32)
    compute = jax.jit(lambda a, x: jnp.sum(jax.vmap(jnp.matmul)(a, x), axis=-1))
    expected = np.einsum("nij,nj->n", matrices.astype(float), vectors.astype(float))
    np.testing.assert_allclose(compute(matrices, vectors), expected, atol=1e-4)

  def test_the_bad_versions_are_not_installed(self):
    self.assertNotIn(jax.__version__, ("0.10.1", "0.10.2"))


if __name__ == "__main__":
  absltest.main()
