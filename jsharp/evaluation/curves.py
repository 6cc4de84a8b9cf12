"""Training curves: training and validation metrics against the meta-step."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jsharp._files import FileError, save_figure

META_LEARNING = {"loss": "meta-loss on the query set", "accuracy": "query accuracy (%)"}
"""Labels of the metrics of meta-training."""

_FAR = 20  # Multiple of the median.


def plot_curves(
  records: Iterable[Mapping[str, Any]],
  path: str | os.PathLike[str],
  *,
  title: str,
  best_step: int | None = None,
  step_name: str = "meta-step",
  labels: Mapping[str, str] = META_LEARNING,
) -> None:
  r"""Plots training and validation metrics against the meta-step.

  Training is shown as pale points and as a running mean. A metric without records has
  no panel. Values far above all others, as when a run diverges for a while, would
  flatten the rest: they are left outside the panel and counted in a note.

  Args:
    records: the lines of `metrics.jsonl`: `step` with `loss`, `accuracy` (training)
      or `val_loss`, `val_accuracy` (validation).
    path: the PNG to write.
    title: the title above the panels.
    best_step: marked with a line if given.
    step_name: the label of the step axis.
    labels: the metrics that get a panel, with their labels.

  Raises:
    OSError: if `path` cannot be written.
    ValueError: if a record is not a number; the message names the metric.

  Example:
    >>> import pathlib, tempfile
    >>> records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "val_loss": 1.5}]
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...   plot_curves(records, file.name, title="a run")
    ...   pathlib.Path(file.name).read_bytes()[:4]
    b'\x89PNG'
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  records = list(records)
  names = [name for name in labels if any(name in record for record in records)]
  figure = Figure(figsize=(5.6 * max(len(names), 1), 4.2), layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title)
  panels = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
  for axes, name in zip(panels, names, strict=False):
    unit = 100 if name == "accuracy" else 1
    steps, values = _series(records, name)
    axes.plot(steps, unit * values, color="tab:blue", alpha=0.25, linewidth=1)
    mean_steps, means = _running_mean(steps, values)
    marker = "." if len(means) < 30 else None
    axes.plot(
      mean_steps, unit * means, color="tab:blue", marker=marker, label="training"
    )
    steps, values = _series(records, f"val_{name}")
    if len(steps):
      axes.plot(
        steps, unit * values, color="tab:orange", marker="o", ms=4, label="validation"
      )
    _leave_out_far_values(axes)
    if best_step is not None:
      axes.axvline(
        best_step, color="0.5", linestyle=":", label=f"best checkpoint, {best_step}"
      )
    axes.set_xlabel(step_name)
    axes.set_ylabel(labels[name])
    axes.grid(alpha=0.3)
    axes.legend()
  save_figure(figure, path, dpi=120)


def _leave_out_far_values(axes: Any) -> None:
  values = np.concatenate(
    [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
  )
  values = values[np.isfinite(values)]
  if not len(values):
    return
  far = values > _FAR * np.median(np.abs(values))
  if far.any() and not far.all():
    near = values[~far]
    margin = 0.05 * (near.max() - near.min())
    axes.set_ylim(near.min() - margin, near.max() + margin)
    axes.text(
      0.5,
      0.97,
      f"{far.sum()} values above",
      ha="center",
      va="top",
      transform=axes.transAxes,
    )


def _series(
  records: Iterable[Mapping[str, Any]], name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of one metric; a null (non-finite) value leaves a gap."""
  try:
    pairs = [(record["step"], record[name]) for record in records if name in record]
    table = np.array(pairs, np.float64).reshape(-1, 2)
  except (KeyError, TypeError, ValueError) as error:
    raise FileError(
      f"the records of '{name}' are not one number per step ({error}); remove them "
      "from metrics.jsonl"
    ) from error
  return table[:, 0], table[:, 1]


def _running_mean(
  steps: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Means over windows of a twentieth of the finite values, at their centres."""
  finite = np.isfinite(values)
  steps, values = steps[finite], values[finite]
  if len(values) < 2:
    return steps, values
  width = max(1, len(values) // 20)
  window = np.full(width, 1 / width)
  return (
    np.convolve(steps, window, mode="valid"),
    np.convolve(values, window, mode="valid"),
  )
