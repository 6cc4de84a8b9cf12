"""The progress display of a run: a bar, plain lines, TensorBoard curves."""

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from jsharp._terminal import silence, tell

_LINE_SECONDS = 10.0


class Progress:
  """A progress bar on a terminal, plain lines elsewhere.

  Args:
    num_steps: meta-steps of the whole run.
    step: meta-steps already taken.
    bar: True for the bar, False for no output; None for the bar if standard error is a
      terminal, otherwise a line every 10 seconds.
    unit: the name of what a step processes, such as "tasks".

  Example:
    >>> import contextlib, io
    >>> with contextlib.redirect_stderr(io.StringIO()):  # Not a terminal.
    ...   progress = Progress(100, step=0, bar=None)
    >>> progress.validated(10, {"val_loss": 1.5}, is_best=True)
    step 10: val_loss 1.5000 (best so far)
  """

  def __init__(
    self, num_steps: int, *, step: int, bar: bool | None, unit: str = "tasks"
  ):
    self._num_steps = num_steps
    self._unit = unit
    self._first_step = step
    self._started = time.monotonic()
    self._last_line = self._started
    self._bar: Any = None
    can_draw = sys.stderr is not None and sys.stderr.isatty()
    self._lines = bar is None and not can_draw
    if bar or (bar is None and not self._lines):
      from tqdm import tqdm

      with self._drawing():
        self._bar = tqdm(
          total=num_steps,
          initial=step,
          dynamic_ncols=True,
          bar_format=(
            "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps "
            "[{elapsed}, {remaining} left{postfix}]"
          ),
        )

  @contextlib.contextmanager
  def _drawing(self) -> Iterator[None]:
    """Continues without a bar if its terminal is gone."""
    try:
      yield
    except (OSError, ValueError):  # ValueError: the file is closed.
      self._bar = None
      silence(sys.stderr)

  def update(
    self, step: int, metrics: dict[str, float], *, tasks_per_second: float
  ) -> None:
    """Shows the progress of training.

    Args:
      step: meta-steps taken so far.
      metrics: means over the last steps, by name.
      tasks_per_second: the current speed.
    """
    if self._bar is not None:
      shown = {name: f"{value:.3f}" for name, value in metrics.items()}
      shown[f"{self._unit}/s"] = f"{tasks_per_second:.1f}"
      with self._drawing():
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)
    now = time.monotonic()
    due = now - self._last_line >= _LINE_SECONDS or step == self._num_steps
    if self._lines and due:
      self._last_line = now
      pace = (now - self._started) / max(step - self._first_step, 1)
      left = _duration((self._num_steps - step) * pace)
      speed = f"{tasks_per_second:.1f} {self._unit}/s, {left} left"
      self.note(f"step {step}/{self._num_steps}: {_listed(metrics)}, {speed}")

  def validated(self, step: int, metrics: dict[str, float], *, is_best: bool) -> None:
    """Shows the result of a validation."""
    self.note(f"step {step}: {_listed(metrics)}{' (best so far)' if is_best else ''}")

  def note(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._bar is not None:
      with self._drawing():
        self._bar.write(text, file=sys.stderr)
    elif self._lines:
      tell(text)

  def close(self) -> None:
    """Removes the bar from the terminal."""
    if self._bar is not None:
      with self._drawing():
        self._bar.close()


class EventFiles:
  """TensorBoard event files if tensorboardX is installed, otherwise nothing.

  Args:
    directory: the directory of the files.
    step: meta-steps already taken; TensorBoard hides later records of an earlier
      attempt.

  Example:
    >>> import importlib.util, tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   events = EventFiles(directory, step=0)
    ...   events.add({"loss": 1.5}, step=1)
    ...   events.close()
    ...   num_files = len(os.listdir(directory))
    >>> num_files == (importlib.util.find_spec("tensorboardX") is not None)
    True
  """

  def __init__(self, directory: str | os.PathLike[str], *, step: int):
    try:
      library = importlib.import_module("tensorboardX")
    except ImportError:
      self._writer = None
    else:
      self._writer = library.SummaryWriter(str(directory), purge_step=step + 1)

  def add(self, metrics: dict[str, float], *, step: int) -> None:
    """Adds one point to each metric's curve."""
    if self._writer is not None:
      for name, value in metrics.items():
        self._writer.add_scalar(name, value, step)
      self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._writer is not None:
      self._writer.close()


def _listed(metrics: dict[str, float]) -> str:
  return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours:d}:{minutes:02d}:{seconds:02d}"
