"""The curves: a panel per metric, and a spike does not flatten the rest."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
from matplotlib.axes import Axes

from jsharp.evaluation import curves


class PlotCurvesTest(parameterized.TestCase):
  TRAINING = tuple(
    {"step": step, "loss": 1.0 / step, "accuracy": 0.5, "wall_time": 0.0}
    for step in range(1, 60)
  )
  VALIDATION = ({"step": 30, "val_loss": 0.1, "val_accuracy": 0.4},)

  @parameterized.parameters(
    {"records": (*TRAINING, *VALIDATION), "panels": 2},
    {"records": ({"step": 1, "loss": None}, {"step": 2, "loss": 2.0}), "panels": 1},
    {"records": (), "panels": 1},
  )
  def test_a_panel_per_metric(self, records, panels):
    from PIL import Image

    path = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "curves.png"
    )
    curves.plot_curves(records, path, title="maml", best_step=30)
    with Image.open(path, formats=["PNG"]) as image:
      self.assertEqual(image.width, round(672 * panels))
      self.assertGreater(len(image.convert("L").getcolors()), 10)

  @parameterized.parameters(
    {"step": "x", "loss": 1.0}, {"loss": 1.0}, {"step": 1, "loss": {}}
  )
  def test_a_record_of_another_shape_is_named(self, **record):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "c.png"
    with self.assertRaisesRegex(
      ValueError, "records of 'loss' are not one number per step"
    ):
      curves.plot_curves([record], path, title="maml", best_step=30)

  def test_values_far_above_are_left_outside_and_counted(self):
    records = [{"step": step, "loss": 1.0 + step / 100} for step in range(50)]
    records += [{"step": 50, "loss": 1e12}]
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "c.png"
    with (
      mock.patch.object(Axes, "set_ylim") as set_ylim,
      mock.patch.object(Axes, "text") as text,
    ):
      curves.plot_curves(records, path, title="diverged")
    limits = [call.args for call in set_ylim.call_args_list if len(call.args) == 2]
    self.assertLen(limits, 1)
    self.assertLess(limits[0][1], 2)
    self.assertIn("values above", text.call_args.args[2])


if __name__ == "__main__":
  absltest.main()
