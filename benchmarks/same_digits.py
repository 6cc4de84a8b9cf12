"""Checks that two versions of jsharp train the same parameters, bit for bit.

A refactoring must not change a number. This program trains small runs of every
algorithm and experiment with the code of one checkout and writes the digests of the
results to a file; from two such files it reports the differences.

  python -m benchmarks.same_digits --checkout=OLD --out=old.json
  python -m benchmarks.same_digits --checkout=. --out=new.json
  python -m benchmarks.same_digits --compare=old.json,new.json

Digests agree only between runs on one machine with the same versions of JAX, and only
if both checkouts accept the same flags.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import app, flags

_SHORT = "--num_steps=6 --eval_every=3 --val_tasks=4 --eval_tasks=6 --num_devices=1"
_IMAGES = f"omniglot --dataset=characters --num_filters=8 --num_tasks=4 {_SHORT}"
_MINI = f"miniimagenet --dataset=characters --num_filters=8 {_SHORT}"
_SINES = f"sinusoid {_SHORT} --num_tasks=4"
_ORDINARY = "supervised --num_epochs=2 --num_characters=4 --hessian_steps=4"
RUNS = {
  "quickstart": (
    "omniglot --flagfile=experiments/flagfiles/quickstart.txt --num_steps=20 "
    "--eval_every=10 --val_tasks=20 --eval_tasks=20"
  ),
  "two devices": f"{_IMAGES} --num_devices=2 --num_inner_steps=3",
  "deterministic": f"{_IMAGES} --deterministic --num_inner_steps=2",
  "maml": f"{_MINI}",
  "recomputed": f"{_MINI} --second_order=recomputed --task_chunk=2",
  "forward over reverse": f"{_MINI} --second_order=forward_over_reverse",
  "fomaml": f"{_IMAGES} --algorithm=fomaml --ensemble=2",
  "sharp low": f"{_MINI} --algorithm=sharp_maml_low",
  "sharp up": f"{_IMAGES} --algorithm=sharp_maml_up --outer_optimizer=sgd",
  "sharp both": f"{_IMAGES} --algorithm=sharp_maml_both --reuse_perturbation",
  "maml++": (
    f"{_IMAGES} --algorithm=maml_plus_plus --num_inner_steps=3 --inner_lr=0.1 "
    "--multi_step_loss_steps=3 --first_order_steps=2 --outer_schedule=cosine "
    "--outer_schedule_steps=6"
  ),
  "maml++ running statistics": (
    f"{_MINI} --algorithm=maml_plus_plus --running_statistics "
    "--num_eval_inner_steps=5 --inner_lr=0.1"
  ),
  "meta_sgd": f"{_IMAGES} --algorithm=meta_sgd --sharpness=both",
  "anil": f"{_MINI} --algorithm=anil",
  "boil": f"{_IMAGES} --algorithm=boil --adapt_norm",
  "reptile": (
    f"{_IMAGES} --algorithm=reptile --inner_optimizer=adam --inner_lr=0.001 --shot=2 "
    "--num_inner_steps=5 --inner_batch_size=5 --keep_inner_state --outer_optimizer=sgd "
    "--outer_lr=1 --outer_schedule=linear --outer_schedule_steps=6"
  ),
  "imaml": f"{_IMAGES} --algorithm=imaml --num_inner_steps=4 --inner_lr=0.1",
  "cavia": f"{_IMAGES} --algorithm=cavia --model=mlp --inner_lr=1",
  "protonet": f"{_IMAGES} --algorithm=protonet --sharpness=up",
  "proto maml": f"{_IMAGES} --algorithm=proto_maml --sharpness=low --inner_lr=0.1",
  "ridge": f"{_IMAGES} --algorithm=ridge",
  "black box": f"{_IMAGES} --algorithm=black_box --width=16 --num_layers=1",
  "several ways": f"{_IMAGES} --train_way=3,5 --train_shot=1,2 --eval_way=3,4,5",
  "several seeds": f"{_IMAGES} --num_seeds=2 --model=conv4_strided",
  "noise and distortion": (
    f"{_IMAGES} --support_label_noise=0.2 --query_label_noise=0.2 --rotation=-20,20 "
    "--scale=0.8,1.2 --eval_support_label_noise=0,0.4 --eval_rotation=0,40"
  ),
  "sines": f"{_SINES} --num_inner_steps=2 --num_eval_inner_steps=3",
  "sines, 12 steps": (
    f"{_SINES} --num_inner_steps=12 --p=inf --adaptive --sharpness=low"
  ),
  "sines, meta_sgd": f"{_SINES} --algorithm=meta_sgd --num_eval_inner_steps=1",
  "sines, cavia": f"{_SINES} --algorithm=cavia --num_eval_inner_steps=1 --inner_lr=1",
  "sines, reptile": f"{_SINES} --algorithm=reptile --activation=tanh --max_phase=6.28",
  "ordinary sam": _ORDINARY,
  "ordinary noise": (
    f"{_ORDINARY} --algorithm=looksam --label_noise=0.2 --train_examples=40 "
    "--val_fraction=0.1 --augment=basic --clip_gradient=5"
  ),
  "ordinary wide": (
    f"{_ORDINARY} --algorithm=momentum_sam --model=wide_resnet --depth=10 --widen=1"
  ),
}
LANDSCAPES = {
  "landscape": (
    ("maml", "sharp low"),
    "--grid=3 --num_tasks=2 --hessian_steps=2 --trace_samples=2 --average_samples=2 "
    "--gap_tasks=4 --ascent_steps=2",
  )
}

_CHECKOUT = flags.DEFINE_string("checkout", ".", "Directory whose code is run.")
_OUT = flags.DEFINE_string("out", None, "File that the digests are written to.")
_ONLY = flags.DEFINE_list("only", None, "Names of the runs; all if not given.")
_KEEP = flags.DEFINE_string("keep", None, "Directory to keep the runs in.")
_COMPARE = flags.DEFINE_list("compare", None, "Two files of digests to compare.")


def main(arguments: list[str]) -> int:
  """Runs, or compares."""
  del arguments
  if _COMPARE.value:
    return _compare(*(json.loads(pathlib.Path(p).read_text()) for p in _COMPARE.value))
  if _OUT.value is None:
    raise app.UsageError("--out is missing: pass a file to write the digests to")
  with tempfile.TemporaryDirectory() as directory:
    found = _digests(pathlib.Path(_KEEP.value or directory))
  pathlib.Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")
  return 0


def _digests(directory: pathlib.Path) -> dict[str, Any]:
  names = [n for n in [*RUNS, *LANDSCAPES] if not _ONLY.value or n in _ONLY.value]
  found: dict[str, Any] = {}
  for name in names:
    out = directory / name.replace(" ", "_").replace(",", "")
    if name in RUNS:
      words = [*RUNS[name].split(), f"--run_dir={out}"]
    else:
      runs, given = LANDSCAPES[name]
      paths = [str(directory / run.replace(" ", "_")) for run in runs]
      words = ["landscape", f"--runs={','.join(paths)}", f"--out={out}", *given.split()]
    words.append(f"--compilation_cache_dir={directory / 'cache'}")
    command = [sys.executable, "-m", f"experiments.{words[0]}", *words[1:]]
    done = subprocess.run(
      command,
      cwd=_CHECKOUT.value,
      env={**os.environ, "PYTHONPATH": str(pathlib.Path(_CHECKOUT.value).resolve())},
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode:
      print(f"{name}: exit code {done.returncode}\n{done.stderr}", flush=True)
      found[name] = {"exit code": done.returncode}
      continue
    found[name] = _of_landscape(out) if name in LANDSCAPES else _of_run(out)
    print(name, flush=True)
  return found


def _of_run(path: pathlib.Path) -> dict[str, Any]:
  """Digests of the arrays of every checkpoint, and the figures of the result."""
  result = json.loads((path / "result.json").read_text())
  figures = {
    name: value
    for name, value in result.items()
    if name.startswith(("test_", "train_", "hessian_", "num_gradients", "ensemble_"))
  }
  arrays = {}
  for file in sorted((path / "checkpoints").glob("*.npz")):
    with np.load(file) as archive:
      arrays[file.name] = sorted(
        _digest(array)
        for array in (archive[name] for name in archive.files)
        if isinstance(array, np.ndarray)
      )
  return {"figures": figures, "arrays": arrays, "metrics": _metrics(path)}


def _metrics(path: pathlib.Path) -> list[dict[str, float]]:
  times = ("wall_time", "tasks_per_second", "examples_per_second", "sha256")
  lines = (path / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in times} for line in lines
  ]


def _of_landscape(path: pathlib.Path) -> dict[str, Any]:
  with np.load(path / "landscape.npz") as archive:
    arrays = {name: _digest(archive[name]) for name in ("loss", "accuracy")}
  sharpness = json.loads((path / "sharpness.json").read_text())
  sharpness.pop("sha256", None)  # of what stands beside the figures, too
  return {"arrays": arrays, "figures": sharpness}


def _digest(array: np.ndarray) -> str:
  content = f"{array.dtype} {array.shape}".encode() + array.tobytes()
  return hashlib.sha256(content).hexdigest()[:16]


def _compare(old: dict[str, Any], new: dict[str, Any]) -> int:
  differing = 0
  for name in sorted(old.keys() | new.keys()):
    if name not in old or name not in new:
      print(f"{name}: in one file only")
      continue
    parts = [
      part
      for part in sorted(old[name].keys() | new[name].keys())
      if old[name].get(part) != new[name].get(part)
    ]
    print(f"{name}: {'the same' if not parts else 'differs in ' + ', '.join(parts)}")
    for part in parts:
      print(f"  {part}: {old[name].get(part)}\n  {part}: {new[name].get(part)}")
    differing += bool(parts)
  return 1 if differing else 0


if __name__ == "__main__":
  app.run(main)
