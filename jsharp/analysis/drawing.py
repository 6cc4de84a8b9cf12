"""Plots of loss landscapes: contours, surfaces and lines, on a shared scale.

Panels side by side share levels, colours and axes, so that a flatter landscape looks
flatter. If the values span more than a factor of ten, colours and levels are
logarithmic.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jsharp._checks import check_count
from jsharp._files import save_figure

Axis = np.ndarray | Mapping[str, np.ndarray]
"""The coordinates of all panels, or one array per panel, by the panel's name."""

_COLOURS = "viridis"
_DIRECTIONS = ("first direction", "second direction")
_DPI = 150
_MAX_COLUMNS = 4
_NUM_LEVELS = 24
_WIDE = 10  # If values span a larger ratio, levels are logarithmic.


def levels(panels: Iterable[np.ndarray], num_levels: int = _NUM_LEVELS) -> np.ndarray:
  """Contour levels that are the same for all panels.

  Args:
    panels: arrays of any shape; non-finite values are ignored.
    num_levels: the number of levels.

  Returns:
    `[num_levels]`, increasing from the smallest to the largest value: in equal ratios
    if all are positive and span more than a factor of 10, otherwise in equal steps.

  Raises:
    ValueError: if no value is finite.

  Example:
    >>> levels([np.array([1.0, 2.0]), np.array([3.0])], num_levels=3).tolist()
    [1.0, 2.0, 3.0]
  """
  check_count("num_levels", num_levels, minimum=2)
  values = np.concatenate([np.ravel(panel) for panel in panels])
  values = values[np.isfinite(values)]
  if not values.size:
    raise ValueError(
      "panels hold no finite value; measure closer to the centre, with a smaller extent"
    )
  low, high = float(values.min()), float(values.max())
  if not high > low:
    margin = 0.5 * abs(low) or 0.5
    low, high = low - margin, high + margin
  if low > 0 and high > _WIDE * low:
    return np.geomspace(low, high, num_levels)
  return np.linspace(low, high, num_levels)


def plot_contours(
  panels: Mapping[str, np.ndarray],
  alphas: Axis,
  betas: Axis,
  path: str | os.PathLike[str],
  *,
  title: str,
  label: str = "loss",
  directions: tuple[str, str] = _DIRECTIONS,
  trajectories: Mapping[str, np.ndarray] | None = None,
  marks: Mapping[str, np.ndarray] | None = None,
  ceiling: float | None = None,
) -> None:
  r"""Plots contours side by side, with shared levels and one colour bar.

  Args:
    panels: the heading of each panel, and its values `[num_alphas, num_betas]`.
    alphas: `[num_alphas]`, the horizontal axis; one array per panel if they differ.
    betas: `[num_betas]`, the vertical axis; likewise.
    path: the PNG to write.
    title: the title of the figure.
    label: the label of the values.
    directions: the labels of the axes.
    trajectories: per panel `[num_points, 2]`, as from `jsharp.analysis.project`; a
      circle marks the first point.
    marks: labelled points, `[2]` each, that are drawn in every panel.
    ceiling: values above get the colour of the highest level; None for no limit.

  Raises:
    ValueError: if no value is finite.
    OSError: if `path` cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> axis = np.linspace(-1, 1, 5)
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...   plot_contours({"a bowl": axis[:, None] ** 2 + axis**2}, axis, axis, file.name,
    ...     title="one")
    ...   pathlib.Path(file.name).read_bytes()[:4]
    b'\x89PNG'
  """
  limited = {name: _below(values, ceiling) for name, values in panels.items()}
  shared = levels(limited.values())
  figure, grid = _figure(len(panels), width=3.9, height=3.6, title=title)
  drawn = None
  for axes, (name, values) in zip(grid, limited.items(), strict=False):
    masked = np.ma.masked_invalid(values.T)
    x, y = _of(alphas, name), _of(betas, name)
    options = {"levels": shared, "norm": _norm(shared)}
    drawn = axes.contourf(x, y, masked, cmap=_COLOURS, **options)
    axes.contour(x, y, masked, colors="white", linewidths=0.5, alpha=0.6, **options)
    if trajectories and name in trajectories:
      points = np.asarray(trajectories[name])
      axes.plot(*points.T, color="tab:red", marker="o", markersize=3, linewidth=1.2)
      axes.plot(*points[0], color="tab:red", marker="o", markerfacecolor="white")
    axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.5)
    for words, point in (marks or {}).items():
      axes.plot(*point, marker="o", color="tab:red", markersize=5)
      axes.annotate(
        words,
        point,
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize="small",
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
      )
    axes.set_title(name, fontsize="medium")
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    axes.set_xlabel(directions[0])
    axes.set_ylabel(directions[1])
    axes.set_aspect("equal")
    axes.label_outer(remove_inner_ticks=False)
    if isinstance(alphas, Mapping):
      axes.tick_params(labelbottom=True, labelleft=True)
  _colour_bar(figure, drawn, grid[: len(panels)], shared, label)
  save_figure(figure, path, dpi=_DPI)


