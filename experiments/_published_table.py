"""The Markdown table of published figures beside our runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments import _published_runs
from experiments._published_figures import Entry, Figure, Published, Setting
from experiments._published_runs import Run
from jsharp.evaluation.comparison import Interval

_KEYS = ("algorithm", "sharpness", "way", "shot")
_ACCURACY = {
  "transductive": ("test_accuracy", "accuracy"),
  "inductive": ("test_accuracy_inductive", "accuracy_inductive"),
  "ensemble": ("test_ensemble_accuracy", None),
}
_FIRST = ("num_steps", "num_tasks")
_OURS = ("ours, transductive", "ours, inductive", "ours, ensemble")
_LEGEND = (
  "± of our figures: 95 % interval over test tasks; with several seeds also Student's "
  "95 % interval over seeds. ± of published figures: as in the source. Bold: our "
  "figure to compare with the published one. Budget: tasks trained on, as a share of "
  "the published number."
)


class Matched(NamedTuple):
  """A group of runs and the setting that it belongs to.

  Attributes:
    runs: runs that differ only in their seeds, or one unfinished run.
    setting: the setting of the flagfile.
    figures: the published figures of that flagfile.
  """

  runs: list[Run]
  setting: Setting
  figures: list[tuple[Entry, Figure]]


def markdown(published: Published, runs: Sequence[Run]) -> tuple[str, str, list[str]]:
  """Our runs and all published figures as Markdown, and runs without a figure.

  Args:
    published: the published figures.
    runs: our runs.
  """
  matched: list[Matched] = []
  unmatched: list[list[Run]] = []
  for group in _published_runs.grouped(runs):
    settings = _settings_for(published, group[0])
    if not settings:
      unmatched.append(group)
      continue
    setting = min(settings, key=lambda one: len(differences(group[0], one)))
    figures = [
      (entry, figure)
      for entry in published.entries
      for figure in entry.figures
      if figure.flagfile == setting.flagfile
    ]
    matched.append(Matched(group, setting, figures))
  order = list(published.settings)
  matched.sort(key=lambda one: (order.index(one.setting.flagfile), -_seen(one.runs)))
  lines = [*_runs_table(published, matched)]
  if matched:
    lines += [*textwrap.wrap(_LEGEND, 98), "", *_notes(matched)]
  lines += _unmatched_table(unmatched)
  return (
    "\n".join(lines),
    "\n".join(_figures_tables(published, matched)),
    [
      f"{group[0].path} belongs to no published figure: {_key_words(group[0])}"
      for group in unmatched
    ],
  )


def _dataset(values: dict[str, Any], experiment: str) -> tuple[Any, Any]:
  return values.get("dataset", experiment), values.get("test_dataset")


def _settings_for(published: Published, run: Run) -> list[Setting]:
  """The settings with the data, method, way and shot of a run."""

  def key(values: dict[str, Any], experiment: str) -> tuple[Any, ...]:
    plain = {"sharpness": "none", **values}
    return (*_dataset(values, experiment), *map(plain.get, _KEYS))

  wanted = key(run.settings, run.experiment.name)
  return [
    setting
    for setting in published.settings.values()
    if key(setting.flags, setting.experiment) == wanted
  ]


def differences(run: Run, setting: Setting) -> list[str]:
  """What differs from the published setting: the flag, our value, the flagfile's.

  Flags that the run did not record are listed if the flagfile sets them.
  """
  found = []
  names = [*_FIRST, *(name for name in setting.flags if name not in _FIRST)]
  for name in names:
    theirs = setting.flags[name]
    if name in run.settings:
      ours = run.settings[name]
      if not _same(ours, theirs):
        found.append(f"`{name}` {_shown(ours)} ({_shown(theirs)})")
    elif name in setting.given and not (name == "num_steps" and run.num_steps is None):
      found.append(f"`{name}` not set ({_shown(theirs)})")
  return found


def _same(ours: Any, theirs: Any) -> bool:
  if isinstance(ours, str) != isinstance(theirs, str) and None not in (ours, theirs):
    return str(ours) == str(theirs)
  return ours == theirs


def _shown(value: Any) -> str:
  if value is None:
    return "none"
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:g}"
  if isinstance(value, list):
    return ", ".join(map(_shown, value))
  return str(value)


def share(run: Run, setting: Setting) -> float:
  """The tasks that a run has seen as a share of the published budget."""
  return run.tasks_seen / (setting.num_steps * setting.num_tasks)


def _seen(runs: Sequence[Run]) -> int:
  return max(run.tasks_seen for run in runs)


def _percent(part: float) -> str:
  return f"{100 * part:.3g} %"


def _interval(value: Interval | None, scale: float, digits: int) -> str:
  """A mean with its intervals over tasks and, with several seeds, over seeds."""
  if value is None:
    return ""
  mean, tasks, seeds = (scale * number for number in value)
  text = f"{mean:.{digits}f}"
  if math.isnan(seeds):
    return f"{text} ± {tasks:.{digits}f}"
  if not math.isnan(tasks):
    text += f" ± {tasks:.{digits}f} (tasks)"
  return f"{text} ± {seeds:.{digits}f} (seeds)"


def _ours(one: Matched, entry: Entry, figure: Figure, measure: str) -> list[str]:
  """Our cells: transductive, inductive and of the ensemble."""
  first = one.runs[0]
  if first.result is None:
    return [progress(first, measure), "", ""]
  if measure == "error":
    return [_error(one.runs, figure.steps or 0), "", ""]
  cells = []
  for kind, names in _ACCURACY.items():
    cell = _interval(_published_runs.measured(one.runs, *names), 100, 2)
    cells.append(f"**{cell}**" if cell and kind == entry.beside else cell)
  return cells


def _error(runs: Sequence[Run], steps: int) -> str:
  """The mean squared error after inner steps; empty if it was not measured."""
  name = "test_mse_by_step"
  taken = []
  for run in runs:
    result = run.result or {}
    if len(result.get(name, ())) <= steps or result[name][steps] is None:
      return ""
    pair = {"error": result[name][steps], "error_ci95": result[f"{name}_ci95"][steps]}
    taken.append(run._replace(result={**result, **pair}))
  value = _published_runs.measured(taken, "error", f"loss_{steps}")
  return f"**{_interval(value, 1, 3)}**"


def progress(run: Run, measure: str) -> str:
  """How far an unfinished run is, and its last validation."""
  of = "" if run.num_steps is None else f" of {run.num_steps:,}"
  text = f"unfinished: meta-step {run.step:,}{of}"
  last = run.validation
  name, scale, digits, unit = (
    ("val_accuracy", 100, 2, " %") if measure == "accuracy" else ("val_loss", 1, 3, "")
  )
  if last is None or not isinstance(last.get(name), int | float):
    return f"{text}; not yet validated"
  value, half = last[name], last.get(f"{name}_ci95")
  plus = "" if half is None else f" ± {scale * half:.{digits}f}"
  text += f"; validation {scale * value:.{digits}f}{plus}{unit} at {last['step']:,}"
  return text if half is not None else f"{text}, interval not recorded"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A table without the columns that are empty in all rows."""
  used = [i for i in range(len(head)) if any(row[i] for row in rows)]
  lines = ["| " + " | ".join(head[i] for i in used) + " |", "|---" * len(used) + "|"]
  for row in rows:
    cells = (f"| {row[i]} ".replace("|  ", "| ") for i in used)
    lines.append("".join(cells) + "|")
  return [*lines, ""]


