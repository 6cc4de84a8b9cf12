"""The plan of a comparison, read from a TOML file and checked before it starts."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from experiments import _program
from experiments._program import Experiment
from jsharp import options
from jsharp._flags import Given, words
from jsharp.options import Check, Options, Role, at_least, option

if TYPE_CHECKING:
  from experiments._compare_kinds import Kind
  from jsharp.evaluation.budget import Budget
  from jsharp.training.runs import MetaRun, OrdinaryRun

_TABLES = ("budget", "common", "methods")
_NOT_FLAGS = ("seeds", "budget_factor")
_MAX_BYTES = 2**20
OWN = ("run_dir", "seed", "num_seeds", "num_steps", "num_epochs", "eval_every")
"""The flags of runs that the comparison sets itself."""


def _different(seeds: tuple[int, ...]) -> bool:
  in_range = all(0 <= seed < 2**31 for seed in seeds)
  return 0 < len(seeds) <= 1000 and in_range and len(set(seeds)) == len(seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header(Options):
  """The keys of a plan outside its tables."""

  experiment: str = option("", "The experiment to compare runs of, such as omniglot.")
  baseline: str | None = option(
    None, "The method to compare with; by default the first one.", identity=False
  )
  seeds: tuple[int, ...] = option(
    (0,),
    "Training seeds; the test tasks are the same for all. A method may have its own.",
    check=Check(
      _different, "must be different numbers, at most 1000, from 0 to 2147483647."
    ),
    identity=False,
  )
  seeds_side_by_side: bool = option(False, "Train a method's seeds in one run.")
  validations: int = option(10, "Number of validations in a run.", check=at_least(1))


class Method(NamedTuple):
  """One method of a comparison.

  Attributes:
    flags: the flags of its runs by name, without those that the comparison sets itself.
    seeds: the training seeds.
    budget_factor: the multiple of the budget that each of its runs may spend.
    teacher: the method whose run of the same seed provides the training labels, if any.
    run: the description of its first run, without its directory and length.
  """

  flags: dict[str, Any]
  seeds: tuple[int, ...]
  budget_factor: float
  teacher: str | None
  run: MetaRun | OrdinaryRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A grid of methods and seeds at one budget.

  Attributes:
    header: the keys of the plan outside its tables.
    experiment: the experiment whose runs are compared.
    kind: the kind of these runs.
    baseline: the method that the others are compared with.
    budget: the budget of every run, to be multiplied by its method's `budget_factor`.
    methods: the methods by name; a teacher precedes the methods that it teaches.
  """

  header: Header
  experiment: Experiment
  kind: Kind
  baseline: str
  budget: Budget
  methods: dict[str, Method]

  def runs(self, method: str) -> list[tuple[str, tuple[int, ...]]]:
    """The runs of a method: the name and the seeds of each."""
    seeds = self.methods[method].seeds
    if self.header.seeds_side_by_side and len(seeds) > 1:
      return [(f"{method}-seeds{seeds[0]}to{seeds[-1]}", seeds)]
    return [(f"{method}-seed{seed}", (seed,)) for seed in seeds]

  def stages(self) -> list[list[str]]:
    """The methods in stages: a teacher's stage comes first."""
    depths: dict[str, int] = {}
    for name, method in self.methods.items():
      depths[name] = 0 if method.teacher is None else depths[method.teacher] + 1
    numbers = range(max(depths.values()) + 1)
    return [[name for name in depths if depths[name] == n] for n in numbers]

  def amount(self, method: str, rate: float | None = None) -> int:
    """The meta-steps or epochs that the budget pays for.

    Args:
      method: its name.
      rate: for a budget in minutes: tasks per second, measured in the last phase of a
        run of the method, counting the tasks of all its seeds.

    Raises:
      ValueError: if it pays for less than one, or the method defines no cost.
    """
    run: Any = self.methods[method].run
    factor = self.methods[method].budget_factor
    budget = self.budget._replace(amount=factor * self.budget.amount)
    if rate is not None:
      rate /= len(self.runs(method)[0][1])
    try:
      return self.kind.amount(run, budget, rate)
    except ValueError as error:
      raise ValueError(f"methods.{method}: {error}") from error

  def record(self) -> dict[str, Any]:
    """Everything that determines training and test, as JSON; no directories."""
    record = {**options.identity(self.header), "budget": list(self.budget)}
    for name, method in self.methods.items():
      record[f"seeds.{name}"] = list(method.seeds)
      if method.budget_factor != 1:
        record[f"methods.{name}.budget_factor"] = method.budget_factor
      for flag, value in self.flags_of(name).items():
        record[f"methods.{name}.{flag}"] = value
    return record

  def flags_of(self, method: str) -> dict[str, Any]:
    """The values of all flags that identify a method, as JSON."""
    values = self.experiment.program.flags_of(
      options.select(
        self.methods[method].run,
        lambda field: field.identity or field.role is Role.TESTING,
      )
    )
    return {name: value for name, value in values.items() if name not in OWN}


