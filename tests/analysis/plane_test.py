"""Planes through the parameters: their directions, axes and rows."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.analysis import Plane, direction, line, square_axes, surface

KEY = jax.random.key(3)
PARAMS = {
  "kernel": jax.random.normal(jax.random.key(0), (4, 3)),
  "bias": jnp.ones(3),
}


def loss(params):
  kernel = params["kernel"]
  return {"loss": jnp.stack([(kernel**2).sum(), kernel.sum()])}


class PlaneTest(parameterized.TestCase):
  @parameterized.parameters({}, {"orthogonal": True}, {"keep_vectors": True})
  def test_random_directions(self, **options):
    first, second = Plane(**options).directions(KEY, PARAMS)
    keep = {"keep_vectors": options.get("keep_vectors", False)}
    keys = [jax.random.fold_in(KEY, number) for number in range(2)]
    other = first if options.get("orthogonal") else None
    for found, wanted in (
      (first, direction(keys[0], PARAMS, **keep)),
      (second, direction(keys[1], PARAMS, orthogonal_to=other, **keep)),
    ):
      jax.tree.map(np.testing.assert_array_equal, found, wanted)

  def test_directions_of_a_path(self):
    path = [
      {"kernel": PARAMS["kernel"].at[row, 0].add(by), "bias": PARAMS["bias"]}
      for row, by in ((1, 4.0), (2, 1.0))
    ]
    plane = Plane(plane="path")
    first, second = plane.directions(KEY, PARAMS, path)
    self.assertAlmostEqual(abs(float(first["kernel"][1, 0])), 1, places=5)
    self.assertAlmostEqual(abs(float(second["kernel"][2, 0])), 1, places=5)
    seen = plane.project(KEY, PARAMS, path)
    np.testing.assert_allclose(np.abs(seen.coordinates), [[4, 0], [0, 1]], atol=1e-5)
    with self.assertRaisesRegex(ValueError, "one line"):
      plane.directions(KEY, PARAMS, path[:1] * 2)

  def test_rows_are_those_of_the_surface(self):
    plane = Plane(grid=3, extent=0.5)
    directions, (axes, _) = plane.directions(KEY, PARAMS), plane.axes(2)
    whole = surface(loss, PARAMS, *directions, *axes)["loss"]
    for number in range(plane.num_rows):
      row = plane.row(number, loss, PARAMS, directions, axes)["loss"]
      np.testing.assert_array_equal(row, whole[number])

  def test_a_line_is_one_row(self):
    plane = Plane(grid=5, dimensions="1")
    directions, (axes,) = plane.directions(KEY, PARAMS), plane.axes(1)
    self.assertEqual(plane.num_rows, 1)
    row = plane.row(0, loss, PARAMS, directions, axes)["loss"]
    whole = line(loss, PARAMS, directions[0], axes[0])["loss"]
    np.testing.assert_array_equal(row, whole)

  def test_axes(self):
    ((alphas, betas),) = Plane(grid=3, extent=0.25).axes(1)
    self.assertEqual(alphas.tolist(), [-0.25, 0, 0.25])
    self.assertEqual(betas.tolist(), alphas.tolist())
    self.assertEqual(Plane(grid=1).axes(1)[0][0].tolist(), [0])

  def test_squares_around_paths(self):
    paths = [np.array([[-3.0, -1.0], [1.0, 0.5]]), np.array([[0.5, 2.0]])]
    whole, nearer = (square_axes(paths, 3, extent=extent) for extent in (1, 0.5))
    for path, axes, half in zip(paths, whole, nearer, strict=True):
      for points, axis, half_axis in zip(path.T, axes, half, strict=True):
        self.assertAlmostEqual(axis[-1] - axis[0], 1.24 * 4)  # The longest side is 4.
        self.assertTrue((np.abs(points - axis[1]) < axis[2] - axis[1]).all())
        self.assertLess(axis[0], 0)
        self.assertGreater(axis[2], 0)
        np.testing.assert_allclose(half_axis, axis / 2)
    self.assertEqual(square_axes(paths, 1)[1][0].tolist(), [0])

  @parameterized.parameters(
    ({"dimensions": "1"}, "not a line; use --dimensions=2"),
    ({"orthogonal": True}, "leave --orthogonal out"),
    ({"keep_vectors": True}, "leave --keep_vectors out"),
    ({"grid": 0}, "grid=0: .*at least 1"),
    ({"extent": -1}, "extent=-1.0: must be positive"),
  )
  def test_refusals(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      Plane(plane="path", **options)


if __name__ == "__main__":
  absltest.main()