def _item(text: str, indent: int = 0) -> list[str]:
  """An item of a list, in lines of at most 98 characters."""
  return textwrap.wrap(
    text,
    98,
    initial_indent=" " * indent + "- ",
    subsequent_indent=" " * (indent + 2),
    break_long_words=False,
    break_on_hyphens=False,
  )


def _runs_table(published: Published, matched: Sequence[Matched]) -> list[str]:
  rows = []
  for number, one in enumerate(matched, start=1):
    for entry, figure in one.figures:
      benchmark = published.benchmarks[entry.benchmark]
      rows.append(
        [
          str(number),
          f"{benchmark.title}, {figure.setting}",
          entry.method,
          figure.shown,
          *_ours(one, entry, figure, benchmark.measure),
          str(_published_runs.num_seeds(one.runs)),
          _percent(share(one.runs[0], one.setting)),
        ]
      )
  if not rows:
    return ["No run belongs to a published figure.", ""]
  head = ("run", "benchmark", "method", "published", *_OURS, "seeds", "budget")
  return _table(head, rows)


def _notes(matched: Sequence[Matched]) -> Iterator[str]:
  """The sources of the settings, and the records and differences of their runs."""
  yield "The settings and their runs. Differences are flags: ours (published)."
  yield ""
  flagfile = ""
  for number, one in enumerate(matched, start=1):
    first, setting = one.runs[0], one.setting
    if setting.flagfile != flagfile:
      flagfile = setting.flagfile
      sources = dict.fromkeys(
        f"{entry.source} ({entry.evaluation})" if entry.evaluation else entry.source
        for entry, _ in one.figures
      )
      yield from _item(
        f"`{flagfile}`: {setting.num_steps:,} x {setting.num_tasks} tasks. Published: "
        f"{'; '.join(sources)}."
      )
    names = ", ".join(f"`{run.name}`" for run in one.runs)
    differing = differences(first, setting)
    differs = "; ".join(differing) if differing else "in nothing that was recorded"
    yield from _item(
      f"Run {number}, {names}: {first.step:,} x {first.settings['num_tasks']} tasks; "
      f"{_origin(first)}. Differs: {differs}.",
      indent=2,
    )
  yield ""


