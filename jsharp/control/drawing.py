"""Plots of trajectories in the plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jsharp.control.roll_out import Trajectories


def draw_paths(
  tasks: Sequence[Sequence[tuple[Trajectories, Any]]], names: Sequence[str]
) -> Any:
  """Plots the paths of policies: one row per task, one column per policy.

  Args:
    tasks: for each task and each policy its trajectories and the goal; observations are
      positions.
    names: the names of the policies.

  Returns:
    A Matplotlib figure.

  Example:
    >>> zeros, ones = np.zeros((3, 4)), np.ones((3, 4))
    >>> paths = Trajectories(np.zeros((3, 4, 2)), None, zeros, ones)
    >>> len(draw_paths([[(paths, np.ones(2))]], ["still"]).axes)
    1
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  size = (2.8 * len(names), 2.9 * len(tasks))
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  panels = figure.subplots(len(tasks), len(names), squeeze=False)
  reach = max(
    [1.0]
    + [
      1.1 * float(np.quantile(np.abs(np.asarray(found.observations)), 0.98))
      for row in tasks
      for found, _ in row[-1:]
    ]
  )
  for row, axes_of_row in zip(tasks, panels, strict=True):
    for (found, goal), axes, name in zip(row, axes_of_row, names, strict=True):
      positions, alive = np.asarray(found.observations), np.asarray(found.alive)
      for path, living in zip(positions[:10], alive[:10], strict=True):
        path = path[living > 0]
        axes.plot(path[:, 0], path[:, 1], color="tab:blue", alpha=0.5, linewidth=0.8)
      axes.plot(0, 0, "o", color="black", markersize=4)
      axes.plot(*np.asarray(goal), "*", color="tab:red", markersize=12)
      mean = float(np.asarray(found.rewards).sum(axis=1).mean())
      axes.set_title(f"{name}: return {mean:.1f}", fontsize=9)
      axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
      axes.tick_params(labelsize=7)
  return figure
