"""Pictures of landscapes."""

import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.figure import Figure

from jsharp.analysis import drawing


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

    with Image.open(self.path) as image:
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
