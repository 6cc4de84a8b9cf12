"""The published figures, read from a TOML file and checked."""

from __future__ import annotations

import decimal
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags

from experiments import _program
from experiments._program import Experiment
from jsharp import options
from jsharp.options import Role

FLAGFILES = pathlib.Path(__file__).with_name("flagfiles")
_MAX_BYTES = 2**22
_TABLES = ("benchmarks", "sources", "entries")
_KINDS = ("transductive", "inductive", "ensemble")
_NOT_SETTINGS = ("seed", "num_seeds", "keep_path", "deterministic")
"""Flags whose value does not make another setting."""


class Benchmark(NamedTuple):
  """A benchmark.

  Attributes:
    title: its name in tables.
    experiment: the program that runs it.
    measure: "accuracy" in percent, or "error", a mean squared error.
  """

  title: str
  experiment: Experiment
  measure: str


class Entry(NamedTuple):
  """The figures of one method in one source.

  Attributes:
    benchmark: the key of its benchmark.
    method: the name of the method.
    source: the source, in words.
    evaluation: what kind of evaluation it is, in words; may be empty.
    beside: our figure to compare with: transductive, inductive or ensemble.
    figures: the figures.
  """

  benchmark: str
  method: str
  source: str
  evaluation: str
  beside: str
  figures: tuple[Figure, ...]


class Figure(NamedTuple):
  """A published figure.

  Attributes:
    value: the value, with the digits of the source.
    interval: what the source gives after ±, or None.
    way: classes per task; None for regression.
    shot: support examples per class.
    steps: inner steps at test, if the figure depends on them.
    flagfile: the name of the flagfile that reproduces it, or None.
  """

  value: decimal.Decimal
  interval: decimal.Decimal | None
  way: int | None
  shot: int
  steps: int | None
  flagfile: str | None

  @property
  def setting(self) -> str:
    """The setting in words, as in "5-way 1-shot"."""
    words = (
      f"{self.shot}-shot" if self.way is None else f"{self.way}-way {self.shot}-shot"
    )
    if self.steps is not None:
      words += f", {self.steps} {'step' if self.steps == 1 else 'steps'}"
    return words

  @property
  def shown(self) -> str:
    """The value and its interval."""
    return (
      str(self.value) if self.interval is None else f"{self.value} ± {self.interval}"
    )


class Setting(NamedTuple):
  """The setting that a flagfile describes.

  Attributes:
    flagfile: its name.
    experiment: the name of its program.
    flags: all flags that describe the run, by name.
    given: the flags that the file sets.
    num_steps: meta-steps.
    num_tasks: tasks per meta-step.
  """

  flagfile: str
  experiment: str
  flags: dict[str, Any]
  given: frozenset[str]
  num_steps: int
  num_tasks: int


class Published(NamedTuple):
  """All published figures.

  Attributes:
    benchmarks: by key, in order.
    entries: in order.
    settings: by the name of the flagfile.
  """

  benchmarks: dict[str, Benchmark]
  entries: list[Entry]
  settings: dict[str, Setting]


def load(path: pathlib.Path) -> Published:
  """Reads the published figures and the flagfiles that they name.

  Raises:
    ValueError: if a value is invalid; the message names the file, the key and the fix.
  """
  content = _program.read_toml(
    path,
    flag="published",
    what="the figures",
    most=_MAX_BYTES,
    parse_float=decimal.Decimal,
  )
  file = _Table(f"{path}: ", content, _TABLES)
  benchmarks = {
    name: _benchmark(_Table(f"{path}: benchmarks.{name}.", own, Benchmark._fields))
    for name, own in file.tables("benchmarks").items()
  }
  sources = _Table(f"{path}: sources.", file.tables("sources"), None)
  entries = [
    _entry(f"{path}: entries[{i}].", own, benchmarks, sources)
    for i, own in enumerate(file.list("entries"))
  ]
  _check_unique(path, entries)
  settings: dict[str, Setting] = {}
  for entry in entries:
    for figure in entry.figures:
      name, experiment = figure.flagfile, benchmarks[entry.benchmark].experiment
      known = None if name is None else settings.get(name)
      if name is not None and (known is None or known.experiment != experiment.name):
        settings[name] = _setting(path, name, experiment)
  return Published(benchmarks, entries, settings)


