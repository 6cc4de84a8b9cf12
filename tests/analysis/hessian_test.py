"""The Hessian's products, eigenvalues and trace: closed forms, dense matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from jsharp.analysis import (
  hessian_vector_product,
  lanczos,
  largest_eigenvalues,
  trace,
)
from jsharp.analysis.hessian import HessianOptions
from jsharp.models import MLP
from tests.analysis.bowls import DIMENSION, ORIGIN, at, bowl, problem

KEY = jax.random.key(0)


def symmetric(eigenvalues, seed=0):
  generator = np.random.RandomState(seed)
  q, _ = np.linalg.qr(generator.randn(len(eigenvalues), len(eigenvalues)))
  return q @ np.diag(eigenvalues) @ q.T


class LanczosTest(parameterized.TestCase):
  def run_on(self, matrix, num_steps):
    with jax.enable_x64(True):
      matrix = jnp.asarray(matrix, jnp.float64)
      params = {"a": jnp.zeros(2, jnp.float64), "b": jnp.zeros((len(matrix) - 2,))}

      def matvec(vector):
        flat = matrix @ jnp.concatenate([vector["a"], vector["b"]])
        return {"a": flat[:2], "b": flat[2:]}

      return lanczos(matvec, params, num_steps, KEY)

  @parameterized.named_parameters(
    ("distinct", np.linspace(-3, 5, 12)),
    ("repeated", np.array([4.0, 4.0, 4.0, 1.0, 1.0, -2.0, 0.0, 0.0])),
    ("rank_one", np.array([7.0, 0, 0, 0, 0, 0])),
    ("negative", -np.arange(1.0, 7.0)),
    ("zero", np.zeros(6)),
    ("identity", np.ones(6)),
    ("wide", 10.0 ** np.arange(-6, 6)),
  )
  def test_all_steps_give_all_eigenvalues(self, eigenvalues):
    found = self.run_on(symmetric(eigenvalues), 100)
    expected = np.sort(eigenvalues)[::-1]
    scale = max(np.abs(eigenvalues).max(), 1e-300)
    np.testing.assert_allclose(found.values, expected, atol=1e-12 * scale)

  def test_residuals_bound_the_error_and_shrink(self):
    eigenvalues = np.concatenate([np.linspace(0, 1, 60), [3.0]])
    matrix = symmetric(eigenvalues)
    errors = []
    for num_steps in (3, 6, 12):
      found = self.run_on(matrix, num_steps)
      self.assertLen(found.values, num_steps)
      nearest = np.abs(found.values[:, None] - eigenvalues[None, :]).min(1)
      self.assertTrue(np.all(nearest <= found.residuals + 1e-12))
      errors.append(abs(found.values[0] - 3))
    self.assertGreater(errors[0], 10 * errors[1])
    self.assertLess(errors[2], 1e-6)

  def test_stays_orthogonal_in_float32(self):
    # Without reorthogonalisation the largest one is found several times.
    eigenvalues = np.concatenate([np.linspace(0, 1, 100), [100.0]])
    matrix = jnp.asarray(symmetric(eigenvalues), jnp.float32)
    found = lanczos(lambda v: matrix @ v, jnp.zeros(101), 40, KEY)
    self.assertAlmostEqual(found.values[0], 100.0, delta=1e-3)
    self.assertLess(found.values[1], 1.01)

  def test_can_be_stopped_between_products(self):
    calls = []

    def between():
      calls.append(1)
      if len(calls) == 2:
        raise InterruptedError

    with self.assertRaises(InterruptedError):
      lanczos(lambda v: v * jnp.arange(5.0), jnp.zeros(5), 4, KEY, between=between)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, "num_steps must be an integer"):
      lanczos(lambda v: v, jnp.zeros(2), 0, KEY)
    mixed = {"a": jnp.zeros(2), "b": jnp.zeros(2, jnp.bfloat16)}
    with self.assertRaisesRegex(ValueError, "dtypes .*bfloat16.*cast all leaves"):
      lanczos(lambda v: v, mixed, 1, KEY)


@functools.cache
def network():
  """A loss, parameters, batches; their mean loss of flat parameters; its Hessian."""
  model = MLP((5, 4, 3))
  inputs = jax.random.normal(jax.random.key(1), (4, 6, 2))
  targets = jax.random.normal(jax.random.key(2), (4, 6, 3))
  params = jax.jit(model.init)(KEY, inputs[0])["params"]
  flat, unravel = jax.flatten_util.ravel_pytree(params)

  def loss_fn(params, batch, context):
    outputs = model.apply({"params": params}, batch[0])
    return context * jnp.mean((jnp.tanh(outputs) - batch[1]) ** 2)

  def whole(flat):
    each = jax.vmap(lambda *batch: loss_fn(unravel(flat), batch, 2.0))
    return each(inputs, targets).mean()

  dense = np.asarray(jax.jit(jax.hessian(whole))(flat), np.float64)
  return loss_fn, params, (inputs, targets), whole, dense


class LossTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.loss_fn, self.params, self.batches, self.whole, self.dense = network()
    self.flat, self.unravel = jax.flatten_util.ravel_pytree(self.params)

  def test_product_equals_the_dense_hessian(self):
    vector = jax.random.normal(jax.random.key(5), self.flat.shape)
    matvec = hessian_vector_product(
      lambda params: self.whole(jax.flatten_util.ravel_pytree(params)[0]), self.params
    )
    product, _ = jax.flatten_util.ravel_pytree(matvec(self.unravel(vector)))
    np.testing.assert_allclose(product, self.dense @ vector, rtol=1e-3, atol=1e-5)

  def test_eigenvalues_of_a_network_equal_the_dense_ones(self):
    found = largest_eigenvalues(
      self.loss_fn,
      self.params,
      self.batches,
      num_eigenvalues=4,
      num_steps=30,
      key=KEY,
      context=jnp.float32(2.0),
    )
    expected = np.linalg.eigvalsh(self.dense)[::-1][:4]
    np.testing.assert_allclose(found.values, expected, rtol=1e-3)
    self.assertTrue(np.all(found.residuals < 1e-3 * expected[0]))

  def test_without_batches_the_loss_takes_the_parameters_alone(self):
    _, _, loss = problem()
    found = largest_eigenvalues(loss, ORIGIN, num_eigenvalues=3, num_steps=6, key=KEY)
    np.testing.assert_allclose(found.values, [6, 3, 2], atol=1e-4)

  def test_figures_of_a_result(self):
    wanted = HessianOptions(hessian_eigenvalues=2, hessian_steps=9)
    arguments = (self.loss_fn, self.params, self.batches)
    calls = []
    figures = wanted.figures(
      "end",
      *arguments,
      context=jnp.float32(2.0),
      between=lambda: calls.append(1),
    )
    expected = largest_eigenvalues(
      *arguments,
      num_eigenvalues=2,
      num_steps=9,
      key=jax.random.key(0),
      context=jnp.float32(2.0),
    )
    self.assertEqual(
      figures,
      {
        "hessian_eigenvalues_end": expected.values.tolist(),
        "hessian_residuals_end": expected.residuals.tolist(),
      },
    )
    self.assertLen(calls, 9)
    none = HessianOptions(hessian_eigenvalues=0)
    self.assertEqual(none.figures("end", *arguments), {})

  def test_refuses_fewer_steps_than_eigenvalues(self):
    with self.assertRaisesRegex(
      ValueError, "num_steps must be an integer of at least 4"
    ):
      largest_eigenvalues(
        self.loss_fn, self.params, (), num_eigenvalues=4, num_steps=3, key=KEY
      )
    with self.assertRaisesRegex(ValueError, "num_steps .* at least 3, got 2"):
      largest_eigenvalues(jnp.sum, jnp.ones(2), num_eigenvalues=3, num_steps=2, key=KEY)


class TraceTest(parameterized.TestCase):
  def test_trace_is_exact_where_the_hessian_is_diagonal(self):
    loss = Partial(
      bowl, jnp.diag(jnp.arange(6, dtype=jnp.float32) - 2), jnp.ones(DIMENSION)
    )
    found = trace(loss, at(np.ones(6)), num_samples=3, key=KEY)
    self.assertEqual((found.value, found.standard_error), (3.0, 0.0))

  def test_trace_lies_within_its_error(self):
    curvature, _, loss = problem()
    found = trace(loss, ORIGIN, num_samples=400, key=KEY)
    # The variance of Hutchinson's estimate is twice the squares off the diagonal.
    off = curvature - np.diag(np.diag(curvature))
    exact = np.sqrt(2 * (off**2).sum() / 400)
    self.assertAlmostEqual(found.standard_error, exact, delta=0.15 * exact)
    self.assertLess(abs(found.value - np.trace(curvature)), 4 * exact)

  def test_the_mean_over_many_batches_is_right_in_half_precision(self):
    found = largest_eigenvalues(
      lambda w, batch, context: (batch * w * w).sum() / 2,
      jnp.zeros(1, jnp.bfloat16),
      jnp.ones((512, 1), jnp.bfloat16),
      key=KEY,
    )
    np.testing.assert_array_equal(found.values, [1.0])

  def test_refuses_a_single_sample(self):
    with self.assertRaisesRegex(ValueError, "num_samples .* at least 2, got 1"):
      trace(jnp.sum, jnp.ones(2), num_samples=1, key=KEY)

  def test_can_be_stopped_between_samples(self):
    def stop():
      raise InterruptedError

    with self.assertRaises(InterruptedError):
      trace(problem()[2], ORIGIN, num_samples=2, key=KEY, between=stop)


if __name__ == "__main__":
  absltest.main()
