"""Trajectories in a plane: projection and principal directions."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jsharp.analysis import principal_directions, project


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
    with self.assertRaisesRegex(ValueError, "do not span a plane.*orthogonal_to"):
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
    with self.assertRaisesRegex(ValueError, "do not span a plane"):
      project(points, centre, way, third)


if __name__ == "__main__":
  absltest.main()