class _Table:
  """A TOML table whose values are read by key and type.

  Args:
    where: what precedes a key in messages.
    content: the table.
    keys: the keys it may have; None for any.
  """

  def __init__(self, where: str, content: Any, keys: tuple[str, ...] | None):
    self.where, self.content = where, content
    if not isinstance(content, dict):
      raise ValueError(f"{where.rstrip('.: ')} must be a table, got {content!r}")
    unknown = [] if keys is None else sorted(content.keys() - set(keys))
    if unknown:
      raise ValueError(f"{where}{unknown[0]} is unknown; use {', '.join(keys or ())}")

  def text(self, key: str, default: str | None = None) -> str:
    """A string; required without a default."""
    value = self.content.get(key, default)
    if not isinstance(value, str) or (value == "" and default is None):
      raise self.wrong(key, "write a string")
    return value

  def number(self, key: str, *, required: bool) -> decimal.Decimal | None:
    """A number of at least 0."""
    value = self.content.get(key)
    if value is None and not required:
      return None
    if type(value) is int:
      value = decimal.Decimal(value)
    if not isinstance(value, decimal.Decimal) or not value.is_finite() or value < 0:
      raise self.wrong(key, "write a number of at least 0, as in 48.70")
    return value

  def count(self, key: str, *, required: bool) -> int | None:
    """An integer of at least 1."""
    value = self.content.get(key)
    if value is None and not required:
      return None
    if type(value) is not int or value < 1:
      raise self.wrong(key, "write an integer of at least 1")
    return value

  def tables(self, key: str) -> dict[str, Any]:
    """A table."""
    return _Table(f"{self.where}{key}.", self.content.get(key), None).content

  def list(self, key: str) -> list[Any]:
    """A list that is not empty."""
    value = self.content.get(key)
    if not isinstance(value, list) or not value:
      raise self.wrong(key, "write at least one table")
    return value

  def one_of(self, key: str, choices: Mapping[str, Any] | tuple[str, ...]) -> str:
    """One of several strings; the first of a tuple by default."""
    default = choices[0] if isinstance(choices, tuple) else None
    value = self.text(key, default)
    if value not in choices:
      raise self.wrong(key, f"choose one of {', '.join(choices)}")
    return value

  def wrong(self, key: str, fix: str) -> ValueError:
    """The error of a value."""
    value = self.content.get(key)
    got = "is missing" if value is None else f"is {value!r}"
    return ValueError(f"{self.where}{key} {got}; {fix}")


def _benchmark(table: _Table) -> Benchmark:
  name = table.text("experiment")
  try:
    experiment = _program.experiment_of(name)
  except ValueError as error:
    raise ValueError(f"{table.where}experiment: {error}") from error
  return Benchmark(
    table.text("title"), experiment, table.one_of("measure", ("accuracy", "error"))
  )


def _entry(
  where: str, content: Any, benchmarks: dict[str, Benchmark], sources: _Table
) -> Entry:
  table = _Table(where, content, (*Entry._fields, "where"))
  method, benchmark = table.text("method"), table.one_of("benchmark", benchmarks)
  table.where = f"{where.rstrip('.')} ({method}, {benchmark})."
  source = sources.text(table.one_of("source", sources.content))
  if place := table.text("where", ""):
    source += f", {place}"
  figures = tuple(
    _figure(
      _Table(f"{table.where}figures[{i}].", own, Figure._fields), benchmarks[benchmark]
    )
    for i, own in enumerate(table.list("figures"))
  )
  evaluation = table.text("evaluation", "")
  beside = table.one_of("beside", _KINDS)
  return Entry(benchmark, method, source, evaluation, beside, figures)


def _figure(table: _Table, benchmark: Benchmark) -> Figure:
  value = table.number("value", required=True)
  accuracy = benchmark.measure == "accuracy"
  if value is None or (accuracy and value > 100):
    raise table.wrong("value", "write an accuracy in percent, at most 100")
  shot = table.count("shot", required=True)
  assert shot is not None
  flagfile = table.text("flagfile", "") or None
  if flagfile and (
    pathlib.PurePath(flagfile).name != flagfile or not (FLAGFILES / flagfile).is_file()
  ):
    raise table.wrong(
      "flagfile", f"write the name of a file in {FLAGFILES}, or nothing"
    )
  return Figure(
    value,
    table.number("interval", required=False),
    table.count("way", required=accuracy),
    shot,
    table.count("steps", required=not accuracy),
    flagfile,
  )


def _check_unique(path: pathlib.Path, entries: list[Entry]) -> None:
  seen = set()
  for i, entry in enumerate(entries):
    for figure in entry.figures:
      key = (*entry[:3], figure.setting)
      if key in seen:
        raise ValueError(
          f"{path}: entries[{i}] ({entry.method}, {entry.benchmark}) has a figure for "
          f"{figure.setting} that the same source has already given; drop one"
        )
      seen.add(key)


def _setting(path: pathlib.Path, name: str, experiment: Experiment) -> Setting:
  """The setting of a flagfile."""
  file = FLAGFILES / name
  try:
    given = experiment.program.parse([f"--flagfile={file}"], flags.FlagValues())
    run, _ = _program.describe(experiment, given)
  except (flags.Error, ValueError) as error:
    raise ValueError(
      f"{path}: flagfile {name} is not one of experiments.{experiment.name}: {error}"
    ) from error
  values = options.select(
    run, lambda field: field.identity or field.role is Role.TESTING
  )
  values["num_steps"] = run.training.num_steps
  return Setting(
    name,
    experiment.name,
    by_flag(experiment, values),
    given.present,
    run.training.num_steps,
    run.training.num_tasks,
  )


def by_flag(experiment: Experiment, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings by the name of their flag, as JSON values.

  Args:
    experiment: their experiment.
    settings: by the path of the option, such as "training.num_tasks", or by flag.
  """
  plain = {
    path: list(value) if isinstance(value, tuple) else value
    for path, value in settings.items()
    if not isinstance(value, dict) and path != "experiment"
  }
  found = experiment.program.flags_of(plain)
  return {name: v for name, v in found.items() if name not in _NOT_SETTINGS}
