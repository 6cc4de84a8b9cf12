"""What a comparison consists of, read from a TOML file and checked before it starts."""

import dataclasses
import math
import pathlib
import tomllib
from types import SimpleNamespace
from typing import Any

from absl import flags

from experiments import method_flags, miniimagenet, omniglot, program, sinusoid

EXPERIMENTS = {"omniglot": omniglot, "miniimagenet": miniimagenet, "sinusoid": sinusoid}
BUDGETS = ("steps", "gradients", "minutes")
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
      single examples, see `gradients_per_task`) or "minutes" (of training).
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
    changed = {name: values[name].value for name in values}
    unread = [name for name, value in changed.items() if value != values[name].default]
    refusal = method_flags.unread(values["algorithm"].value, unread)
    if refusal:
      raise ValueError(f"methods.{method}: {refusal}")
    return program.resolve(self.experiment, changed)


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
    budget=_budget(content.get("budget", {})),
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
    tasks_per_second: as measured, for a budget in minutes.

  Raises:
    ValueError: if it pays for less than one.
  """
  kind, amount = plan.budget
  settings = plan.settings(method)
  if kind == "steps":
    steps = amount
  elif kind == "gradients":
    steps = amount / (settings.num_tasks * gradients_per_task(settings))
  else:
    assert tasks_per_second is not None
    steps = 60 * amount * tasks_per_second / settings.num_tasks
  if steps < 1:
    raise ValueError(
      f"the budget of {amount:g} {kind} does not pay for one meta-step of {method}; "
      "raise it or lower num_tasks"
    )
  return int(steps)


def gradients_per_task(settings: SimpleNamespace) -> float:
  """Gradients of single examples that one task of a meta-step costs.

  The unit is a forward and a backward pass of the whole model for one example; a
  Hessian-vector product counts as two, what a head or a context alone costs as
  nothing, and so does a forward pass that only measures.

  Args:
    settings: the values of the flags.

  Returns:
    The cost; where several ways and shots are drawn from, of --way and --shot.
  """
  is_sine = settings.experiment == "sinusoid"
  way = 1 if is_sine else settings.way
  support, query = way * settings.shot, way * settings.query_shot
  inner, outer = _sharp(settings)
  steps = settings.num_inner_steps
  gradients = 2 if inner else 1  # per inner step
  products = gradients if settings.differentiate_perturbation else 1
  cost: float
  match settings.algorithm:
    case "protonet" | "ridge" | "black_box":
      cost = support + query
    case "anil":
      cost = support + query
    case "reptile":
      batch = min(settings.inner_batch_size or support, support)
      cost = steps * gradients * batch
    case "fomaml":
      cost = steps * gradients * support + query
    case "imaml":
      cost = (steps * gradients + 2 * settings.num_cg_steps + 2) * support + query
    case "maml_plus_plus":
      losses = steps if settings.multi_step_loss_steps else 1
      cost = steps * (gradients + 2 * products) * support + losses * query
    case _:
      cost = steps * (gradients + 2 * products) * support + query
  return 2 * cost if outer else cost


def _sharp(settings: SimpleNamespace) -> tuple[bool, bool]:
  where = method_flags.SHARP_MAML.get(settings.algorithm, settings.sharpness)
  return where in ("low", "both"), where in ("up", "both")


def _argument(name: str, value: Any) -> str:
  if isinstance(value, bool):
    return f"--{name}" if value else f"--no{name}"
  if isinstance(value, list):
    return f"--{name}={','.join(map(str, value))}"
  return f"--{name}={value}"


def _budget(budget: dict[str, Any]) -> tuple[str, float]:
  if len(budget) != 1 or budget.keys() - set(BUDGETS):
    raise ValueError(
      f"budget must name exactly one of {', '.join(BUDGETS)}, got {budget}; for "
      "example [budget] steps = 2000"
    )
  ((kind, amount),) = budget.items()
  is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
  if not is_number or not 0 < amount < math.inf:
    raise ValueError(f"budget.{kind} must be a positive number, got {amount!r}")
  return kind, float(amount)


def _check(plan: Plan) -> None:
  if plan.experiment not in EXPERIMENTS:
    raise ValueError(
      f"experiment is {plan.experiment!r}; choose one of {', '.join(EXPERIMENTS)}"
    )
  if not plan.methods:
    raise ValueError("there is no method; add a table such as [methods.maml]")
  if plan.baseline not in plan.methods:
    raise ValueError(
      f"baseline is {plan.baseline!r}; choose one of {', '.join(plan.methods)}"
    )
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
  if not isinstance(plan.validations, int) or plan.validations < 1:
    raise ValueError(f"validations must be at least 1, got {plan.validations!r}")
  shapes = {}
  for name, own in plan.methods.items():
    if ours := own.keys() & _OURS:
      raise ValueError(
        f"methods.{name} sets {sorted(ours)}, which the comparison sets itself; drop it"
      )
    if not name.replace("-", "").replace("_", "").replace("+", "").isalnum():
      raise ValueError(f"method name {name!r}: use letters, digits, -, _ and +")
    settings = plan.settings(name)
    shapes[name] = {
      flag: getattr(settings, flag, None)
      for flag in ("way", "shot", "eval_query_shot", "eval_tasks", "eval_seed")
    }
    if plan.budget[0] != "minutes":
      num_steps(plan, name)
  for name, shape in shapes.items():
    if shape != shapes[plan.baseline]:
      raise ValueError(
        f"methods.{name} is tested on {shape}, the baseline on "
        f"{shapes[plan.baseline]}; put these flags in [common]"
      )