def plot_surfaces(
  panels: Mapping[str, np.ndarray],
  alphas: Axis,
  betas: Axis,
  path: str | os.PathLike[str],
  *,
  title: str,
  label: str = "loss",
  directions: tuple[str, str] = _DIRECTIONS,
  ceiling: float | None = None,
) -> None:
  r"""Plots 3-D surfaces side by side, with a shared vertical axis and one colour bar.

  The vertical axis is linear, even if the colours are logarithmic.

  Args:
    panels: as for `plot_contours`.
    alphas: as for `plot_contours`.
    betas: likewise.
    path: the PNG to write.
    title: the title of the figure.
    label: the label of the values.
    directions: the labels of the horizontal axes.
    ceiling: values above are drawn at this height; None for no limit.

  Raises:
    ValueError: if no value is finite.
    OSError: if `path` cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> axis = np.linspace(-1, 1, 5)
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...   plot_surfaces({"a bowl": axis[:, None] ** 2 + axis**2}, axis, axis, file.name,
    ...     title="one")
    ...   pathlib.Path(file.name).read_bytes()[:4]
    b'\x89PNG'
  """
  from matplotlib import colormaps
  from matplotlib.cm import ScalarMappable

  limited = {name: _below(values, ceiling) for name, values in panels.items()}
  shared = levels(limited.values())
  colours = ScalarMappable(_norm(shared), colormaps[_COLOURS])
  options = {"projection": "3d"}
  figure, grid = _figure(len(panels), width=4.4, height=4.2, title=title, **options)
  for axes, (name, values) in zip(grid, limited.items(), strict=False):
    x, y = _of(alphas, name), _of(betas, name)
    rows, columns = np.meshgrid(x, y, indexing="ij")
    axes.plot_surface(
      rows,
      columns,
      values,
      facecolors=colours.to_rgba(np.where(np.isfinite(values), values, shared[-1])),
      rcount=len(x),
      ccount=len(y),
      linewidth=0,
      antialiased=True,
      shade=False,
    )
    axes.set_zlim(shared[0], shared[-1])
    axes.set_title(name, fontsize="medium", y=0.98)
    axes.set_xlabel(directions[0], fontsize="small")
    axes.set_ylabel(directions[1], fontsize="small")
    axes.tick_params(labelsize="x-small", pad=0)
    axes.locator_params(nbins=5)
    axes.set_box_aspect(None, zoom=0.9)
    axes.view_init(elev=28, azim=-60)
  _colour_bar(figure, colours, grid[: len(panels)], shared, label)
  save_figure(figure, path, dpi=_DPI)


def plot_lines(
  lines: Mapping[str, np.ndarray],
  alphas: np.ndarray,
  path: str | os.PathLike[str],
  *,
  title: str,
  label: str = "loss",
  ceiling: float | None = None,
) -> None:
  r"""Plots the mean over tasks along a line for several networks, with a band.

  The band spans the middle half of the tasks.

  Args:
    lines: the name of each network, and its values `[num_alphas, num_tasks]`.
    alphas: `[num_alphas]`.
    path: the PNG to write.
    title: the title of the figure.
    label: the label of the values.
    ceiling: the upper end of the vertical axis; None to fit the values.

  Raises:
    OSError: if `path` cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> axis = np.linspace(-1, 1, 5)
    >>> lines = {"bowls": axis[:, None] ** 2 * [1, 2]}
    >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
    ...   plot_lines(lines, axis, file.name, title="two")
    ...   pathlib.Path(file.name).read_bytes()[:4]
    b'\x89PNG'
  """
  figure, (axes,) = _figure(1, width=6.0, height=4.2, title=title)
  for number, (name, values) in enumerate(lines.items()):
    colour = f"C{number}"
    axes.plot(alphas, values.mean(1), color=colour, label=name)
    low, high = np.quantile(values, (0.25, 0.75), axis=1)
    axes.fill_between(alphas, low, high, color=colour, alpha=0.18, linewidth=0)
  if ceiling is not None:
    axes.set_ylim(top=ceiling)
  axes.set_xlim(alphas[0], alphas[-1])
  axes.axvline(0, color="0.6", linestyle=":", linewidth=1)
  axes.set_xlabel("along the direction")
  axes.set_ylabel(f"{label}: mean and middle half of the tasks")
  axes.grid(alpha=0.3)
  axes.legend()
  save_figure(figure, path, dpi=_DPI)


def _figure(
  num_panels: int, *, width: float, height: float, title: str, **options: Any
) -> tuple[Any, list[Any]]:
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  check_count("the number of panels", num_panels)
  num_columns = min(num_panels, _MAX_COLUMNS)
  num_rows = -(-num_panels // num_columns)
  size = (width * num_columns + 1.0, height * num_rows + 0.4)
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title)
  grid = figure.subplots(num_rows, num_columns, squeeze=False, subplot_kw=options)
  panels = list(grid.ravel())
  for axes in panels[num_panels:]:
    axes.set_visible(False)
  return figure, panels


def _of(axis: Axis, name: str) -> np.ndarray:
  return axis[name] if isinstance(axis, Mapping) else axis


def _below(values: np.ndarray, ceiling: float | None) -> np.ndarray:
  values = np.asarray(values, np.float64)
  return values if ceiling is None else np.minimum(values, ceiling)


def _norm(shared: np.ndarray) -> Any:
  from matplotlib.colors import LogNorm, Normalize

  logarithmic = shared[0] > 0 and shared[-1] > _WIDE * shared[0]
  return (LogNorm if logarithmic else Normalize)(shared[0], shared[-1])


def _colour_bar(
  figure: Any, drawn: Any, panels: list[Any], shared: np.ndarray, label: str
) -> None:
  bar = figure.colorbar(drawn, ax=panels, shrink=0.85, pad=0.03, label=label)
  ticks = shared[np.linspace(0, len(shared) - 1, 6).round().astype(int)]
  bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
  bar.ax.minorticks_off()
