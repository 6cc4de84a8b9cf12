"""From a command line to a result, for every experiment that trains.

Exit codes: 0 done; 1 training failed; 2 bad flags, data or run directory; 75 another
process uses the run directory, or the other processes of a distributed run were lost;
130, 143 and 129 interrupted by Ctrl-C, SIGTERM and SIGHUP (the same command resumes).

JAX is imported only after the flags were checked, so that `--help` and error messages
are fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import pathlib
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from jsharp import _files
from jsharp import options as descriptions
from jsharp._flags import Given, Program, call, message, refuse
from jsharp._terminal import say, tell
from jsharp.options import Options

if TYPE_CHECKING:
  from jsharp.core.execution import Execution
  from jsharp.learners import AnyLearner
  from jsharp.training import (
    NonFiniteLossError,
    RunDirectory,
    StopSignal,
    TrainingResult,
  )
  from jsharp.types import MetaAlgorithm, Params


_LEARNER = ("config.json", "model.safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  """The parts of an experiment, built from its description and its data.

  Attributes:
    algorithm: the meta-learner.
    params: its initial parameters.
    sample_tasks: `sample_tasks(step, data) -> tasks`.
    data: the pytree that `sample_tasks` reads.
    loop: keyword arguments of `jsharp.train`, such as steps and tasks.
    validate: `validate(params, stop) -> metrics`, means over the validation tasks; None
      if there are none, then the last parameters are tested.
    score: the validation metric, or a function of all metrics; larger is better.
    chosen_by: how the tested parameters are chosen, in words.
    test: `test(trained, stop) -> figures` for `result.json`, including the number of
      test tasks, and under "per_task" the metrics `[num_tasks]` of `test_tasks.csv`.
    fingerprints: the fingerprints of the data, by split: other data make another run.
    protocol: the facts to report with the figures, in addition to versions and device.
    learners: `learners(params) -> {folder: learner}`, the learners that the run saves
      at its end; the folder "" is the run's own directory.
    pictures: `pictures(params) -> {file name: Matplotlib figure}`, plots of the tested
      parameters in addition to the curves.
    cause: `cause(error, params)`, a message on why a meta-step was not finite, if the
      tasks or the last parameters show it; otherwise None.
    title: the title of the curves.
    curves: further keyword arguments of `plot_curves`.
    unit: the name of what a step processes, such as "tasks".
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
  fingerprints: dict[str, str]
  protocol: dict[str, Any]
  learners: Callable[[Params], Mapping[str, AnyLearner]]
  title: str
  curves: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  pictures: Callable[[Params], Mapping[str, Any]] = lambda params: {}
  cause: Callable[[NonFiniteLossError, Params], str | None] = lambda *_: None
  unit: str = "tasks"


class Measure(NamedTuple):
  """The test figure that comparisons of an experiment's runs use.

  Attributes:
    column: the column of `test_tasks.csv`; None for the last one.
    scale: its factor in tables; 100 for percent.
    label: its name in tables.
  """

  column: str | None = "accuracy"
  scale: float = 100.0
  label: str = "accuracy, %"


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A question that is answered by training.

  Attributes:
    program: its flags.
    describe: `describe(parts) -> description`, from what `Given.build` returns: a
      `jsharp.training.runs.AnyRun`.
    words: `words(description)`, the words of the default run directory's name.
    build: `build(description, execution) -> Parts`.
    leaner: whether it supports a memory budget.
    measure: the figure that comparisons use.
  """

  program: Program
  describe: Callable[[dict[str, Any]], Any]
  words: Callable[[Any], Sequence[str]]
  build: Callable[[Any, Execution], Parts]
  leaner: bool = False
  measure: Measure = Measure()  # noqa: RUF009

  @property
  def name(self) -> str:
    """Its name, as in `python -m experiments.NAME`."""
    return self.program.name


def experiment_of(name: str) -> Experiment:
  """The experiment of a name.

  Raises:
    ValueError: if there is none.
  """
  try:
    if not name.isidentifier():
      raise ImportError("it is not a name")
    experiment: Experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f"there is no experiment {name!r}; use the name of a program that trains, such "
      "as omniglot, miniimagenet or sinusoid"
    ) from error
  return experiment


def read_toml(
  path: pathlib.Path,
  *,
  flag: str,
  what: str,
  most: int,
  parse_float: Callable[[str], Any] = float,
) -> dict[str, Any]:
  """The content of a TOML file.

  Args:
    path: the file.
    flag: the name of the flag that names it.
    what: what the file is, in words.
    most: the largest size, in bytes.
    parse_float: what numbers with a point are read as.

  Raises:
    ValueError: if the file cannot be read or is not TOML.
  """
  try:
    text = _files.read_bytes(path, most=most).decode()
    return tomllib.loads(text, parse_float=parse_float)
  except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise ValueError(f"{path} is not a TOML file: {error}") from error
  except OSError as error:
    raise ValueError(
      f"--{flag}={path}: {error.strerror}; pass the TOML file of {what}"
    ) from error


def main(experiment: Experiment) -> None:
  """Runs an experiment with this process's command line; does not return."""
  sys.exit(start(experiment, sys.argv[1:], flags.FLAGS))


