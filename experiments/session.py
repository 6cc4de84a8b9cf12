"""One run from its parts: training, the test of the best checkpoint, the report."""

import dataclasses
import os
import pathlib
import shlex
import stat
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax

from experiments import program, resource_flags
from jsharp._files import write_atomically
from jsharp.evaluation import curves, report
from jsharp.training.devices import task_mesh
from jsharp.training.loop import NonFiniteLossError, TrainingResult, train
from jsharp.training.processes import Peers, is_first
from jsharp.training.run_directory import RunDirectory
from jsharp.training.stop_signal import StopRequested, StopSignal
from jsharp.types import MetaAlgorithm, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  """What an experiment is made of once its flags are known.

  Attributes:
    algorithm: the meta-learner.
    params: its initial parameters.
    sample_tasks: `sample_tasks(step, data) -> tasks`.
    data: what `sample_tasks` reads.
    loop: `num_steps`, `num_tasks` and `eval_every` of `jsharp.training.loop.train`.
    validate: `validate(params, stop) -> metrics`, means over the validation tasks;
      None where there are none, then the last parameters are tested.
    score: the validation metric, or a function of them, that is best when largest.
    chosen_by: in words, what decides which parameters are tested.
    test: `test(trained, stop) -> figures` for `result.json` of a
      `jsharp.training.loop.TrainingResult`; the number of test tasks among them, and
      under "per_task" the metrics `[num_tasks]` that go to `test_tasks.csv`.
    identity: what, beside the flags, makes a run another run.
    protocol: what, beside versions and device, a reader of the figures must know.
    curves: keyword arguments of `jsharp.evaluation.curves.plot_curves`.
    unit: what a step takes several of.
  """

  algorithm: MetaAlgorithm
  params: Params
  sample_tasks: Callable[[Any, Any], Any]
  data: Any
  loop: Mapping[str, Any]
  validate: Callable[[Params, StopSignal], dict[str, float]] | None
  score: str | Callable[[dict[str, float]], float]
  chosen_by: str
  test: Callable[[TrainingResult, StopSignal], dict[str, Any]]
  identity: dict[str, Any]
  protocol: dict[str, Any]
  curves: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  unit: str = "tasks"


def use_compilation_cache(directory: str) -> None:
  """Keeps compiled programs in a directory that is this user's alone.

  Args:
    directory: created if needed; empty for no cache.

  Raises:
    OSError: if it cannot be created.
    ValueError: if it belongs to someone else or others can write to it: they could
      put native code there.
  """
  if not directory:
    return
  path = pathlib.Path(directory).expanduser()
  path.mkdir(mode=0o700, parents=True, exist_ok=True)
  status = path.stat()
  if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise ValueError(
      f"--compilation_cache_dir={path} can be written to by others, and what lies "
      "there is run as native code; chmod 700 it, choose another one or pass "
      "--compilation_cache_dir= for none"
    )
  jax.config.update("jax_compilation_cache_dir", str(path))


def check_devices(settings: SimpleNamespace) -> None:
  """Refuses devices that are not there or cannot share the tasks evenly.

  Where their number was not given, `settings.num_devices` becomes what it is.

  Raises:
    ValueError: naming the flag and the nearest number that can.
  """
  if not hasattr(settings, "num_devices"):
    return
  if settings.num_devices is None:
    there = jax.device_count()
    wanted = resource_flags.cores_for_tasks(settings)
    divided = jax.default_backend() == "cpu" and wanted <= there
    settings.num_devices = wanted if divided else 1
  if settings.num_devices > 1:
    task_mesh(settings.num_devices, num_tasks=settings.num_tasks)


def run(settings: SimpleNamespace, parts: Parts, directory: RunDirectory) -> int:
  """Trains (or goes on training), tests the best checkpoint and reports.

  Args:
    settings: the values of the flags.
    parts: from the experiment's `build`.
    directory: the open directory of the run.

  Returns:
    The exit code.
  """
  validate = parts.validate
  with StopSignal() as stop:
    try:
      trained = train(
        parts.algorithm,
        parts.params,
        parts.sample_tasks,
        parts.data,
        run=directory,
        **parts.loop,
        log_every=settings.log_every,
        checkpoint_seconds=settings.checkpoint_seconds,
        validate=None if validate is None else lambda params: validate(params, stop),
        score=parts.score,
        stop=stop,
        unit=parts.unit,
        progress=None if is_first() else False,
        peers=Peers(timeout=getattr(settings, "peer_timeout", 0.0)),
      )
      if trained.interrupted:
        return _interrupted(settings, stop)
      if not is_first():
        return 0  # The first one tests; the others wait for it as they end.
      print(f"testing the checkpoint of step {trained.best_step}", flush=True)
      figures = parts.test(trained, stop)
    except StopRequested:
      return _interrupted(settings, stop)
    except (NonFiniteLossError, OSError) as error:
      print(f"{settings.experiment}: {program.message(error)}", file=sys.stderr)
      return 1

  if per_task := figures.pop("per_task", None):
    table = report.csv_table(per_task)
    write_atomically(directory.path / "test_tasks.csv", table.encode())
  checkpoint = {
    "step": trained.best_step,
    "of": int(trained.state.step),
    "chosen by": parts.chosen_by,
  }
  result = {
    "experiment": settings.experiment,
    **figures,
    f"{parts.unit}_per_second": trained.tasks_per_second,
    "num_steps": parts.loop["num_steps"],
    "protocol": {**parts.protocol, "checkpoint": checkpoint, **report.environment()},
    "settings": program.identity(settings),
  }
  curves.plot_curves(
    directory.read_metrics(),
    directory.path / "curves.png",
    title=f"{settings.experiment}: {settings.algorithm}",
    best_step=trained.best_step,
    **parts.curves,
  )
  directory.write_json("result.json", report.jsonable(result))
  return show(result, directory.path)


def show(result: Mapping[str, Any], path: pathlib.Path) -> int:
  """Prints the protocol card and where the run lies; returns exit code 0."""
  print(report.protocol_card(result))
  print(f"{path}/: result.json, curves.png, metrics.jsonl, flags.txt")
  return 0


def _interrupted(settings: SimpleNamespace, stop: StopSignal) -> int:
  print(
    f"{settings.experiment}: interrupted, everything is saved in {settings.run_dir}; "
    f"go on with the same command:\n  {shlex.join(sys.orig_argv)}",
    file=sys.stderr,
  )
  return stop.exit_code
