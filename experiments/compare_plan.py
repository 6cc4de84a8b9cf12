"""What a comparison consists of, read from a TOML file and checked before it starts."""

import dataclasses
import json
import pathlib
import tomllib
from types import SimpleNamespace
from typing import Any

from absl import flags

from experiments import (
  compare_checks,
  compare_cost,
  method_flags,
  miniimagenet,
  omniglot,
  program,
  sinusoid,
)

EXPERIMENTS = {"omniglot": omniglot, "miniimagenet": miniimagenet, "sinusoid": sinusoid}
_OURS = frozenset(
  {"run_dir", "seed", "num_seeds", "num_steps", "eval_every", "flagfile"}
)
_KEYS = frozenset(
  {
    "experiment",
    "baseline",
    "seeds",
    "seeds_side_by_side",
    "budget",
    "validations",
    "common",
    "methods",
  }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A grid of methods and seeds at one budget.

  Attributes:
    experiment: omniglot, miniimagenet or sinusoid.
    baseline: the method that differences are taken from.
    seeds: per method, of training; the test tasks are the same for all.
    budget: `(kind, amount)`; kind is "steps" (meta-steps), "gradients" (gradients of
      single examples, see `compare_cost`) or "minutes" (of training).
    validations: how many times a run is validated.
    side_by_side: whether the seeds of a method are one run, `--num_seeds` of it.
    methods: per name its flags, those common to all included.
  """

  experiment: str
  baseline: str
  seeds: dict[str, tuple[int, ...]]
  budget: tuple[str, float]
  validations: int
  side_by_side: bool
  methods: dict[str, dict[str, Any]]

  @property
  def measure(self) -> tuple[str, float, str]:
    """Column of `test_tasks.csv`, its factor, and how the table calls it."""
    if self.experiment != "sinusoid":
      return "accuracy", 100.0, "accuracy, %"
    return "", 1.0, "mean squared error"

  def runs(self, method: str) -> list[tuple[str, tuple[int, ...]]]:
    """The runs of a method: the name and the seeds of each."""
    seeds = self.seeds[method]
    if self.side_by_side and len(seeds) > 1:
      return [(f"{method}-seeds{seeds[0]}to{seeds[-1]}", seeds)]
    return [(f"{method}-seed{seed}", (seed,)) for seed in seeds]

  def arguments(self, method: str) -> list[str]:
    """The flags of a method as a command line has them."""
    return [_argument(name, value) for name, value in self.methods[method].items()]

  def settings(self, method: str) -> SimpleNamespace:
    """The values of all flags of a method.

    Raises:
      ValueError: if the experiment refuses one of them.
    """
    values = flags.FlagValues()
    EXPERIMENTS[self.experiment].define_flags(values)
    try:
      values(["compare", *self.arguments(method)])
    except flags.Error as error:
      raise ValueError(f"methods.{method}: {error}") from error
    if refusal := method_flags.unread(values, values):
      raise ValueError(f"methods.{method}: {refusal}")
    return program.resolve(
      self.experiment, {name: values[name].value for name in values}
    )

  def record(self) -> dict[str, Any]:
    """All that decides what is trained and tested, ready for JSON; no directories."""
    return {
      "experiment": self.experiment,
      "budget": list(self.budget),
      "validations": self.validations,
      "seeds_side_by_side": self.side_by_side,
      "seeds": {name: list(seeds) for name, seeds in self.seeds.items()},
      "methods": {name: self.flags_of(name) for name in self.methods},
    }

  def flags_of(self, method: str) -> dict[str, Any]:
    """The flags that make a method's runs what they are, ready for JSON."""
    settings = self.settings(method)
    kept = {**program.identity(settings), "eval_tasks": settings.eval_tasks}
    values = {name: value for name, value in kept.items() if name not in _OURS}
    return json.loads(json.dumps(values))


def load(path: pathlib.Path, overrides: dict[str, Any]) -> Plan:
  """Reads a plan and checks every flag of every method.

  Args:
    path: the TOML file.
    overrides: flags that are set for all methods, in place of those of the file.

  Raises:
    ValueError: naming the key, its value and the fix.
    OSError: if the file cannot be read.
  """
  try:
    content = tomllib.loads(path.read_text())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is no TOML file: {error}") from error
  if unknown := content.keys() - _KEYS:
    raise ValueError(f"{path} has unknown keys {sorted(unknown)}; use {sorted(_KEYS)}")
  compare_checks.check_types(content)
  common = {**content.get("common", {}), **overrides}
  tables = content.get("methods", {})
  seeds = content.get("seeds", [0])
  methods = {
    name: {
      **common,
      **{flag: own[flag] for flag in own if flag != "seeds"},
      **overrides,
    }
    for name, own in tables.items()
  }
  plan = Plan(
    experiment=content.get("experiment", ""),
    baseline=content.get("baseline", next(iter(methods), "")),
    seeds={name: tuple(own.get("seeds", seeds)) for name, own in tables.items()},
    budget=compare_checks.budget_of(content.get("budget", {})),
    validations=content.get("validations", 10),
    side_by_side=content.get("seeds_side_by_side", False),
    methods=methods,
  )
  _check(plan)
  return plan


def num_steps(plan: Plan, method: str, *, tasks_per_second: float | None = None) -> int:
  """The meta-steps that the budget pays for.

  Args:
    plan: the comparison.
    method: one of its methods.
    tasks_per_second: for a budget in minutes, as a run of the method measured it in
      its last phase. Earlier ones are taken to last longer as their gradients cost.

  Raises:
    ValueError: if it pays for less than one.
  """
  kind, amount = plan.budget
  settings = plan.settings(method)
  if kind == "steps":
    steps = amount
  elif kind == "gradients":
    steps = compare_cost.steps_paid(settings, amount)
  else:
    assert tasks_per_second is not None
    side_by_side = len(plan.runs(method)[0][1])  # the rate counts the tasks of all
    num_tasks = 60 * amount * tasks_per_second / side_by_side
    cost = compare_cost.phases(settings)[-1][1]
    steps = compare_cost.steps_paid(settings, num_tasks * cost)
  if steps < 1:
    raise ValueError(
      f"the budget of {amount:g} {kind} does not pay for one meta-step of {method}; "
      "raise it or lower num_tasks"
    )
  return int(steps)


def _argument(name: str, value: Any) -> str:
  if isinstance(value, bool):
    return f"--{name}" if value else f"--no{name}"
  if isinstance(value, list):
    return f"--{name}={','.join(map(str, value))}"
  return f"--{name}={value}"


def _check(plan: Plan) -> None:
  if plan.experiment not in list(EXPERIMENTS):
    raise ValueError(
      f"experiment is {plan.experiment!r}; choose one of {', '.join(EXPERIMENTS)}"
    )
  if not plan.methods:
    raise ValueError("there is no method; add a table such as [methods.maml]")
  if plan.baseline not in list(plan.methods):
    raise ValueError(
      f"baseline is {plan.baseline!r}; choose one of {', '.join(plan.methods)}"
    )
  if not isinstance(plan.side_by_side, bool):
    raise ValueError(f"seeds_side_by_side is {plan.side_by_side!r}; give true or false")
  for name, seeds in plan.seeds.items():
    if not seeds or len(set(seeds)) < len(seeds):
      raise ValueError(
        f"seeds of {name} must be one or more different numbers, got {seeds}"
      )
    if plan.side_by_side and list(seeds) != list(range(seeds[0], seeds[-1] + 1)):
      raise ValueError(
        f"seeds_side_by_side needs seeds in a row for {name}, got {seeds}"
      )
    if missing := set(seeds) - set(plan.seeds[plan.baseline]):
      raise ValueError(
        f"seeds of {name}: the baseline has no runs of {sorted(missing)}; add them"
      )
  if plan.side_by_side and plan.experiment == "sinusoid":
    raise ValueError("seeds_side_by_side is for images; sinusoid runs take no time")
  if type(plan.validations) is not int or plan.validations < 1:
    raise ValueError(
      f"validations must be at least 1, got {plan.validations!r}; give a whole number"
    )
  tests = {}
  for name, own in plan.methods.items():
    if ours := own.keys() & _OURS:
      raise ValueError(
        f"methods.{name} sets {sorted(ours)}, which the comparison sets itself; drop it"
      )
    if not name.replace("-", "").replace("_", "").replace("+", "").isalnum():
      raise ValueError(f"method name {name!r}: use letters, digits, -, _ and +")
    tests[name] = compare_checks.test_tasks(plan.settings(name))
    if plan.budget[0] != "minutes":
      num_steps(plan, name)
  usual = tests[plan.baseline]
  for name, test in tests.items():
    if differ := [flag for flag in test if test[flag] != usual[flag]]:
      this, others = (
        ", ".join(f"{flag} = {tasks[flag]!r}" for flag in differ)
        for tasks in (test, usual)
      )
      raise ValueError(
        f"methods.{name} is tested on tasks of {this}, the baseline of {others}; put "
        "these flags in [common]"
      )