def load(path: pathlib.Path, overrides: Mapping[str, Any]) -> Plan:
  """Reads a plan and checks every flag of every method.

  Args:
    path: the TOML file.
    overrides: flags that are set for all methods, replacing those of the file.

  Raises:
    ValueError: if the plan is invalid; the message names the key, its value and the
      fix.
  """
  content = _program.read_toml(
    path, flag="plan", what="the comparison", most=_MAX_BYTES
  )
  known = {field.name for field in options.fields(Header)}
  unknown = sorted(content.keys() - known - set(_TABLES))
  use = ", ".join(sorted(known | set(_TABLES)))
  _require(not unknown, f"{path} has unknown keys {unknown}; use {use}")
  header = Header(**{key: content[key] for key in content if key in known})
  common, tables = content.get("common", {}), content.get("methods", {})
  _check_tables(common, tables, overrides)

  from experiments._compare_kinds import kind_of  # Imported late: it imports JAX.
  from jsharp.evaluation.budget import Budget

  experiment = _experiment(header.experiment)
  kind = kind_of(experiment)
  plan = Plan(
    header=header,
    experiment=experiment,
    kind=kind,
    baseline=next(iter(tables)) if header.baseline is None else header.baseline,
    budget=Budget.from_table(content.get("budget", {}), units=kind.units),
    methods={},
  )
  _require(
    plan.baseline in tables,
    f"baseline is {plan.baseline!r}; choose one of {', '.join(tables)}",
  )
  common, left_out = {**common, **overrides}, []
  for name, table in tables.items():
    own = {k: v for k, v in table.items() if k not in _NOT_FLAGS and k not in overrides}
    seeds = _seeds(name, table, header)
    teacher = _teacher(name, own.get("relabel"), seeds, tables, plan.methods)
    num_seeds = len(seeds) if header.seeds_side_by_side else 1
    typed = {**own, "seed": seeds[0]}
    if kind.length == "num_steps":
      typed["num_seeds"] = num_seeds
    where = f"methods.{name}"
    given, run, unread = _describe(plan.experiment, where, typed, common)
    vain = [flag for flag in own if flag in unread and given.changed(flag)]
    _require(not vain, f"{where}: {vain} have no effect there; drop them")
    read = {k: v for k, v in {**common, **own}.items() if k not in unread}
    plan.methods[name] = Method(read, seeds, _factor(name, table), teacher, run)
    left_out.append(unread)
  # A flag that no method uses is an error, as in the table of a method.
  for flag in common.keys() & set.intersection(*left_out):
    typed = {**plan.methods[plan.baseline].flags, flag: common[flag]}
    _describe(plan.experiment, "common", typed, {})
  _check_methods(plan)
  return plan


def _require(holds: Any, message: str) -> None:
  if not holds:
    raise ValueError(message)