def start(
  experiment: Experiment, arguments: Sequence[str], values: flags.FlagValues
) -> int:
  """Runs an experiment with a command line; returns the exit code."""

  def then(given: Given) -> int:
    description = described(experiment, given)
    return run(experiment, description, given.text(description))

  return call(experiment.program, arguments, values, then)


def described(experiment: Experiment, given: Given) -> Any:
  """The description that a command line defines, including its run directory.

  Raises:
    ValueError: for typed flags that have no effect, or that contradict each other.
  """
  description, left_out = describe(experiment, given)
  if left_out:
    names = ", ".join(f"--{flag}" for flag in left_out)
    say(f"{experiment.name}: ignored, since they have no effect here: {names}")
  if description.run.run_dir is None:
    words = [word for word in experiment.words(description) if word]
    plain = json.dumps(identity(experiment, description), sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:6]
    name = "-".join([*words, f"seed{description.run.seed}", digest])
    run_dir = str(pathlib.Path("runs", name.replace(":", "-").replace("/", "-")))
    description = description.replace(run=description.run.replace(run_dir=run_dir))
  return description


def describe(experiment: Experiment, given: Given) -> tuple[Any, list[str]]:
  """The description that a command line defines, and the flags that were ignored.

  Raises:
    ValueError: for typed flags that have no effect, or that contradict each other.
  """
  left_out = given.unread()
  parts = given.build()
  algorithm, sharpness = parts.get("algorithm"), parts.get("sharpness")
  if algorithm is not None and sharpness is not None:
    ineffective = sharpness.ineffective(algorithm)
    from_files = {f: v for f, v in ineffective.items() if f not in given.typed}
    left_out += from_files
    parts["sharpness"] = sharpness.replace(**from_files)
  return experiment.describe(parts), left_out


def identity(experiment: Experiment, description: Options) -> dict[str, Any]:
  """The identity of a run, as strict JSON values."""
  return {"experiment": experiment.name, **descriptions.identity(description)}


def run(experiment: Experiment, description: Any, flags_text: str = "") -> int:
  """Trains, tests and reports; for a finished run it prints the report again.

  Args:
    experiment: the experiment.
    description: the description of the run.
    flags_text: the flags, for `flags.txt`.

  Returns:
    The exit code.
  """
  from jsharp.training import environment

  run_dir = pathlib.Path(description.run.run_dir).expanduser()
  if finished := _finished_result(experiment, description, run_dir):
    return show(finished, run_dir)
  machine = description.machine
  environment.set_environment(machine, num_tasks=description.num_tasks)
  # Only now: they import JAX.
  from jsharp.evaluation import report
  from jsharp.training import RunDirectory, processes, use_compilation_cache
  from jsharp.training.devices import execution_for

  with contextlib.ExitStack() as stack:
    try:
      if machine.is_distributed:
        elsewhere = stack.enter_context(processes.joined(machine))
        run_dir = elsewhere or run_dir
      use_compilation_cache(description.run.compilation_cache_dir)
      description = _with_devices(description)
      execution = execution_for(
        task_chunk="in_order" if machine.deterministic else machine.task_chunk,
        convolution=machine.convolution,
        # Its programs are the same on any number of devices.
        one_core_each=True if machine.deterministic else None,
      )
      if machine.memory_budget is None or not experiment.leaner:
        parts = experiment.build(description, execution)
      else:
        parts = _fitting(experiment, description, execution)
      known = identity(experiment, description)
      known["fingerprints"] = parts.fingerprints
      processes.Peers(timeout=machine.peer_timeout).check_same(
        {
          **known,
          **parts.loop,
          "log_every": description.run.log_every,
          "versions": report.environment()["versions"],
        }
      )
      directory = RunDirectory.open(run_dir, identity=known)
      stack.enter_context(directory)
      directory.write("flags.txt", flags_text.encode())
      _write_description(experiment, description, parts, directory)
    except (ValueError, OSError, ModuleNotFoundError) as error:
      code = refuse(experiment.name, message(error))
      if isinstance(error, BlockingIOError):
        code = processes.GIVEN_UP
    else:
      code = _train(experiment, description, parts, directory, execution)
    if code in (1, 2) and processes.has_joined():
      processes.leave(code)
    return code


