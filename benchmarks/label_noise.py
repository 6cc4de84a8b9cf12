"""Measures whether SAM helps under label noise, per epoch and per gradient.

    python -m benchmarks.label_noise --data_dir=DIRECTORY --out=DIRECTORY

trains a ResNet on a subset of CIFAR-10, some of whose labels are replaced at random:
with SGD, with SGD for twice the epochs (as many gradients as SAM takes), and with SAM.
Every run is an ordinary run of experiments.supervised in --out, tested at its last
parameters, and the same command resumes after an interruption. The seed of a run
determines the images, the noise, the initial parameters and the order of the batches;
methods share it, so differences are paired. Intervals are Student's, over the seeds.
Processes with different --seeds may share --out; a final call with all seeds prints the
table.
"""

import json
import math
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
from absl import app, flags

from jsharp.evaluation.comparison import half_width_over_seeds

_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory with train/CLASS/* and test/CLASS/*.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Directory of the runs.", required=True)
_NOISE = flags.DEFINE_list(
  "noise", ["0", "0.4", "0.8"], "Fractions of labels replaced."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_NUM_EPOCHS = flags.DEFINE_integer("num_epochs", 40, "Epochs of SAM.", lower_bound=1)
_TRAIN_EXAMPLES = flags.DEFINE_integer(
  "train_examples", 5000, "Training images.", lower_bound=10
)
_DEPTH = flags.DEFINE_integer("depth", 8, "Layers of the ResNet.")

# Radii of Foret et al. 2021: 0.05, and under noise 0.1 except at 80 percent.
_RHO = {0.2: 0.1, 0.4: 0.1, 0.6: 0.1}
_METHODS = {"SGD": ("sgd", 1), "SGD, twice as long": ("sgd", 2), "SAM": ("sam", 1)}


def flags_of(noise: str, method: str, seed: str) -> dict[str, Any]:
  """The flags of a run."""
  algorithm, times = _METHODS[method]
  chosen: dict[str, Any] = {
    "dataset": "image_folder",
    "model": "resnet",
    "depth": _DEPTH.value,
    "augment": "none",
    "train_examples": _TRAIN_EXAMPLES.value,
    "batch_size": 64,
    "algorithm": algorithm,
    "num_epochs": times * _NUM_EPOCHS.value,
    "label_noise": float(noise),
    "hessian_examples": 500,
    "seed": int(seed),
    "data_seed": int(seed),
  }
  if algorithm == "sam":
    chosen["rho"] = _RHO.get(float(noise), 0.05)
  return chosen


def run_dir(noise: str, method: str, seed: str) -> pathlib.Path:
  """Where a run is kept."""
  algorithm, times = _METHODS[method]
  name = f"noise{noise}-{algorithm}-{times * _NUM_EPOCHS.value}epochs-seed{seed}"
  return pathlib.Path(_OUT.value) / name


def result_of(noise: str, method: str, seed: str) -> dict[str, Any]:
  """The result of a run, which is trained first unless it has ended.

  Raises:
    SystemExit: if the run fails, or its directory has a run with other flags, which the
      log names.
  """
  directory, chosen = run_dir(noise, method, seed), flags_of(noise, method, seed)
  print(f"{directory.name} ...", flush=True)
  log = directory.with_suffix(directory.suffix + ".txt")
  log.parent.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "-m", "experiments.supervised"]
  command += [f"--{name}={value}" for name, value in chosen.items()]
  command += [f"--data_dir={_DATA_DIR.value}", f"--run_dir={directory}"]
  with log.open("ab") as output:
    code = subprocess.run(command, stdout=output, stderr=output).returncode
  if code:
    print(f"{directory.name} ended with {code}; see {log}", file=sys.stderr)
    raise SystemExit(code)
  return json.loads((directory / "result.json").read_text())


def with_interval(values: Any, digits: int) -> str:
  """Mean and half-width of Student's 95 percent interval."""
  mean = f"{np.mean(values):.{digits}f}"
  half_width = half_width_over_seeds(values)
  return mean if math.isnan(half_width) else f"{mean} ± {half_width:.{digits}f}"


def table(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
  """A Markdown table with a row per share of noise and method."""
  lines = [
    "| noise, % | method | gradients | training error, % | test accuracy, % "
    "| SAM minus this | largest eigenvalue, start | end |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for (noise, method), runs in results.items():

    def column(name: str, runs: list[dict[str, Any]] = runs) -> np.ndarray:
      return np.asarray([np.ravel(run[name])[0] for run in runs])

    accuracy = 100 * column("test_accuracy")
    sam = [100 * run["test_accuracy"] for run in results[noise, "SAM"]]
    cells = [
      f"{100 * float(noise):g}",
      method,
      f"{column('num_gradients')[0]:,}",
      with_interval(100 * column("train_error"), 1),
      with_interval(accuracy, 2),
      "" if method == "SAM" else with_interval(sam - accuracy, 2),
      with_interval(column("hessian_eigenvalues_start"), 1),
      with_interval(column("hessian_eigenvalues_end"), 1),
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  results: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for seed in _SEEDS.value:
    for noise in _NOISE.value:
      for method in _METHODS:
        results.setdefault((noise, method), []).append(result_of(noise, method, seed))
  commits = {run["protocol"]["git_commit"] for runs in results.values() for run in runs}
  print(f"seeds {', '.join(_SEEDS.value)}; commits {', '.join(map(str, commits))}\n")
  print(table(results))


if __name__ == "__main__":
  app.run(main)
