"""The files of a comparison's directory: its plan, its speeds, its tables."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from experiments._compare_plan import Plan
from jsharp import options
from jsharp._files import read_table, write_atomically, write_json
from jsharp._flags import words
from jsharp._terminal import say, tell

if TYPE_CHECKING:
  import numpy as np

_PILOT = {"num_steps": 40, "eval_every": 40, "val_tasks": 2, "eval_tasks": 2}

Start = Callable[[str, str, list[str]], int]
"""`start(program, name, arguments) -> exit code` of a run."""


def claim(plan: Plan, out: pathlib.Path) -> list[str]:
  """Saves the plan in its directory; returns the differences from an earlier plan.

  A plan with additional methods or seeds replaces the earlier one.

  Raises:
    OSError: if it cannot be read or written.
    ValueError: if it is damaged.
  """
  record, kept = plan.record(), out / "plan.json"
  noted = read_table(kept) if kept.exists() else {}
  new = {name for name in plan.methods if f"seeds.{name}" not in noted}
  differing = []
  for key in sorted(record.keys() | noted.keys()) if noted else ():
    table, _, rest = key.partition(".")
    before, now = noted.get(key), record.get(key)
    if table == "seeds" and before and now and not plan.header.seeds_side_by_side:
      now = now[: len(before)]  # Seeds side by side are one run.
    if before != now and rest.partition(".")[0] not in new:
      differing.append(key)
  if not differing:
    write_json(kept, record)
  return differing


def amounts(plan: Plan, out: pathlib.Path, start: Start) -> dict[str, int] | None:
  """Meta-steps or epochs of each method; for minutes from a speed measured once.

  Returns:
    The number of each method; None if a speed could not be measured.

  Raises:
    ValueError: if the saved speed belongs to other flags or seeds.
  """
  if plan.budget.unit != "minutes":
    return {method: plan.amount(method) for method in plan.methods}
  kept = out / "steps.json"
  measured = read_table(kept) if kept.exists() else {}
  steps = {}
  for method in plan.methods:
    num_seeds = len(plan.runs(method)[0][1])
    own = {"num_seeds": num_seeds, "flags": plan.flags_of(method)}
    if method not in measured:
      rate = _tasks_per_second(plan, method, num_seeds, out, start)
      if rate is None:
        return None
      measured[method] = {"tasks_per_second": rate, **own}
    entry = measured[method]
    if not isinstance(entry, dict) or {name: entry.get(name) for name in own} != own:
      raise ValueError(
        f"{kept} has a speed of {method} with other flags or seeds; delete it and "
        f"{out / 'pilots'}, or choose another --out"
      )
    rate = entry["tasks_per_second"]
    steps[method] = plan.amount(method, rate)
    entry |= {"budget": list(plan.budget), "num_steps": steps[method]}
    write_json(kept, measured)
  return steps


def _tasks_per_second(
  plan: Plan, method: str, num_seeds: int, out: pathlib.Path, start: Start
) -> float | None:
  """The speed of a short run in the method's last phase, None if it failed."""
  tell(f"measuring the speed of {method}")
  directory = out / "pilots" / method
  algorithm: Any = plan.methods[method].run.algorithm
  now, last = (
    options.select(phase, lambda field: True)
    for phase in (algorithm, algorithm.last_phase())
  )
  own = {name: value for name, value in last.items() if value != now[name]}
  own |= {**_PILOT, "run_dir": directory, "num_seeds": num_seeds}
  arguments, name = words({**plan.methods[method].flags, **own}), f"pilot-{method}"
  if code := start(f"experiments.{plan.experiment.name}", name, arguments):
    say(f"compare: exit code {code}, see {out / 'logs' / f'{name}.txt'}")
    return None
  return read_table(directory / "result.json")["tasks_per_second"]


def report(
  plan: Plan,
  steps: Mapping[str, int],
  runs: Mapping[str, list[pathlib.Path]],
  out: pathlib.Path,
) -> str:
  """Writes `comparison.md`, `.csv` and `.png`; returns the Markdown text.

  Args:
    plan: the comparison.
    steps: meta-steps or epochs of each method.
    runs: the directories of each method's finished runs.
    out: the directory to write to.
  """
  from jsharp.evaluation import comparison
  from jsharp.evaluation.report import read_column

  column, scale, measure = plan.experiment.measure
  ended = {name: [read_table(p / "result.json") for p in runs[name]] for name in runs}

  def tested(name: str) -> list[np.ndarray]:
    return [
      row
      for path, result in zip(runs[name], ended[name], strict=True)
      for row in read_column(
        path / "test_tasks.csv", column, sha256=result.get("test_tasks_sha256")
      )
    ]

  results = {name: tested(name) for name in runs}
  baseline = plan.baseline if plan.baseline in runs else None
  seeds = {name: plan.methods[name].seeds for name in runs}
  rows = comparison.compare(results, baseline=baseline, seeds=seeds)
  over = plan.kind.tested.removeprefix("test ")
  lines = [comparison.markdown(rows, measure=measure, scale=scale, over=over), ""]
  if baseline is None:
    lines += [f"The baseline {plan.baseline} has no results, so no differences.", ""]
  kind = plan.kind
  first = next(iter(runs))
  num_tested = kind.num_tested(cast(Any, plan.methods[first].run), ended[first])
  lines += [
    f"Budget: {plan.budget.amount:g} {plan.budget.unit} per run. ± are half-widths of "
    f"95 % intervals: over {num_tested} {kind.tested} (1.96 standard errors), and over "
    "the training seeds (Student's t). Differences are paired by "
    f"{over.removesuffix('s')} and by seed; bold where "
    "both intervals exclude zero.",
    "",
    f"| {' | '.join(('method', *kind.costs))} |",
    "|---" * (1 + len(kind.costs)) + "|",
  ]
  for name in runs:
    run: Any = plan.methods[name].run
    cells = [name, *kind.cells(run, steps[name], ended[name])]
    lines.append(f"| {' | '.join(cells)} |")
  text = "\n".join(lines) + "\n"
  write_atomically(out / "comparison.md", text.encode())
  write_atomically(out / "comparison.csv", comparison.comparison_csv(rows).encode())
  figure = out / "comparison.png"
  comparison.plot_comparison(rows, figure, measure=measure, scale=scale)
  return text
