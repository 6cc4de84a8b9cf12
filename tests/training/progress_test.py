import contextlib
import io
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jsharp.training.progress import EventFiles, Progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class ProgressTest(parameterized.TestCase):
  def _show(self, stderr, bar=None):
    out = io.StringIO()
    with mock.patch.object(sys, "stderr", stderr), contextlib.redirect_stdout(out):
      progress = Progress(100, step=10, bar=bar)
      progress.update(20, {"loss": 1.25, "accuracy": 0.5}, tasks_per_second=32.1)
      progress.validated(20, {"val_accuracy": 0.75}, is_best=True)
      progress.update(100, {"loss": 1.125}, tasks_per_second=30.0)
      progress.close()
    return out.getvalue(), stderr.getvalue()

  def test_a_bar_on_a_terminal(self):
    lines, bar = self._show(_Terminal())
    self.assertEqual(lines, "")
    self.assertIn("step 20: val_accuracy 0.7500 (best so far)", bar)
    self.assertRegex(bar, r"100%.*100/100 steps .*left, loss=1.125, tasks/s=30.0")

  def test_lines_elsewhere(self):
    lines, bar = self._show(io.StringIO())
    self.assertEqual(bar, "")
    # The first update is too early for a line.
    self.assertEqual(
      lines,
      "step 20: val_accuracy 0.7500 (best so far)\n"
      "step 100/100: loss 1.1250, 30.0 tasks/s, 0:00:00 left\n",
    )

  def test_what_is_counted_has_a_name(self):
    out = io.StringIO()
    with (
      mock.patch.object(sys, "stderr", io.StringIO()),
      contextlib.redirect_stdout(out),
    ):
      progress = Progress(1, step=0, bar=None, unit="examples")
      progress.update(1, {"loss": 1.0}, tasks_per_second=2.0)
    self.assertIn("2.0 examples/s", out.getvalue())

  def test_a_line_every_ten_seconds(self):
    out = io.StringIO()
    with (
      mock.patch.object(sys, "stderr", io.StringIO()),
      mock.patch("time.monotonic", side_effect=[0.0, 9.0, 12.0, 20.0]),
      contextlib.redirect_stdout(out),
    ):
      progress = Progress(100, step=10, bar=None)
      for step in (15, 16, 20):
        progress.update(step, {"loss": 1.0}, tasks_per_second=1.0)
    self.assertEqual(
      out.getvalue(), "step 16/100: loss 1.0000, 1.0 tasks/s, 0:02:48 left\n"
    )

  @parameterized.parameters(True, None)
  def test_a_terminal_that_is_gone_ends_nothing(self, bar):
    class Gone(_Terminal if bar else io.StringIO):
      def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    with contextlib.redirect_stderr(Gone()), contextlib.redirect_stdout(Gone()):
      progress = Progress(10, step=0, bar=bar)
      progress.update(10, {"loss": 1.0}, tasks_per_second=1.0)
      progress.validated(10, {"val_loss": 1.0}, is_best=True)
      progress.close()

  def test_silence(self):
    self.assertEqual(self._show(_Terminal(), bar=False), ("", ""))


class EventFilesTest(absltest.TestCase):
  def test_writes_events_where_tensorboardx_is(self):
    try:
      import tensorboardX  # noqa: F401
    except ImportError:
      self.skipTest("no tensorboardX")
    with tempfile.TemporaryDirectory() as folder:
      events = EventFiles(folder, step=0)
      events.add({"loss": 1.0, "val_loss": 2.0}, step=5)
      events.close()
      (path,) = pathlib.Path(folder).iterdir()
      self.assertIn(b"val_loss", path.read_bytes())

  def test_is_silent_where_it_is_not(self):
    with (
      tempfile.TemporaryDirectory() as folder,
      mock.patch("importlib.import_module", side_effect=ImportError),
    ):
      events = EventFiles(folder, step=0)
      events.add({"loss": 1.0}, step=5)
      events.close()
      self.assertEmpty(list(pathlib.Path(folder).iterdir()))


if __name__ == "__main__":
  absltest.main()
