"""The report of a run: its result and its protocol card.

A few-shot accuracy means little without its protocol, so the two are written together:
which statistics normalise, how many inner steps in training and at test, which
checkpoint, which data, which versions.
"""

import hashlib
import math
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

import jsharp
from jsharp import _files
from jsharp.evaluation.tasks import mean_and_ci95

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def summarise(
  metrics: Mapping[str, np.ndarray], prefix: str = "test_"
) -> dict[str, float]:
  """Mean and 95 % interval of every per-task metric.

  Args:
    metrics: per name `[num_tasks]`, or `[num_tasks, num_seeds]` for several learners;
      each task is then averaged over learners first.
    prefix: a prefix for each name.

  Returns:
    `{prefix + name: mean, prefix + name + "_ci95": half_width}`.

  Raises:
    ValueError: if a metric has fewer than two tasks.

  Example:
    >>> summarise({"accuracy": np.array([1.0, 1.0])})
    {'test_accuracy': 1.0, 'test_accuracy_ci95': 0.0}
  """
  result = {}
  for name, values in metrics.items():
    by_task = values if values.ndim == 1 else values.mean(axis=1)
    result[prefix + name], result[f"{prefix}{name}_ci95"] = mean_and_ci95(by_task)
  return result


def over_domains(domains: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The mean accuracy over domains, as Meta-Dataset reports it.

  Args:
    domains: the figures of each domain, with "test_accuracy" and "test_accuracy_ci95",
      as from `summarise`.

  Returns:
    "test_accuracy_over_domains" and its "_ci95", which treats the domains' tasks as
    independent; empty if there is no domain.

  Example:
    >>> two = [{"test_accuracy": x, "test_accuracy_ci95": 0.03} for x in (0.5, 0.7)]
    >>> figures = over_domains([{**one, "domain": "a"} for one in two])
    >>> {name: round(value, 4) for name, value in figures.items()}
    {'test_accuracy_over_domains': 0.6, 'test_accuracy_over_domains_ci95': 0.0212}
  """
  if not domains:
    return {}
  name = "test_accuracy"
  means = [domain[name] for domain in domains]
  squares = [domain[f"{name}_ci95"] ** 2 for domain in domains]
  return {
    f"{name}_over_domains": sum(means) / len(means),
    f"{name}_over_domains_ci95": math.sqrt(sum(squares)) / len(squares),
  }


def errors(
  tested: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """The errors and losses of a classifier.

  Args:
    tested: "accuracy" and "loss" `[num_examples]` of the test examples, and
      "top5_accuracy" if available.
    seen: the same for the training examples.

  Returns:
    Means and, for the test set, half-widths of 95 % intervals over the examples.

  Raises:
    ValueError: if there are fewer than two test examples.

  Example:
    >>> metrics = {"accuracy": np.array([1.0, 1.0]), "loss": np.array([0.0, 0.5])}
    >>> errors(metrics, metrics)["test_loss"]
    0.25
  """
  error, half_width = mean_and_ci95(1 - tested["accuracy"])
  top5 = {}
  if "top5_accuracy" in tested:
    top5_error, top5_half_width = mean_and_ci95(1 - tested["top5_accuracy"])
    top5 = {
      "test_top5_error": top5_error,
      "test_top5_error_ci95": top5_half_width,
      "train_top5_error": float(1 - seen["top5_accuracy"].mean()),
    }
  return {
    "test_error": error,
    "test_error_ci95": half_width,
    "test_accuracy": 1 - error,
    "test_accuracy_ci95": half_width,
    "test_loss": float(tested["loss"].mean()),
    "train_error": float(1 - seen["accuracy"].mean()),
    "train_loss": float(seen["loss"].mean()),
    **top5,
    "num_eval_examples": len(tested["loss"]),
    "num_train_eval_examples": len(seen["loss"]),
  }


def per_example(metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The columns of a classifier's `test_tasks.csv`: errors instead of accuracies.

  Example:
    >>> metrics = {"accuracy": np.array([1.0, 0.0]), "loss": np.array([0.1, 2.0])}
    >>> per_example(metrics)["error"].tolist()
    [0.0, 1.0]
  """
  columns = {"error": 1 - metrics["accuracy"], "loss": metrics["loss"]}
  if "top5_accuracy" in metrics:
    columns["top5_error"] = 1 - metrics["top5_accuracy"]
  return columns


def csv_table(columns: Mapping[str, np.ndarray]) -> str:
  """Formats vectors of equal length as comma-separated values, one row per entry.

  Args:
    columns: per name `[n]`, or `[n, k]` for columns `name_0` to `name_(k-1)`.

  Returns:
    The text: a line of names, then `n` lines of exact numbers.

  Example:
    >>> print(csv_table({"accuracy": np.array([0.5, 1.0], np.float32)}), end="")
    task,accuracy
    0,0.5
    1,1.0
  """
  flat: dict[str, np.ndarray] = {}
  for name, values in columns.items():
    if values.ndim == 1:
      flat[name] = values
    else:
      flat |= {f"{name}_{i}": column for i, column in enumerate(values.T)}
  lines = [",".join(["task", *flat])]
  for task, row in enumerate(zip(*flat.values(), strict=True)):
    lines.append(",".join([str(task), *(repr(float(value)) for value in row)]))
  return "\n".join(lines) + "\n"


def read_column(
  path: str | os.PathLike[str], column: str | None, *, sha256: str | None = None
) -> np.ndarray:
  r"""Reads one column of a file that holds a `csv_table`.

  Args:
    path: the file, such as the `test_tasks.csv` of a run.
    column: the column's name; the last column if None. Columns `name_0`, `name_1`, ...
      are found as `name`.
    sha256: the digest that the file must have, as stored in the run's result.

  Returns:
    `[k, n]`: one row for each of the `k` columns of that name, such as one per seed.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is damaged or has no such column.

  Example:
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...   _ = file.write("task,loss_0,loss_1\n0,0.5,1.5\n1,2.5,3.5\n")
    ...   file.flush()
    ...   read_column(file.name, "loss").tolist()
    [[0.5, 2.5], [1.5, 3.5]]
  """
  content = _files.read_bytes(path, most=_files.MAX_TABLE_BYTES)
  if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
    raise _files.FileError(
      f"{path} is damaged: its SHA-256 is not the one in result.json; remove both "
      "files and start the run again, which repeats the test"
    )
  names, rows = _files.parse_csv(content, where=path)
  if not names:
    raise _files.FileError(f"{path} is empty; restore it from a copy")
  wanted = names[-1] if column is None else column
  places = [i for i, name in enumerate(names) if name == wanted]
  if not places:
    pattern = re.compile(rf"{re.escape(wanted)}_\d+")
    places = [i for i, name in enumerate(names) if pattern.fullmatch(name)]
  if not places:
    raise ValueError(f"{path} has no column {wanted!r}; it has {', '.join(names)}")
  try:
    return np.array([[float(row[place]) for row in rows] for place in places])
  except ValueError as error:
    raise _files.FileError(f"{path} is damaged: {error}") from error


def environment() -> dict[str, Any]:
  """The environment of a run: versions, device, command and, in a checkout, the commit.

  Returns:
    A dict ready for JSON.

  Example:
    >>> sorted(environment())
    ['command', 'device', 'git_commit', 'versions']
  """
  versions = {package: metadata.version(package) for package in PACKAGES}
  device = jax.devices()[0]
  return {
    "versions": {
      "python": platform.python_version(),
      "jsharp": jsharp.__version__,
      **versions,
    },
    "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform}), "
    f"{os.cpu_count()} CPUs",
    "git_commit": git_commit(pathlib.Path(jsharp.__file__).parents[1]),
    "command": shlex.join(sys.orig_argv),
  }


def git_commit(checkout: pathlib.Path) -> str | None:
  """The commit of a checkout, marked if there are uncommitted changes.

  Args:
    checkout: the directory that should contain `.git`.

  Returns:
    The hash, with `+changes` if tracked files differ from it; None outside a
    checkout, without git, or before the first commit.

  Example:
    >>> git_commit(pathlib.Path("/nowhere")) is None
    True
  """
  if not (checkout / ".git").exists():
    return None

  def git(*arguments: str) -> str:
    return subprocess.run(
      ["git", "-C", str(checkout), *arguments],
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()

  try:
    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+changes" if changes else "")
  except (OSError, subprocess.SubprocessError):
    return None


def jsonable(value: Any) -> Any:
  """Replaces infinity and NaN, which strict JSON lacks, by strings.

  `float` converts them back.

  Args:
    value: numbers, strings, None, and lists, tuples and dicts of them.

  Returns:
    The same, with lists for tuples.

  Example:
    >>> jsonable({"p": float("inf"), "mse": (0.5, 1)})
    {'p': 'inf', 'mse': [0.5, 1]}
  """
  if isinstance(value, Mapping):
    return {key: jsonable(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [jsonable(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def as_good(records: Sequence[Mapping[str, Any]], step: int, score: str) -> str | None:
  """How many candidates are within the 95 % interval of the one that was chosen.

  Args:
    records: the records of a run's `metrics.jsonl`.
    step: the step of the candidate with the best validation.
    score: the metric that decides, as "accuracy".

  Returns:
    One phrase for the card; None if the interval is not in the records.

  Example:
    >>> records = [
    ...   {"step": 10, "val_accuracy": 0.52, "val_accuracy_ci95": 0.05},
    ...   {"step": 20, "val_accuracy": 0.55, "val_accuracy_ci95": 0.05},
    ...   {"step": 30, "val_accuracy": 0.41, "val_accuracy_ci95": 0.05}]
    >>> as_good(records, 20, "accuracy")
    '1 of 2 others, within 55.00 ± 5.00 %'
  """
  name = f"val_{score}"
  found = {r["step"]: r for r in records if r.get(f"{name}_ci95") is not None}
  best = found.pop(step, None)
  if best is None:
    return None
  value, half_width = best[name], best[f"{name}_ci95"]
  near = sum(value - r[name] <= half_width for r in found.values())
  shown = f"{100 * value:.2f} ± {100 * half_width:.2f} %"
  return f"{near} of {len(found)} others, within {shown}"


def protocol_card(result: Mapping[str, Any]) -> str:
  """The protocol card: the result and its protocol as a block of aligned text.

  Args:
    result: the content of `result.json`: the measured figures and `protocol`.

  Returns:
    Lines of at most 88 characters where the values allow it.

  Example:
    >>> print(protocol_card({
    ...   "experiment": "sinusoid", "num_eval_tasks": 600,
    ...   "test_mse_by_step": [3.1, 0.7], "test_mse_by_step_ci95": [0.2, 0.1],
    ...   "protocol": {"num_inner_steps": 1}}))
    sinusoid ----------------------------------------------------------------
      test mse, 0 steps     3.1000 ± 0.2000
      test mse, 1 step      0.7000 ± 0.1000
      test tasks            600
      num inner steps       1
  """
  rows = list(_measured_rows(result))
  for unit in ("tasks", "examples"):
    if f"num_eval_{unit}" in result:
      rows.append((f"test {unit}", result[f"num_eval_{unit}"]))
    if f"{unit}_per_second" in result:
      rows.append((f"training {unit}/s", f"{result[f'{unit}_per_second']:.1f}"))
  rows += _protocol_rows(result["protocol"])
  title = f"{result['experiment']} "
  lines = [title + "-" * (73 - len(title))]
  lines += [f"  {name:<20}  {value}" for name, value in rows]
  return "\n".join(lines)


def _measured_rows(result: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
  if "test_error" in result:
    mean, half_width = (100 * float(result[f"test_error{k}"]) for k in ("", "_ci95"))
    yield "test error", f"{mean:.2f} ± {half_width:.2f} %"
    if "test_top5_error" in result:
      keys = ("test_top5_error", "test_top5_error_ci95")
      mean, half_width = (100 * float(result[key]) for key in keys)
      yield "test error, top 5", f"{mean:.2f} ± {half_width:.2f} %"
    yield "training error", f"{100 * float(result['train_error']):.2f} %"
    for when in ("start", "end"):
      if values := result.get(f"hessian_eigenvalues_{when}"):
        shown = ", ".join(f"{float(value):.4g}" for value in values)
        yield f"Hessian, {when}", shown
    return
  for name, policy in (("", "transductive"), ("_inductive", "inductive")):
    key = f"test_accuracy{name}"
    if key in result:
      mean, half_width = (100 * float(result[k]) for k in (key, f"{key}_ci95"))
      yield "test accuracy", f"{mean:.2f} ± {half_width:.2f} %  {policy}"
  if "test_ensemble_accuracy" in result:
    key = "test_ensemble_accuracy"
    mean, half_width = (100 * float(result[k]) for k in (key, f"{key}_ci95"))
    number = len(result["ensemble_steps"])
    yield "test accuracy", f"{mean:.2f} ± {half_width:.2f} %  ensemble of {number}"
  if "test_accuracy_over_domains" in result:
    key = "test_accuracy_over_domains"
    mean, half_width = (100 * float(result[k]) for k in (key, f"{key}_ci95"))
    yield "test accuracy", f"{mean:.2f} ± {half_width:.2f} %  mean over domains"
  for kind in result.get("test_variations", ()):
    mean, half_width = (100 * float(kind[f"test_accuracy{k}"]) for k in ("", "_ci95"))
    names = [name for name in kind if not name.startswith("test_")]
    where = ", ".join(f"{n.replace('_', ' ')} {_short(kind[n])}" for n in names)
    yield "  variation", f"{mean:.2f} ± {half_width:.2f} %  {where}"
  for name, digits in (("mse", 4), ("return", 2)):
    by_step = zip(
      result.get(f"test_{name}_by_step", ()),
      result.get(f"test_{name}_by_step_ci95", ()),
      strict=True,
    )
    for step, (mean, half_width) in enumerate(by_step):
      plural = "" if step == 1 else "s"
      yield (
        f"test {name}, {step} step{plural}",
        f"{float(mean):.{digits}f} ± {float(half_width):.{digits}f}",
      )


def _short(value: Any) -> str:
  return value if isinstance(value, str) else f"{value:g}"


def _protocol_rows(protocol: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
  for name, value in protocol.items():
    if name == "command":  # May be very long; result.json has it.
      continue
    if isinstance(value, Mapping):
      pairs = [
        str(entry) if key == "name" else f"{key} {entry}"
        for key, entry in value.items()
        if entry is not None
      ]
      value, *rest = _wrapped(pairs, width=64) or ["none"]
      yield name.replace("_", " "), value
      yield from (("", line) for line in rest)
    elif value is not None:
      yield name.replace("_", " "), str(value)


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
  """Joins parts with commas into lines of at most `width` characters."""
  lines: list[str] = []
  for part in parts:
    if lines and len(lines[-1]) + len(part) + 2 <= width:
      lines[-1] += f", {part}"
    else:
      lines.append(part)
  return lines
