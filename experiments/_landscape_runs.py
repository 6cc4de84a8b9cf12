"""Finished runs that are compared, and what is measured of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jsharp import analysis, evaluation, learners, training
from jsharp.analysis import Plane
from jsharp.core.execution import Execution
from jsharp.data import Dataset, ImageSource
from jsharp.data.placement import load_with_test, placed
from jsharp.data.tasks import Tasks
from jsharp.training.devices import execution_for
from jsharp.training.options import Placement
from jsharp.training.runs import FewShotRun
from jsharp.types import Metrics, Params

if TYPE_CHECKING:
  from experiments.landscape import Landscape


class Run(NamedTuple):
  """A finished run that is drawn.

  Attributes:
    name: unique among the runs that are compared, for titles and tables.
    files: what its directory says.
    description: what was run.
  """

  name: str
  files: training.FinishedRun
  description: FewShotRun

  def step(self, checkpoint: str) -> int:
    """The meta-steps that the "best" or the "last" parameters took."""
    return self.files.best_step if checkpoint == "best" else self.files.last_step


def read(landscape: Landscape, plane: Plane) -> list[Run]:
  """Reads finished runs that can be compared.

  Raises:
    ValueError: if one is missing, unfinished, of another kind, given twice, cannot be
      drawn as asked for, or its tasks or network differ from those of the first one.
  """
  try:
    found = [training.read_run(directory) for directory in landscape.runs]
    if len({run.path.resolve() for run in found}) < len(found):
      raise ValueError(
        f"{','.join(landscape.runs)} names a directory twice; name each run once"
      )
    runs = [_checked(files, landscape, plane) for files in found]
    for other in found[1:]:
      training.check_comparable(found[0], other)
  except ValueError as error:
    raise ValueError(f"--runs: {error}") from error
  names = [run.name for run in runs]
  if len(set(names)) < len(names):
    names = [files.path.resolve().name for files in found]
  if len(set(names)) < len(names):
    names = [str(files.path) for files in found]
  return [run._replace(name=name) for run, name in zip(runs, names, strict=True)]


def _checked(files: training.FinishedRun, landscape: Landscape, plane: Plane) -> Run:
  """A run by itself, refused where it cannot be drawn."""
  path, description = files.path, files.description
  if not isinstance(description, FewShotRun):
    raise ValueError(
      f"{path} is a run of experiments.{files.experiment}; landscapes are "
      "drawn of few-shot tasks of images"
    )
  algorithm, seed = description.algorithm, description.run.seed
  if (count := description.training.num_seeds) > 1:
    raise ValueError(
      f"{path} holds {count} seeds side by side; train the seeds to be drawn "
      "without --num_seeds"
    )
  if landscape.measure and (reason := algorithm.without_derivative()):
    raise ValueError(f"{path} is a run of {algorithm.name}, {reason}; pass --nomeasure")
  if not plane.is_random and not files.has_path:
    raise ValueError(
      f"{path} has kept no path (no checkpoints/path_*.npz) to lay a plane "
      "through; take --plane=random, or train it anew:\n  python -m "
      f"experiments.{files.experiment} --flagfile={path / 'flags.txt'} --keep_path "
      "--run_dir=ELSEWHERE"
    )
  sharp = description.sharpness.sharpness
  words = algorithm.name if sharp == "none" else f"{algorithm.name}, SAM {sharp}"
  return Run(f"{words}, seed {seed}", files, description)


class Measured(NamedTuple):
  """What is measured of one run.

  Attributes:
    params: the point around which is measured.
    loss: `loss(params) -> scalar`, the mean over the tasks.
    metrics: `metrics(params) -> {"loss": [num_tasks], ...}`.
    gap: `gap(stop) -> {"train_loss", "test_loss", "loss_gap", ...}`.
    path: `path() -> {step: params}`, what the run kept of its way, oldest first.
  """

  params: Params
  loss: Callable[[Params], jax.Array]
  metrics: Callable[[Params], Metrics]
  gap: Callable[[training.StopSignal], dict[str, float]]
  path: Callable[[], dict[int, Params]]


def load(run: Run, landscape: Landscape) -> Measured:
  """Loads the learner of a run and puts together what is measured of it.

  Raises:
    ValueError: if its data have changed, its checkpoint is missing or does not fit, or
      the objective is not defined for its algorithm.
    OSError: if its data cannot be read.
  """
  description, files, seed = run.description, run.files, landscape.seed
  placement = description.placement
  if landscape.data_dir is not None:
    placement = placement.replace(data_dir=landscape.data_dir)
  splits, fingerprints = _data(description.data, description.test_data, placement)
  if fingerprints != files.fingerprints:
    raise ValueError(
      f"--runs: the data in {placement.data_dir} are not those that {files.path} was "
      "trained on; pass the directory of those as --data_dir"
    )
  execution = execution_for(task_chunk=description.machine.task_chunk)
  learner = _trained(run, landscape.checkpoint, execution)
  tasks = description.tasks
  alone = functools.partial(evaluation.network_alone, way=tasks.way)
  network = alone(learner)
  dataset = splits[landscape.split]
  tasks.test().check(dataset)
  fixed = evaluation.first_tasks(
    _tasks(tasks, seed, landscape.split), dataset, num_tasks=landscape.num_tasks
  )
  try:
    task_loss_fn, items = evaluation.objective(network, fixed, of=landscape.objective)
  except ValueError as error:
    raise ValueError(str(error).replace("of=", "--objective=")) from error

  def gap(stop: training.StopSignal) -> dict[str, float]:
    return evaluation.generalisation_gap(
      _evaluator(network.adapt, network.query_loss_fn, execution=execution),
      network.params,
      {name: (_tasks(tasks, seed, name), splits[name]) for name in ("train", "test")},
      num_tasks=landscape.gap_tasks,
      stop=stop,
      execution=execution,
    )

  def path() -> dict[int, Params]:
    kept = training.Checkpoints(files.path / "checkpoints", identity=files.identity)
    points = kept.restore_path(learner.params)
    return {
      point.step: alone(learner.replace(point.tree)).params
      for point in points
      if point.step <= files.last_step  # A longer run may be under way.
    }

  return Measured(
    params=network.params,
    loss=analysis.meta_objective(task_loss_fn, items, chunk=landscape.task_chunk),
    metrics=analysis.per_task(task_loss_fn, items, chunk=landscape.task_chunk),
    gap=gap,
    path=functools.cache(path),
  )


@functools.lru_cache(maxsize=1)
def _data(
  source: ImageSource, test_source: ImageSource | None, placement: Placement
) -> tuple[dict[str, Dataset], dict[str, str]]:
  """The splits of a run, and their fingerprints."""
  splits = load_with_test(
    source,
    placement.data_dir,
    test_source=test_source,
    test_data_dir=placement.test_data_dir,
  )
  fingerprints = {split: data.fingerprint() for split, data in splits.items()}
  return placed(splits, placement.images), fingerprints


# One object for runs that differ in nothing but their seed, so that their code is
# compiled once.
_built = functools.lru_cache(maxsize=8)(learners.build)
_evaluator = functools.lru_cache(maxsize=8)(evaluation.evaluator)


@functools.lru_cache(maxsize=16)
def _tasks(tasks: Tasks, seed: int, split: Any) -> Callable[..., Any]:
  return evaluation.task_list(tasks.test().sampler(), seed=seed, stream=split)


def _trained(run: Run, checkpoint: str, execution: Execution) -> learners.Learner:
  """The learner with the parameters that are drawn and exact derivatives.

  Values stay what they were in training; derivatives become those of the values.
  """
  path, step = run.files.path, run.step(checkpoint)
  is_saved = checkpoint == "best" and (path / "config.json").is_file()
  try:
    loaded = learners.load(path, step=None if is_saved else step)
  except ValueError as error:
    other = "last" if checkpoint == "best" else "best"
    raise ValueError(
      f"--runs: {path} reports step {step} as its {checkpoint} checkpoint, which "
      f"cannot be read: {error}; or pass --checkpoint={other}"
    ) from error
  assert isinstance(loaded, learners.Learner)  # A few-shot run has nothing else.
  exact = _built(loaded.description.exact(), execution=execution)
  return exact.replace(loaded.params)