def _with_devices(description: Any) -> Any:
  """Checks that the devices exist and can share the tasks evenly.

  If their number was not given, it is set.

  Raises:
    ValueError: if they do not; the message names the flag and the nearest valid number.
  """
  import jax

  from jsharp.training import environment
  from jsharp.training.devices import task_mesh

  machine, num_tasks = description.machine, description.num_tasks
  num_devices = machine.num_devices
  if machine.is_distributed and num_devices in (None, 1):
    num_devices = jax.device_count()
  if num_devices is None:
    there = jax.device_count()
    wanted = environment.cores_for_tasks(num_tasks)
    divided = jax.default_backend() == "cpu" and wanted <= there
    num_devices = wanted if divided else 1
  if num_devices > 1:
    task_mesh(num_devices, num_tasks=num_tasks, num_tasks_name=description.divides)
  return description.replace(machine=machine.replace(num_devices=num_devices))


def _fitting(experiment: Experiment, description: Any, execution: Execution) -> Parts:
  """Builds a run with less and less memory until its training step fits the budget.

  Raises:
    ValueError: if the smallest variant does not fit.
  """
  from jsharp.training import memory_budget

  machine = description.machine
  budget = memory_budget.in_bytes(machine.memory_budget)
  for leaner, chosen in description.leaner():
    way = dataclasses.replace(execution, task_chunk=chosen["task_chunk"])
    parts = experiment.build(leaner, way)
    needed = memory_budget.needed_bytes(
      parts.algorithm,
      parts.params,
      parts.sample_tasks,
      parts.data,
      num_tasks=parts.loop["num_tasks"],
      num_devices=machine.num_devices or 1,
      execution=way,
    )
    words = " ".join(f"--{name}={value}" for name, value in chosen.items())
    if needed <= budget:
      tell(f"memory: {needed:,} of {budget:,} bytes with {words}")
      facts = {"needed_bytes": needed, "budget_bytes": budget, **chosen}
      parts.protocol["memory"] = facts
      return parts
  raise ValueError(
    f"--memory_budget={machine.memory_budget} is {budget:,} bytes, but the smallest "
    f"training step, {words}, needs {needed:,}; raise it, or make the model, the tasks "
    "or the data smaller"
  )


def _write_description(
  experiment: Experiment, description: Options, parts: Parts, directory: RunDirectory
) -> None:
  """Writes the run's description, for readers of its checkpoints before it ends."""
  from jsharp.learners import to_json

  directory.write_json(
    "description.json",
    {
      "experiment": experiment.name,
      "run": descriptions.to_json(description),
      "learners": {
        folder: to_json(learner.description)
        for folder, learner in parts.learners(parts.params).items()
      },
    },
  )


def _train(
  experiment: Experiment,
  description: Any,
  parts: Parts,
  directory: RunDirectory,
  execution: Execution,
) -> int:
  """Trains or resumes, tests the best checkpoint, saves and reports."""
  from jsharp import learners
  from jsharp._files import FileError
  from jsharp.training import (
    Checkpoints,
    NonFiniteLossError,
    StopRequested,
    StopSignal,
    train,
  )
  from jsharp.training.processes import Peers, is_first

  validate = parts.validate
  checkpoints = Checkpoints(directory.path / "checkpoints", run=directory)
  with StopSignal() as stop:
    try:
      if (last := checkpoints.last_step()) > parts.loop["num_steps"]:
        raise FileError(
          f"run_dir={directory.path} has already taken {last} steps, more than "
          f"num_steps={parts.loop['num_steps']}; pass at least {last}, or another "
          "run_dir"
        )
      trained = train(
        parts.algorithm,
        parts.params,
        parts.sample_tasks,
        parts.data,
        run=directory,
        **parts.loop,
        log_every=description.run.log_every,
        checkpoint_seconds=description.run.checkpoint_seconds,
        validate=None if validate is None else lambda params: validate(params, stop),
        score=parts.score,
        stop=stop,
        unit=parts.unit,
        progress=None if is_first() else False,
        peers=Peers(timeout=description.machine.peer_timeout),
        execution=execution,
      )
      if trained.interrupted:
        return _interrupted(experiment, description, stop)
      if not is_first():
        return 0  # The first process tests; the others wait for it at exit.
      tell(f"testing the checkpoint of step {trained.best_step}")
      figures = parts.test(trained, stop)
      digests = {}
      for folder, learner in parts.learners(trained.best_params).items():
        directory.check_owned()
        learners.save(learner, directory.path / folder)
        for name in _LEARNER:
          place = pathlib.PurePosixPath(folder, name).as_posix()
          digests[place] = _sha256(directory.path / place)
      figures["learners_sha256"] = digests
      return _report(experiment, description, parts, directory, trained, figures)
    except StopRequested:
      return _interrupted(experiment, description, stop)
    except NonFiniteLossError as error:
      saved = checkpoints.restore(parts.algorithm.init(parts.params))
      cause = parts.cause(error, saved.tree.params) if saved else None
      say(f"{experiment.name}: {cause or message(error)}")
      return 1
    except (FileError, OSError) as error:
      say(f"{experiment.name}: {message(error)}")
      return 1


