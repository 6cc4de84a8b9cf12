"""What a comparison keeps in its directory: its plan, and how fast its methods are."""

import json
import pathlib
import sys
from typing import Any

from experiments import compare_plan
from experiments.compare_plan import Plan

_PILOT_STEPS = 40


def claim(plan: Plan, out: pathlib.Path) -> list[str]:
  """Notes the plan in its directory; what differs from the plan noted before.

  A plan with further methods or seeds takes the place of that one.

  Raises:
    ValueError: if that cannot be read.
  """
  record, kept = plan.record(), out / "plan.json"
  noted = read_json(kept) if kept.exists() else {}
  if not noted or _extends(record, noted):
    _write_json(kept, record)
    return []
  before, now = _flat(noted), _flat(record)
  return sorted(
    key
    for key in before.keys() | now.keys()
    if key not in before or key not in now or before[key] != now[key]
  )


def _extends(record: dict[str, Any], noted: dict[str, Any]) -> bool:
  """Whether every run of the plan that was noted is one of this plan."""
  if record.keys() != noted.keys():
    return False
  seeds, methods = record["seeds"], record["methods"]
  for method, flags in noted["methods"].items():
    before, now = noted["seeds"].get(method), seeds.get(method, [])
    if methods.get(method) != flags or before != now[: len(before or [])]:
      return False
    if record["seeds_side_by_side"] and before != now:  # one run, of these seeds
      return False
  open_ended = {"methods", "seeds"}
  return all(record[key] == noted[key] for key in record.keys() - open_ended)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  """The values of nested tables by keys such as `methods.maml.shot`."""
  if not isinstance(tree, dict):
    return {prefix: tree}
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
  return flat


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The table in a JSON file.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it holds no table.
  """
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path.name} is damaged: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path.name} is damaged: it holds no table")
  return content


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  beside = path.with_name(f".{path.name}")
  beside.write_text(json.dumps(content, indent=2) + "\n")
  beside.replace(path)


def num_steps(plan: Plan, out: pathlib.Path, runner: Any) -> dict[str, int] | None:
  """Meta-steps of each method; for a budget in minutes from its speed, measured once.

  Raises:
    ValueError: if a speed is kept that is not that of this plan.
  """
  if plan.budget[0] != "minutes":
    return {method: compare_plan.num_steps(plan, method) for method in plan.methods}
  kept = out / "steps.json"
  measured = read_json(kept) if kept.exists() else {}
  steps = {}
  for method in plan.methods:
    num_seeds = len(plan.runs(method)[0][1])
    own = {"num_seeds": num_seeds, "flags": plan.flags_of(method)}
    if method not in measured:
      rate = _tasks_per_second(plan, method, num_seeds, out, runner)
      if rate is None:
        return None
      measured[method] = {"tasks_per_second": rate, **own}
    entry = measured[method]
    if not isinstance(entry, dict) or {name: entry.get(name) for name in own} != own:
      raise ValueError(
        f"{kept} holds a speed of {method} with other flags or seeds; delete it and "
        f"{out / 'pilots'}, or choose another --out"
      )
    rate = entry["tasks_per_second"]
    steps[method] = compare_plan.num_steps(plan, method, tasks_per_second=rate)
    entry |= {"budget": list(plan.budget), "num_steps": steps[method]}
    _write_json(kept, measured)
  return steps


def _tasks_per_second(
  plan: Plan, method: str, num_seeds: int, out: pathlib.Path, runner: Any
) -> float | None:
  """The speed of a short run, None if it failed."""
  print(f"measuring the speed of {method}", flush=True)
  directory = out / "pilots" / method
  arguments = [
    *plan.arguments(method),
    f"--num_steps={_PILOT_STEPS}",
    f"--eval_every={_PILOT_STEPS}",
    "--val_tasks=2",
    "--eval_tasks=2",
    f"--run_dir={directory}",
  ]
  if num_seeds > 1:
    arguments.append(f"--num_seeds={num_seeds}")
  if plan.settings(method).algorithm == "maml_plus_plus":  # its last phase
    arguments += ["--multi_step_loss_steps=0", "--first_order_steps=0"]
  if code := runner(plan.experiment, f"pilot-{method}", arguments):
    log = out / "logs" / f"pilot-{method}.txt"
    print(f"compare: exit code {code}, see {log}", file=sys.stderr)
    return None
  return read_json(directory / "result.json")["tasks_per_second"]
