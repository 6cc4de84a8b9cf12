"""The records that a run writes during training, and their continuation on resume."""

import dataclasses
import time
from typing import Any

import numpy as np
from absl import logging

from jsharp._files import FileError
from jsharp.training.dispatch import Done
from jsharp.training.progress import EventFiles, Progress
from jsharp.training.run_directory import RunDirectory


@dataclasses.dataclass
class Ledger:
  """The state of the records, saved in every checkpoint so that they can be resumed.

  Attributes:
    num_records: lines of `metrics.jsonl`; later lines belong to steps not saved.
    logged_step: the step of the last training line.
    validated_step: the step of the last validation.
    sums: per metric, the sum over the steps since the last line of the means over
      tasks, in float64.
    num_summed: the number of these steps.
    num_tasks: tasks trained on so far.
    seconds: their training time, without compilation and validation.
  """

  num_records: int = 0
  logged_step: int = 0
  validated_step: int = 0
  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  num_summed: int = 0
  num_tasks: int = 0
  seconds: float = 0.0


class Records:
  """Writes `metrics.jsonl`, TensorBoard events and the progress display.

  Args:
    run: the run's directory.
    saved: the ledger of the checkpoint that training resumes from, as a dict; None for
      a new run. Later lines of `metrics.jsonl` are cut.
    step: meta-steps already taken.
    num_steps: meta-steps of the whole run.
    progress: as for `train`.
    unit: as for `train`.

  Attributes:
    ledger: the state to save in a checkpoint.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   with RunDirectory.open(directory, identity={}) as run:
    ...     records = Records(run, None, step=0, num_steps=2, progress=False)
    ...     records.add(1, Done(1, {"loss": np.array([[1.0, 2.0]])}, 0.1, None))
    ...     records.add(2, Done(1, {"loss": np.array([[2.0, 3.0]])}, 0.1, None))
    ...     records.log(2)
    ...     records.close()
    ...     run.read_metrics()[0]["loss"]
    2.0
  """

  def __init__(
    self,
    run: RunDirectory,
    saved: dict[str, Any] | None,
    *,
    step: int,
    num_steps: int,
    progress: bool | None,
    unit: str = "tasks",
  ):
    try:
      self.ledger = Ledger(**(saved or {}))
    except TypeError as error:
      raise FileError(
        f"the newest checkpoint of {run.path} has records of another version of jsharp "
        f"({error}); use the version that wrote it"
      ) from error
    self._run = run
    self._cut(is_new=saved is None)
    self._timed = (self.ledger.num_tasks, self.ledger.seconds)
    self._unit = unit
    self._progress = Progress(num_steps, step=step, bar=progress, unit=unit)
    self._events = EventFiles(run.path / "tensorboard", step=step)
    if saved:
      self.note(f"resuming from step {step} of {run.path}")

  def _cut(self, *, is_new: bool) -> None:
    """Cuts the records after the checkpoint; warns if earlier ones are missing."""
    found, ledger = self._run.num_metrics(), self.ledger
    if is_new and found:
      logging.warning(
        "%s has no checkpoint: training starts at step 0 again. The %d records of the "
        "earlier start are kept in metrics.jsonl.before",
        self._run.path,
        found,
      )
      self._run.keep_metrics("metrics.jsonl.before")
    if found < ledger.num_records:
      logging.warning(
        "%s has %d of the %d records that its checkpoint expects; the others are "
        "missing only in metrics.jsonl and in the curves",
        self._run.path,
        found,
        ledger.num_records,
      )
      ledger.num_records = found
    self._run.truncate_metrics(ledger.num_records)

  def note(self, text: str) -> None:
    """Prints a line in the progress display."""
    self._progress.note(text)

  def add(self, step: int, done: Done) -> None:
    """Adds a dispatch that ended at `step`; sums do not depend on the grouping."""
    ledger = self.ledger
    for name, rows in done.metrics.items():
      for value in rows.mean(axis=1, dtype=np.float64).tolist():
        ledger.sums[name] = ledger.sums.get(name, 0.0) + value
    num_tasks = done.metrics["loss"].size
    ledger.num_summed += done.num_steps
    ledger.num_tasks += num_tasks
    ledger.seconds += done.seconds
    if done.num_steps:
      speed = num_tasks / done.seconds
      self._progress.update(step, self._means(), tasks_per_second=speed)

  def log(self, step: int) -> None:
    """Writes the means since the last line."""
    tasks, seconds = self._timed
    self._timed = (self.ledger.num_tasks, self.ledger.seconds)
    speed = (self._timed[0] - tasks) / max(self._timed[1] - seconds, 1e-9)
    self._write(step, {**self._means(), f"{self._unit}_per_second": speed})
    self.ledger.logged_step = step
    self.ledger.sums = {}
    self.ledger.num_summed = 0

  def log_validation(
    self, step: int, metrics: dict[str, float], *, is_best: bool
  ) -> None:
    """Writes the metrics of a validation, named `val_...`."""
    named = {f"val_{name}": value for name, value in metrics.items()}
    self._write(step, named)
    self._progress.validated(step, named, is_best=is_best)
    self.ledger.validated_step = step

  def tasks_per_second(self) -> float:
    """The speed over the whole run; 0 before the first step."""
    return self.ledger.num_tasks / max(self.ledger.seconds, 1e-9)

  def close(self) -> None:
    """Closes the display and the event files."""
    self._progress.close()
    self._events.close()

  def _means(self) -> dict[str, float]:
    return {
      name: total / self.ledger.num_summed for name, total in self.ledger.sums.items()
    }

  def _write(self, step: int, metrics: dict[str, float]) -> None:
    self._run.append_metrics({"step": step, **metrics, "wall_time": time.time()})
    self.ledger.num_records += 1
    self._events.add(metrics, step=step)
