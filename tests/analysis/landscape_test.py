"""Directions, lines, surfaces, projections and their pictures."""

import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial
from matplotlib.figure import Figure

from jsharp.analysis import (
  direction,
  drawing,
  filter_normalise,
  line,
  per_task,
  principal_directions,
  project,
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


class ProjectionTest(absltest.TestCase):
  def test_least_squares_and_the_share_explained(self):
    generator = np.random.default_rng(0)
    first, second, centre, *points = (
      {"a": x[:2], "b": x[2:].reshape(2, 2)} for x in generator.normal(size=(8, 6))
    )
    found = project(points, centre, first, second)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in tree.values()])
    plane = np.stack([flat(first), flat(second)], 1)
    for number, point in enumerate(points):
      away = flat(point) - flat(centre)
      best = np.linalg.solve(plane.T @ plane, plane.T @ away)
      np.testing.assert_allclose(found.coordinates[number], best, rtol=1e-10)
      left = np.linalg.norm(away - plane @ best) / np.linalg.norm(away)
      np.testing.assert_allclose(found.explained[number], 1 - left**2, rtol=1e-10)
    self.assertEqual(project([centre], centre, first, second).explained, 1)

  def test_principal_directions_explain_a_trajectory_in_a_plane(self):
    generator = np.random.default_rng(0)
    centre, u, v = (jnp.asarray(x, jnp.float32) for x in generator.normal(size=(3, 7)))
    points = [centre + a * u + b * v for a, b in ((3.0, 0.0), (2.0, 1.0), (0.5, 0.5))]
    found = principal_directions(points, centre)
    np.testing.assert_allclose(found.explained.sum(), 1, atol=1e-6)
    seen = project(points, centre, found.first, found.second)
    np.testing.assert_allclose(seen.explained, 1, atol=1e-6)
    self.assertGreater(found.explained[0], found.explained[1])
    np.testing.assert_allclose(jnp.linalg.norm(found.first), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.vdot(found.first, found.second), 0, atol=1e-6)

  def test_refusals(self):
    w = jnp.array([1.0, 2.0])
    with self.assertRaisesRegex(ValueError, "span no plane.*orthogonal_to"):
      project([w], w, w, 2 * w)
    with self.assertRaisesRegex(ValueError, "on one line"):
      principal_directions([w, 2 * w], 0 * w)
    # A line that rounding alone leaves, away from the origin.
    centre = {"w": jax.random.normal(jax.random.key(0), (1000,))}
    way = {"w": jax.random.normal(jax.random.key(1), (1000,))}
    points = [
      jax.tree.map(lambda c, d: c + size * d, centre, way)  # noqa: B023
      for size in (0.1, 0.3, 0.7)
    ]
    with self.assertRaisesRegex(ValueError, "on one line"):
      principal_directions(points, centre)
    third = jax.tree.map(lambda x: x / 3, way)
    with self.assertRaisesRegex(ValueError, "span no plane"):
      project(points, centre, way, third)
    kernel = {"kernel": jax.random.normal(jax.random.key(2), (5, 4))}
    first = direction(jax.random.key(3), kernel)
    with self.assertRaisesRegex(ValueError, "use another key"):
      direction(jax.random.key(3), kernel, orthogonal_to=first)


class DrawingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enter_context(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / "picture.png"
    axis = np.linspace(-1, 1, 7)
    bowl = axis[:, None] ** 2 + 2 * axis[None, :] ** 2 + 0.1
    self.axis, self.panels = axis, {"maml": bowl, "sharp_maml": 0.5 * bowl}

  def check(self, least_width):
    from PIL import Image

    with Image.open(self.path, formats=["PNG"]) as image:
      self.assertGreaterEqual(image.width, least_width)
      self.assertGreater(len(image.convert("L").getcolors()), 20)

  def test_contours_share_one_scale(self):
    with mock.patch.object(Figure, "colorbar", autospec=True) as colorbar:
      drawing.plot_contours(
        self.panels,
        self.axis,
        self.axis,
        self.path,
        title="two",
        trajectories={"maml": np.array([[-0.5, 0.5], [0.0, 0.0]])},
      )
    self.assertEqual(colorbar.call_count, 1)
    drawing.plot_contours(self.panels, self.axis, self.axis, self.path, title="two")
    self.check(900)

  @parameterized.parameters(1, 3)
  def test_surfaces(self, num_panels):
    bowl = self.panels["maml"].copy()
    bowl[0, 0] = np.nan
    panels = {f"run {number}": bowl for number in range(num_panels)}
    drawing.plot_surfaces(
      panels, self.axis, self.axis, self.path, title="one", ceiling=1.5
    )
    self.check(500)

  def test_lines_with_a_band(self):
    lines = {
      name: np.stack([bowl[:, 3], 2 * bowl[:, 3]], 1)
      for name, bowl in self.panels.items()
    }
    drawing.plot_lines(lines, self.axis, self.path, title="lines")
    self.check(500)

  def test_levels_are_logarithmic_where_the_range_is_wide(self):
    flat = drawing.levels([np.array([1.0, 2.0])])
    np.testing.assert_allclose(np.diff(flat), np.diff(flat)[0])
    wide = drawing.levels([np.array([0.01, 1.0]), np.array([100.0, np.nan])])
    np.testing.assert_allclose(wide[1:] / wide[:-1], wide[1] / wide[0])
    self.assertAlmostEqual(wide[-1], 100)
    self.assertLess(drawing.levels([np.ones(3)])[0], 1)
    with self.assertRaisesRegex(ValueError, "no finite value"):
      drawing.levels([np.array([np.nan])])


if __name__ == "__main__":
  absltest.main()