def _report(
  experiment: Experiment,
  description: Any,
  parts: Parts,
  directory: RunDirectory,
  trained: TrainingResult,
  figures: dict[str, Any],
) -> int:
  """Writes the result, then the plots, and prints it."""
  from jsharp._files import save_figure
  from jsharp.evaluation import curves, report

  if per_task := figures.pop("per_task", None):
    table = report.csv_table(per_task).encode()
    directory.write("test_tasks.csv", table)
    figures["test_tasks_sha256"] = hashlib.sha256(table).hexdigest()
  checkpoint = {
    "step": trained.best_step,
    "of": int(trained.state.step),
    "chosen by": parts.chosen_by,
  }
  records = directory.read_metrics()
  if isinstance(parts.score, str):
    others = report.as_good(records, trained.best_step, parts.score)
    checkpoint |= {"as good": others} if others else {}
  if trained.damaged:
    checkpoint["in place of the damaged"] = ", ".join(trained.damaged)
  result = {
    "experiment": experiment.name,
    **figures,
    f"{parts.unit}_per_second": trained.tasks_per_second,
    "num_steps": parts.loop["num_steps"],
    "protocol": {**parts.protocol, "checkpoint": checkpoint, **report.environment()},
    "settings": identity(experiment, description),
  }
  directory.write_json("result.json", report.jsonable(result))
  for name, figure in parts.pictures(trained.best_params).items():
    directory.check_owned()
    save_figure(figure, directory.path / name, dpi=110)
  directory.check_owned()
  curves.plot_curves(
    records,
    directory.path / "curves.png",
    title=parts.title,
    best_step=trained.best_step,
    **parts.curves,
  )
  return show(result, directory.path)


def show(result: Mapping[str, Any], path: pathlib.Path) -> int:
  """Prints the protocol card and the run's directory; returns exit code 0."""
  from jsharp.evaluation import report

  tell(report.protocol_card(result))
  names = (
    "result.json",
    *_LEARNER,
    "curves.png",
    "paths.png",
    "metrics.jsonl",
    "flags.txt",
  )
  written = [name for name in names if (path / name).exists()]
  tell(f"{path}/: {', '.join(written)}")
  return 0


def _interrupted(experiment: Experiment, description: Any, stop: StopSignal) -> int:
  say(
    f"{experiment.name}: interrupted, everything is saved in "
    f"{description.run.run_dir}; resume with the same command:\n"
    f"  {shlex.join(sys.orig_argv)}"
  )
  return stop.exit_code


def _finished_result(
  experiment: Experiment, description: Any, run_dir: pathlib.Path
) -> dict[str, Any] | None:
  """The result of a run that is finished as requested, or None."""
  from jsharp import _files

  path = run_dir / "result.json"
  try:
    text = _files.read_bytes_if_there(path, most=_files.MAX_TABLE_BYTES)
    if text is None:
      return None
    result = _files.parse_table(text, where=path)
    asked = {"settings": identity(experiment, description), **description.asked()}
    if any(result.get(key) != asked[key] for key in asked):
      return None
    for name, digest in _kept(result).items():
      path = run_dir / name
      if not path.exists() or _sha256(path) != digest:
        raise _files.FileError(f"{path} is missing, damaged or from another run")
  except _files.FileError as error:
    say(f"{experiment.name}: {error}. It is created again")
    return None
  except OSError:  # Errors of the directory are reported when it is opened.
    return None
  return result


def _kept(result: Mapping[str, Any]) -> dict[str, str]:
  """The SHA-256 of each file that belongs to a result and can be recreated."""
  table = result.get("test_tasks_sha256")
  found = {} if table is None else {"test_tasks.csv": table}
  learners = result.get("learners_sha256")
  return {**found, **(learners if isinstance(learners, dict) else {})}


def _sha256(path: pathlib.Path) -> str:
  from jsharp._files import read_bytes

  return hashlib.sha256(read_bytes(path, most=sys.maxsize)).hexdigest()
