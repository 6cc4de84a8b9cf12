"""Directions, lines and surfaces."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from jsharp.analysis import (
  direction,
  filter_normalise,
  line,
  per_task,
  surface,
)

KEY = jax.random.key(0)


def network(seed=0):
  """Parameters with leaves of every rank; one filter is zero."""
  generator = np.random.default_rng(seed)
  kernel = generator.normal(size=(3, 3, 2, 4)) * np.arange(4)
  return jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32),
    {
      "conv": {"kernel": kernel},
      "norm": {"scale": np.ones(4), "offset": generator.normal(size=4)},
      "head": {"kernel": generator.normal(size=(4, 3)), "bias": np.array([1.0, 2, 3])},
      "temperature": np.array(2.0),
    },
  )


def filters(leaf):
  """`[filter size, num_filters]`."""
  leaf = np.asarray(leaf, np.float64)
  return leaf.reshape(-1, leaf.shape[-1])


class DirectionTest(parameterized.TestCase):
  def test_every_filter_has_the_length_of_that_of_the_parameters(self):
    params = network()
    drawn = direction(KEY, params)
    for name in ("conv", "head"):
      wanted, found = (filters(tree[name]["kernel"]) for tree in (params, drawn))
      lengths = [np.linalg.norm(x, axis=0) for x in (wanted, found)]
      np.testing.assert_allclose(*lengths, rtol=1e-5)
      cosines = (wanted * found).sum(0) / np.maximum(lengths[0] ** 2, 1e-9)
      self.assertLess(np.abs(cosines).min(), 0.9)
    self.assertEqual(np.abs(drawn["conv"]["kernel"][..., 0]).max(), 0)
    for leaf in (drawn["norm"]["scale"], drawn["head"]["bias"], drawn["temperature"]):
      self.assertEqual(np.abs(leaf).max(), 0)

  def test_rescaled_filters_rescale_the_direction(self):
    params = network()
    scale = jnp.array([1.0, 2.0, 0.5, 8.0])
    scaled = jax.tree.map(lambda x: x, params)
    scaled["conv"]["kernel"] = params["conv"]["kernel"] * scale[None, None, None]
    np.testing.assert_allclose(
      direction(KEY, scaled)["conv"]["kernel"],
      direction(KEY, params)["conv"]["kernel"] * scale[None, None, None],
      rtol=1e-5,
    )

  def test_vectors_are_one_filter_each_if_they_are_kept(self):
    params = network()
    drawn = direction(KEY, params, keep_vectors=True)
    for get in (
      lambda tree: tree["norm"]["offset"],
      lambda tree: tree["head"]["bias"],
      lambda tree: tree["temperature"],
    ):
      np.testing.assert_allclose(
        np.linalg.norm(get(drawn)), np.linalg.norm(get(params)), rtol=1e-5
      )

  def test_orthogonal_and_normalised_at_once(self):
    params = network()
    first = direction(KEY, params, keep_vectors=True)
    second = direction(
      jax.random.key(1), params, orthogonal_to=first, keep_vectors=True
    )
    for name in ("conv", "head"):
      a, b = (filters(tree[name]["kernel"]) for tree in (first, second))
      np.testing.assert_allclose((a * b).sum(0), 0, atol=1e-4)
      np.testing.assert_allclose(
        np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=0), rtol=1e-5
      )
    self.assertAlmostEqual(
      float(jnp.vdot(first["head"]["bias"], second["head"]["bias"])), 0, delta=1e-5
    )
    self.assertEqual(second["temperature"], 0)  # One entry has no orthogonal one.

  def test_filters_of_one_entry_and_half_precision(self):
    params = {"kernel": jnp.ones((1, 3), jnp.bfloat16)}
    first = direction(KEY, params)
    self.assertEqual(np.abs(first["kernel"]).tolist(), [[1, 1, 1]])
    second = direction(jax.random.key(1), params, orthogonal_to=first)
    self.assertEqual(np.abs(second["kernel"]).max(), 0)

  def test_a_given_direction_can_be_normalised(self):
    params = network()
    again = filter_normalise(direction(KEY, params), params)
    np.testing.assert_allclose(
      again["conv"]["kernel"], direction(KEY, params)["conv"]["kernel"], rtol=1e-5
    )

  def test_refuses_a_direction_of_which_nothing_is_orthogonal(self):
    kernel = {"kernel": jax.random.normal(jax.random.key(2), (5, 4))}
    first = direction(jax.random.key(3), kernel)
    with self.assertRaisesRegex(ValueError, "use another key"):
      direction(jax.random.key(3), kernel, orthogonal_to=first)


def quadratic(params):
  return params["x"] ** 2 + 3 * params["x"] * params["y"]


ORIGIN = {"x": jnp.float32(1), "y": jnp.float32(-1)}
X, Y = ({"x": jnp.float32(x), "y": jnp.float32(1 - x)} for x in (1, 0))
ALPHAS, BETAS = np.linspace(-1, 1, 5), np.linspace(0, 2, 3)


class SurfaceTest(parameterized.TestCase):
  def expected(self, alphas, betas):
    x, y = 1 + np.asarray(alphas)[:, None], -1 + np.asarray(betas)[None, :]
    return x**2 + 3 * x * y

  @parameterized.parameters(1, 2, 4, 15, 99)
  def test_values_do_not_depend_on_the_chunk(self, chunk):
    found = surface(quadratic, ORIGIN, X, Y, ALPHAS, BETAS, chunk=chunk)
    np.testing.assert_allclose(found, self.expected(ALPHAS, BETAS), atol=1e-6)

  def test_rows_are_the_bits_of_the_whole_and_compile_once(self):
    traced = []

    def loss(params):
      traced.append(1)
      return quadratic(params)

    rows = [surface(loss, ORIGIN, X, Y, [alpha], BETAS)[0] for alpha in ALPHAS]
    self.assertLen(traced, 1)
    whole = surface(quadratic, ORIGIN, X, Y, ALPHAS, BETAS)
    np.testing.assert_array_equal(np.stack(rows), whole)

  def test_line_is_a_row(self):
    found = line(quadratic, ORIGIN, X, ALPHAS, chunk=2)
    np.testing.assert_allclose(found, self.expected(ALPHAS, [0])[:, 0], atol=1e-6)

  def test_one_curve_per_task(self):
    loss = per_task(
      lambda w, task: (task * quadratic(w), {"twice": 2 * task}), jnp.arange(3.0)
    )
    found = line(loss, ORIGIN, X, ALPHAS)
    one = self.expected(ALPHAS, [0])
    np.testing.assert_allclose(found["loss"], one * np.arange(3), atol=1e-5)
    self.assertEqual(found["twice"].shape, (5, 3))

  def test_carried_arrays_are_arguments_and_no_constants(self):
    def scaled(scale, params):
      traced.append(1)
      return scale * quadratic(params)

    traced = []
    for scale in (1.0, 2.0):
      loss = Partial(scaled, jnp.float32(scale))
      found = surface(loss, ORIGIN, X, Y, ALPHAS, BETAS)
      np.testing.assert_allclose(found, scale * self.expected(ALPHAS, BETAS), atol=1e-5)
    self.assertLen(traced, 1)

  def test_refuses_an_empty_chunk(self):
    with self.assertRaisesRegex(ValueError, "chunk must be an integer"):
      surface(quadratic, ORIGIN, X, Y, ALPHAS, BETAS, chunk=0)


if __name__ == "__main__":
  absltest.main()
