r"""Makes use of a few minutes on a machine with an accelerator.

Question: does jsharp compute the same on this device as on a CPU, how fast is it
there, and does it train?

    python -m benchmarks.accelerator --out=DIRECTORY --data_dir=MINI_IMAGENET

Three parts share `--minutes`:

- checks (`benchmarks.accelerator_checks`): meta-gradients and sharpness-aware
  optimizers against float64 on the CPU, and a resumed run;
- speed (`benchmarks.accelerator_speed`): meta-steps against PyTorch's;
- training: mini-ImageNet 5-way 1-shot with MAML and with Sharp-MAML, as far as the
  time allows. Needs `--data_dir`.

Each part is a process of its own and writes DIRECTORY/PART.json after each of its
measurements. A part that fails, or whose time is over, does not stop the next one. The
same command continues: it skips what is finished and resumes the training. The tables
at the end are read from these files.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

from benchmarks import cases
from benchmarks.tables import begin_table

_ROOT = pathlib.Path(__file__).parents[1]
_FLAGFILES = {
  "maml": "maml_miniimagenet_5way_1shot.txt",
  "sharp_maml_both": "sharp_maml_both_miniimagenet_5way_1shot.txt",
}
# When a part must end, as shares of all time.
_ENDS = {"checks": 0.35, "speed": 0.75, "training": 1.0}
_GRACE = 20.0
"""Seconds that a process has to save and end."""


def environment() -> dict[str, str]:
  """The environment of the parts: CPU and device in one process, memory on demand."""
  found = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  platforms = found.get("JAX_PLATFORMS", "")
  if platforms and "cpu" not in platforms.split(","):
    found["JAX_PLATFORMS"] = f"{platforms},cpu"
  return found


def supervise(
  command: list[str], log: pathlib.Path, seconds: float, grace: float = _GRACE
) -> int | None:
  """Runs a command for at most some seconds, then asks it to stop, then ends it.

  Args:
    command: the command.
    log: the file that its output is added to.
    seconds: its time.
    grace: seconds between SIGTERM and SIGKILL.

  Returns:
    Its exit code; None if its time was over.
  """
  with log.open("ab") as output:
    process = subprocess.Popen(
      command,
      cwd=_ROOT,
      env=environment(),
      stdout=output,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    try:
      return process.wait(timeout=max(seconds, 0))
    except BaseException as error:
      os.killpg(process.pid, signal.SIGTERM)
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace)
      if isinstance(error, subprocess.TimeoutExpired):
        return None
      raise
    finally:
      # Also its children, such as a suspended PyTorch.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def tail(log: pathlib.Path) -> str:
  """The end of an output, which contains the traceback."""
  return log.read_text(errors="replace")[-4000:]


def run_part(name: str, command: list[str], out: pathlib.Path, end: float) -> None:
  """Runs a part that writes its own file, and records there how it ended otherwise.

  Args:
    name: the part.
    command: its command.
    out: the directory of the results.
    end: the time on the monotonic clock when it has to end.
  """
  path, log = out / f"{name}.json", out / f"{name}.log"
  code = supervise(command, log, end - time.monotonic(), grace=2.0)
  record = cases.read(path)
  if code is None:
    record["stopped"] = "its time was over"
  elif code:
    record["stopped"] = f"exit code {code}"
    record["output"] = tail(log)
  cases.write(path, record)


def train(
  out: pathlib.Path, data_dir: str | None, end: float, options: list[str]
) -> None:
  """Trains both methods, each for an equal share of the time that is left.

  Args:
    out: the directory of the results and runs.
    data_dir: mini-ImageNet; None records that the part was skipped.
    end: the time on the monotonic clock when it has to end.
    options: further flags of the runs.
  """
  path = out / "training.json"
  record = cases.read(path)
  if data_dir is None:
    cases.write(path, {**record, "stopped": "skipped: no --data_dir"})
    return
  record.pop("stopped", None)
  directory = str(pathlib.Path(data_dir).expanduser().absolute())
  for i, (name, flagfile) in enumerate(_FLAGFILES.items()):
    run, log = out / "runs" / name, out / f"training_{name}.log"
    if (run / "result.json").exists():
      continue
    left = (end - time.monotonic()) / (len(_FLAGFILES) - i)
    command = [
      *(sys.executable, "-m", "experiments.miniimagenet", f"--data_dir={directory}"),
      f"--flagfile={_ROOT / 'experiments' / 'flagfiles' / flagfile}",
      *(f"--run_dir={run}", f"--compilation_cache_dir={out / 'programs'}", *options),
    ]
    code = supervise(command, log, left - min(_GRACE, left / 2))
    record["cases"][name] = outcome(run, code, log)
    cases.write(path, record)
  record["finished"] = all(
    (out / "runs" / n / "result.json").exists() for n in _FLAGFILES
  )
  cases.write(path, record)


def outcome(run: pathlib.Path, code: int | None, log: pathlib.Path) -> dict[str, Any]:
  """What a run has reached, or its error."""
  if code:
    return {"error": tail(log), "exit code": code}
  lines: list[dict[str, Any]] = []
  if (run / "metrics.jsonl").exists():
    for line in (run / "metrics.jsonl").read_text().splitlines():
      lines.append(json.loads(line))
  value: dict[str, Any] = {"steps": lines[-1]["step"] if lines else 0}
  for key in ("tasks_per_second", "loss", "val_accuracy"):
    found = [line[key] for line in lines if key in line]
    value |= {key: found[-1]} if found else {}
  return {"value": value}


def run_all(
  parts: dict[str, Callable[[float], None]], out: pathlib.Path, seconds: float
) -> None:
  """Runs the parts that are not finished, in order.

  Args:
    parts: `part(end)`, by name.
    out: the directory of the results.
    seconds: the time for all of them.
  """
  start = time.monotonic()
  for name, part in parts.items():
    path = out / f"{name}.json"
    if cases.read(path)["finished"]:
      print(f"{name}: finished before", flush=True)
      continue
    began = time.monotonic()
    try:
      part(start + _ENDS[name] * seconds)
    except Exception as error:
      record = cases.read(path)
      cases.write(path, {**record, "stopped": f"{type(error).__name__}: {error}"})
    record = cases.read(path)
    how = "finished" if record["finished"] else record.get("stopped", "not finished")
    print(f"{name}: {how}, {time.monotonic() - began:.0f} s", flush=True)


def report(out: pathlib.Path) -> None:
  """Prints the tables of all results."""
  for name in _ENDS:
    record = cases.read(out / f"{name}.json")
    print(f"\n{name}: {record.get('about', {}).get('device', '')}\n")
    for case, found in record["cases"].items():
      if "error" in found:
        last = found["error"].strip().splitlines()[-1:]
        print(f"{case} failed: {''.join(last)[:200]}")
    values = {k: v["value"] for k, v in record["cases"].items() if "value" in v}
    {"checks": _checks, "speed": _speed, "training": _training}[name](values)


def _row(*entries: Any) -> None:
  print(f"| {' | '.join(map(str, entries))} |")


def _checks(values: dict[str, Any]) -> None:
  begin_table(["against float64 on the CPU", "largest error", "smallest error"])
  for name, value in values.items():
    if "largest" in value:
      _row(name, f"{value['largest']:.0e}", f"{value['smallest']:.0e}")
  for name, value in values.get("resume", {}).items():
    print(f"\n{name}: {value}")


def _speed(values: dict[str, Any]) -> None:
  for name, value in values.items():
    if "per second" in value:
      print(f"{name}: {value['per second'] / 1e9:,.0f} G/s")
  forms = ["torch loop", "torch func"]
  columns = ["setting", "algorithm", "precision", "tasks", "ms", "tasks/s"]
  begin_table([*columns, "of the roofline", *forms, "jsharp / faster torch"])
  for name, value in values.items():
    cell, _, form = name.partition(": ")
    if form != "jsharp":
      continue
    rates = [values.get(f"{cell}: {other}", {}).get("tasks/s") for other in forms]
    best = max((rate for rate in rates if rate), default=None)
    _row(
      *cell.split(),
      f"{value['ms']:.1f}",
      f"{value['tasks/s']:.0f}",
      f"{100 * value['share of roofline']:.0f} % ({value['limit']})",
      *(f"{rate:.0f}" if rate else "" for rate in rates),
      f"{value['tasks/s'] / best:.2f}" if best else "",
    )


def _training(values: dict[str, Any]) -> None:
  begin_table(["run", "meta-steps", "tasks/s", "loss", "validation accuracy"])
  for name, value in values.items():
    keys = ("steps", "tasks_per_second", "loss", "val_accuracy")
    _row(name, *(f"{value[key]:.4g}" if key in value else "" for key in keys))


def define_flags() -> None:
  """Defines the flags, which programs that import this one may have too."""
  flags.DEFINE_string("out", None, "Directory of the results.")
  flags.DEFINE_float("minutes", 8.0, "Time for all parts.", lower_bound=0)
  flags.DEFINE_string("data_dir", None, "mini-ImageNet, see experiments.miniimagenet.")
  flags.DEFINE_bool("tiny", False, "A few small cases, to test the program.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  given = flags.FLAGS
  if given.out is None:
    raise app.UsageError("--out=DIRECTORY is missing.")
  for signum in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, lambda number, _: sys.exit(128 + number))
  out = pathlib.Path(given.out).expanduser().absolute()
  out.mkdir(parents=True, exist_ok=True)
  tiny = ["--tiny"] if given.tiny else []
  small = ["--num_filters=4", "--num_steps=2", "--val_tasks=4", "--eval_tasks=4"]

  def part(name: str) -> Callable[[float], None]:
    module = f"benchmarks.accelerator_{name}"
    command = [sys.executable, "-m", module, f"--out={out}", *tiny]
    return lambda end: run_part(name, command, out, end)

  parts = {
    "checks": part("checks"),
    "speed": part("speed"),
    "training": lambda end: train(out, given.data_dir, end, small if tiny else []),
  }
  run_all(parts, out, 60 * given.minutes)
  report(out)


if __name__ == "__main__":
  define_flags()
  app.run(main)