def _check_tables(common: Any, methods: Any, overrides: Mapping[str, Any]) -> None:
  """Checks the types of a plan's tables and entries."""
  example = 'write [methods.maml] and below it algorithm = "maml"'
  is_table = isinstance(methods, dict)
  _require(is_table, f"methods must be a table, got {methods!r}; {example}")
  _require(methods, "there is no method; add a table such as [methods.maml]")
  tables = {"common": common, "--set": overrides}
  for name, own in methods.items():
    plain = name.replace("-", "").replace("_", "").replace("+", "")
    _require(plain.isalnum(), f"method name {name!r}: use letters, digits, -, _ and +")
    tables[f"methods.{name}"] = own
  for key, table in tables.items():
    fix = "write [common] and flags below it" if key == "common" else example
    _require(isinstance(table, dict), f"{key} must be a table, got {table!r}; {fix}")
    ours = sorted(table.keys() & {*OWN, "flagfile"})
    _require(not ours, f"{key} sets {ours}, which the comparison sets itself; drop it")
    for name, value in table.items():
      listed = value if isinstance(value, list) else [value]
      _require(
        all(isinstance(entry, str | int | float) for entry in listed),
        f"{key}.{name} must be a number, a string, true, false or a list of numbers or "
        f"strings, got {value!r}; write it as the flag --{name} takes it",
      )


def _seeds(name: str, table: Mapping[str, Any], header: Header) -> tuple[int, ...]:
  """The seeds of a method, checked."""
  try:
    seeds = header.replace(seeds=table.get("seeds", header.seeds)).seeds
  except ValueError as error:
    raise ValueError(f"methods.{name}.{error}") from error
  _require(
    not header.seeds_side_by_side or seeds == tuple(range(seeds[0], seeds[-1] + 1)),
    f"seeds_side_by_side needs consecutive seeds for {name}, got {seeds}",
  )
  return seeds


def _factor(name: str, table: Mapping[str, Any]) -> float:
  """The multiple of the budget that a method may spend, checked."""
  factor = table.get("budget_factor", 1)
  _require(
    type(factor) in (int, float) and 0 < factor <= 1000,
    f"methods.{name}.budget_factor must be a number above 0, at most 1000, got "
    f"{factor!r}; 2 spends twice the budget",
  )
  return float(factor)


def _teacher(
  name: str,
  relabel: Any,
  seeds: tuple[int, ...],
  tables: Mapping[str, Any],
  above: Mapping[str, Method],
) -> str | None:
  """The method that `relabel` names, if it names one."""
  if not isinstance(relabel, str) or relabel not in tables:
    return None
  _require(
    relabel in above,
    f"methods.{name}.relabel is {relabel!r}, which must come before it; move "
    f"[methods.{relabel}] up",
  )
  missing = sorted(set(seeds) - set(above[relabel].seeds))
  _require(
    not missing,
    f"methods.{name}.relabel: {relabel} has no runs of the seeds {missing}; add them",
  )
  return relabel


def _experiment(name: str) -> Experiment:
  try:
    return _program.experiment_of(name)
  except ValueError as error:
    raise ValueError(
      f"experiment is {name!r}; choose one that trains: omniglot, miniimagenet, "
      f"sinusoid or supervised ({error.__cause__})"
    ) from error


def _describe(
  experiment: Experiment,
  where: str,
  typed: Mapping[str, Any],
  background: Mapping[str, Any],
) -> tuple[Given, MetaRun | OrdinaryRun, set[str]]:
  """The description that flags define, and the flags without effect."""
  try:
    given = experiment.program.parse(
      words(typed), flags.FlagValues(), background=words(background)
    )
    run, left_out = _program.describe(experiment, given)
  except (flags.Error, ValueError) as error:
    raise ValueError(f"{where}: {error}") from error
  return given, run, set(left_out)


def _check_methods(plan: Plan) -> None:
  """Checks the methods' costs, and that seeds and test tasks match the baseline's."""
  tests = {}
  for name, method in plan.methods.items():
    shared = options.select(method.run, lambda field: field.shared)
    tests[name] = plan.experiment.program.flags_of(shared)
    if plan.budget.unit != "minutes":
      plan.amount(name)
    elif phases := getattr(method.run, "phases", None):
      phases()
    missing = sorted(set(method.seeds) - set(plan.methods[plan.baseline].seeds))
    _require(
      not missing, f"seeds of {name}: the baseline has no runs of {missing}; add them"
    )
  usual = tests[plan.baseline]
  for name, tasks in tests.items():
    differ = [f for f in tasks if f in usual and tasks[f] != usual[f]]
    this, others = (
      ", ".join(f"{flag} = {values[flag]!r}" for flag in differ)
      for values in (tasks, usual)
    )
    _require(
      not differ,
      f"methods.{name} is tested on tasks of {this}, but the baseline of {others}; put "
      "these flags in [common]",
    )
