"""What a plan may hold, and what decides on which tasks its methods are tested."""

import math
from types import SimpleNamespace
from typing import Any

from experiments import task_flags

BUDGETS = ("steps", "gradients", "minutes")
_TEST_FLAGS = (
  "way",
  "shot",
  "eval_query_shot",
  "eval_tasks",
  "eval_seed",
  "support_label_noise",
  "dataset",
  "data_dir",
  "test_dataset",
  "test_data_dir",
  "omniglot_split",
  "rotate_test",
  "image_size",
  "max_phase",
)


def check_types(content: dict[str, Any]) -> None:
  """Refuses seeds, flags and tables of another kind than a plan has.

  Raises:
    ValueError: naming the key, its value and the fix.
  """
  methods = content.get("methods", {})
  example = 'write [methods.maml] and below it algorithm = "maml"'
  tables = [("common", content.get("common", {}), "write [common] and flags below it")]
  tables += [("methods", methods, example)]
  if isinstance(methods, dict):
    tables += [(f"methods.{name}", own, example) for name, own in methods.items()]
  for key, table, fix in tables:
    if not isinstance(table, dict):
      raise ValueError(f"{key} must be a table, got {table!r}; {fix}")
    for name, value in table.items():
      wrong = not all(
        isinstance(entry, str | int | float)
        for entry in (value if isinstance(value, list) else [value])
      )
      if wrong and key != "methods":
        raise ValueError(
          f"{key}.{name} must be a number, a text, true, false or a list of numbers or "
          f"texts, got {value!r}; write it as the flag --{name} takes it"
        )
  owners = [
    ("seeds", content),
    *((f"methods.{k}.seeds", v) for k, v in methods.items()),
  ]
  for key, owner in owners:
    seeds = owner.get("seeds", [0])
    if not isinstance(seeds, list) or not all(
      type(seed) is int and 0 <= seed < 2**31 for seed in seeds
    ):
      raise ValueError(
        f"{key} must be a list of whole numbers from 0 to 2147483647, got {seeds!r}; "
        "for example [0, 1, 2]"
      )


def budget_of(budget: Any) -> tuple[str, float]:
  """The kind and the amount of a budget.

  Raises:
    ValueError: if it is no table of one positive number.
  """
  if not isinstance(budget, dict) or len(budget) != 1 or budget.keys() - set(BUDGETS):
    raise ValueError(
      f"budget must name exactly one of {', '.join(BUDGETS)}, got {budget!r}; for "
      "example [budget] and below it steps = 2000"
    )
  ((kind, amount),) = budget.items()
  is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
  if not is_number or not 0 < amount < math.inf:
    raise ValueError(f"budget.{kind} must be a positive number, got {amount!r}")
  return kind, float(amount)


def test_tasks(settings: SimpleNamespace) -> dict[str, Any]:
  """The flags that decide on which tasks a run is tested."""
  tasks = {
    flag: getattr(settings, flag) for flag in _TEST_FLAGS if hasattr(settings, flag)
  }
  for flag, neutral in task_flags.DISTORTIONS.items():
    if hasattr(settings, flag):
      tasks[flag] = task_flags.numbers(getattr(settings, flag)) or [neutral] * 2
  return tasks