def _origin(run: Run) -> str:
  """The tests, the commit and the versions of a run, as recorded."""
  result = run.result or {}
  protocol = result.get("protocol", {})
  versions = protocol.get("versions", {})
  commit = protocol.get("git_commit")
  words = []
  if "num_eval_tasks" in result:
    words.append(f"{result['num_eval_tasks']:,} test tasks")
  if isinstance(commit, str):
    digits, plus, _ = commit.partition("+")
    words.append(f"commit {digits[:7]}" + (" with changes" if plus else ""))
  else:
    words.append("commit not recorded")
  words += [
    f"{title} {versions[key]}"
    for key, title in (("python", "Python"), ("jax", "jax"))
    if key in versions
  ]
  if run.transcribed is not None:
    words.append(f"transcribed from {run.transcribed}")
  return ", ".join(words)


def _key_words(run: Run) -> str:
  """Data, method, way and shot of a run, in words."""
  values = run.settings
  dataset, test_dataset = _dataset(values, run.experiment.name)
  words = [str(dataset)]
  if test_dataset is not None:
    words.append(f"tested on {test_dataset}")
  words.append(str(values.get("algorithm")))
  if values.get("sharpness", "none") != "none":
    words.append(f"with sharpness {values['sharpness']}")
  if values.get("way") is not None:
    words.append(f"{values['way']}-way")
  if values.get("shot") is not None:
    words.append(f"{values['shot']}-shot")
  return ", ".join(words)


def _unmatched_table(groups: Sequence[list[Run]]) -> list[str]:
  """The runs that belong to no published figure."""
  if not groups:
    return []
  rows = []
  for group in groups:
    first = group[0]
    names = ", ".join(f"`{run.name}`" for run in group)
    rows.append(
      [
        names,
        _key_words(first),
        *_alone(group),
        str(_published_runs.num_seeds(group)),
        f"{first.step:,} x {first.settings.get('num_tasks', 1)}",
        _origin(first),
      ]
    )
  text = "No published figure has a flagfile with their data, method, way and shot."
  head = ("run", "task and method", *_OURS, "seeds", "tasks", "record")
  title = "### Runs without a published figure"
  return [title, "", text, "", *_table(head, rows)]


def _alone(group: list[Run]) -> list[str]:
  """Our cells for runs without a published figure."""
  first = group[0]
  if first.result is None:
    return [progress(first, "accuracy" if "way" in first.settings else "error"), "", ""]
  if steps := len(first.result.get("test_mse_by_step", ())):
    error = _error(group, steps - 1).strip("*")
    return [f"error after {steps - 1} steps: {error}", "", ""]
  return [
    _interval(_published_runs.measured(group, *names), 100, 2)
    for names in _ACCURACY.values()
  ]


def _figures_tables(published: Published, matched: Sequence[Matched]) -> Iterator[str]:
  """All published figures, one table for each benchmark."""
  numbers: dict[str | None, list[str]] = {}
  for number, one in enumerate(matched, start=1):
    numbers.setdefault(one.setting.flagfile, []).append(str(number))
  yield "† marks figures whose setting is a flagfile. Runs: their numbers above."
  yield ""
  for key, benchmark in published.benchmarks.items():
    entries = [entry for entry in published.entries if entry.benchmark == key]
    columns = dict.fromkeys(figure.setting for e in entries for figure in e.figures)
    rows = []
    for entry in entries:
      cells = dict.fromkeys(columns, "")
      runs: list[str] = []
      for figure in entry.figures:
        cells[figure.setting] = figure.shown + " †" * (figure.flagfile is not None)
        if figure.flagfile is not None:
          runs += numbers.get(figure.flagfile, [])
      ours = ", ".join(dict.fromkeys(runs))
      rows.append([entry.method, *cells.values(), ours, entry.evaluation, entry.source])
    unit = "accuracy, %" if benchmark.measure == "accuracy" else "mean squared error"
    if rows:
      yield f"**{benchmark.title}**, {unit}:"
      yield ""
      yield from _table(("method", *columns, "runs", "evaluation", "source"), rows)
