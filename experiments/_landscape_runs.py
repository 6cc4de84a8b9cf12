"""The finished runs to compare, and what is measured for each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jsharp import analysis, evaluation, learners, training
from jsharp.algorithms.supervised import ExampleLossFn, estimate_statistics
from jsharp.analysis import Plane
from jsharp.data import Dataset, ImageSource, examples, load_splits
from jsharp.data.placement import load_with_test, placed
from jsharp.data.tasks import Tasks
from jsharp.training.devices import execution_for
from jsharp.training.options import Placement
from jsharp.training.runs import FewShotRun, OrdinaryRun
from jsharp.types import Metrics, Params, TaskLossFn, Variables

if TYPE_CHECKING:
  from experiments.landscape import Landscape


_NUM_ESTIMATING = 20
"""The number of training batches from which running averages are estimated."""


class Run(NamedTuple):
  """A finished run to draw.

  Attributes:
    name: a name for titles and tables, unique among the compared runs.
    files: the content of its directory.
    description: its description.
  """

  name: str
  files: training.FinishedRun
  description: FewShotRun | OrdinaryRun

  @property
  def unit(self) -> str:
    """The unit that losses are averaged over."""
    return "batch" if isinstance(self.description, OrdinaryRun) else "task"

  def step(self, checkpoint: str) -> int:
    """The meta-step of the "best" or the "last" parameters."""
    return self.files.best_step if checkpoint == "best" else self.files.last_step


def read(landscape: Landscape, plane: Plane) -> list[Run]:
  """Reads finished runs that can be compared.

  Raises:
    ValueError: if a run is missing, unfinished, of another kind, given twice, or cannot
      be drawn as requested, or if its tasks or network differ from the first run's.
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
    if plane.joins_runs:
      _check_minima(runs)
  except ValueError as error:
    raise ValueError(f"--runs: {error}") from error
  names = [run.name for run in runs]
  if len(set(names)) < len(names):
    names = [files.path.resolve().name for files in found]
  if len(set(names)) < len(names):
    names = [str(files.path) for files in found]
  return [run._replace(name=name) for run, name in zip(runs, names, strict=True)]


def _checked(files: training.FinishedRun, landscape: Landscape, plane: Plane) -> Run:
  """Checks that a run can be drawn."""
  path, description = files.path, files.description
  if isinstance(description, OrdinaryRun):
    if landscape.objective != "meta" or plane.plane == "path":
      raise ValueError(
        f"{path} is a run of ordinary training, which has one loss and saves no path; "
        "leave out --objective and --plane=path"
      )
    name = f"{description.algorithm.name}, seed {description.run.seed}"
    return Run(name, files, description)
  if not isinstance(description, FewShotRun):
    raise ValueError(
      f"{path} is a run of experiments.{files.experiment}, but landscapes support "
      "only few-shot tasks of images and ordinary training; name another run"
    )
  algorithm, seed = description.algorithm, description.run.seed
  if (count := description.training.num_seeds) > 1:
    raise ValueError(
      f"{path} has {count} seeds in one run; train the seeds to be drawn "
      "without --num_seeds"
    )
  if landscape.measure and (reason := algorithm.without_derivative()):
    raise ValueError(f"{path} is a run of {algorithm.name}, {reason}; pass --nomeasure")
  if plane.plane == "path" and not files.has_path:
    raise ValueError(
      f"{path} has no saved path (no checkpoints/path_*.npz) for a plane; use "
      "--plane=random, or train again:\n  python -m "
      f"experiments.{files.experiment} --flagfile={path / 'flags.txt'} --keep_path "
      "--run_dir=ELSEWHERE"
    )
  sharp = description.sharpness.sharpness
  words = algorithm.name if sharp == "none" else f"{algorithm.name}, SAM {sharp}"
  return Run(f"{words}, seed {seed}", files, description)


def _check_minima(runs: list[Run]) -> None:
  """Checks that the runs define a plane."""
  seeds = {run.description.run.seed for run in runs}
  tuned = [
    str(run.files.path)
    for run in runs
    if isinstance(run.description, OrdinaryRun)
    and run.description.fine_tuning.init_from
  ]
  if len(runs) == 3 or (len(runs) == 2 and len(seeds) == 1 and not tuned):
    return
  found = f"{len(runs)} of the seeds {', '.join(map(str, sorted(seeds)))}"
  if tuned:
    found += f", and {', '.join(tuned)} started from what another run had learned"
  raise ValueError(
    "--plane=minima needs three runs, or two runs of the same seed with common initial "
    f"parameters; there are {found}"
  )


class Measured(NamedTuple):
  """The functions to measure for one run.

  Attributes:
    params: the parameters to measure around.
    loss: `loss(params) -> scalar`, the mean over the tasks.
    metrics: `metrics(params) -> {"loss": [num_tasks], ...}`.
    gap: `gap(stop) -> {"train_loss", "test_loss", "loss_gap", ...}`.
    path: `path() -> {step: params}`, the run's saved trajectory, oldest first.
    start: `start() -> params`, the initial parameters.
    elsewhere: `metrics` for distant parameters: re-estimates running averages.
  """

  params: Params
  loss: Callable[[Params], jax.Array]
  metrics: Callable[[Params], Metrics]
  gap: Callable[[training.StopSignal], dict[str, float]]
  path: Callable[[], dict[int, Params]]
  start: Callable[[], Params]
  elsewhere: Callable[[Params], Metrics]


def load(run: Run, landscape: Landscape) -> Measured:
  """Loads the learner of a run and builds the functions to measure.

  Raises:
    ValueError: if its data have changed, its checkpoint is missing or does not fit, or
      the objective is not defined for its algorithm.
    OSError: if its data cannot be read.
  """
  description, files, seed = run.description, run.files, landscape.seed
  if isinstance(description, OrdinaryRun):
    return _load_ordinary(run, description, landscape)
  placement = description.placement
  if landscape.data_dir is not None:
    placement = placement.replace(data_dir=landscape.data_dir)
  splits, fingerprints = _data(description.data, description.test_data, placement)
  _check_data(fingerprints, files, placement.data_dir)
  execution = execution_for(task_chunk=description.machine.task_chunk)
  loaded = _loaded(run, landscape.checkpoint)
  assert isinstance(loaded, learners.Learner)  # As in every few-shot run.
  # Values are as in training; derivatives become exact.
  exact = _built(loaded.description.exact(), execution=execution)
  learner = exact.replace(loaded.params)
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

  def start() -> Params:
    return alone(learners.build(exact.description, seed=description.run.seed)).params

  metrics = analysis.per_task(task_loss_fn, items, chunk=landscape.task_chunk)
  return Measured(
    params=network.params,
    loss=analysis.meta_objective(task_loss_fn, items, chunk=landscape.task_chunk),
    metrics=metrics,
    gap=gap,
    path=functools.cache(path),
    start=start,
    elsewhere=metrics,
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


# One object for runs that differ only in their seed, so that their code is compiled
# once.
_built = functools.lru_cache(maxsize=8)(learners.build)
_evaluator = functools.lru_cache(maxsize=8)(evaluation.evaluator)


@functools.lru_cache(maxsize=16)
def _tasks(tasks: Tasks, seed: int, split: Any) -> Callable[..., Any]:
  return evaluation.task_list(tasks.test().sampler(), seed=seed, stream=split)


def _loaded(run: Run, checkpoint: str) -> learners.AnyLearner:
  """The learner of a run, with the parameters to draw."""
  path, step = run.files.path, run.step(checkpoint)
  is_saved = checkpoint == "best" and (path / "config.json").is_file()
  try:
    return learners.load(path, step=None if is_saved else step)
  except ValueError as error:
    other = "last" if checkpoint == "best" else "best"
    raise ValueError(
      f"--runs: {path} reports step {step} as its {checkpoint} checkpoint, which "
      f"cannot be read: {error}; or pass --checkpoint={other}"
    ) from error


def _check_data(
  found: dict[str, str], files: training.FinishedRun, data_dir: str | None
) -> None:
  if found != {name: files.fingerprints.get(name) for name in found}:
    raise ValueError(
      f"--runs: the data in {data_dir} differ from those that {files.path} was "
      "trained on; pass the directory of the original data as --data_dir"
    )


def _load_ordinary(
  run: Run, description: OrdinaryRun, landscape: Landscape
) -> Measured:
  """As `load`, for ordinary training: batches of images instead of tasks.

  The loss is that of evaluation, with the running averages at the drawn parameters as
  constants.
  """
  data_dir = landscape.data_dir or description.files.data_dir
  splits = _labelled(description.data, data_dir, description.preparation)
  if relabel := description.preparation.relabel:
    splits = learners.relabelled(splits, learners.load(relabel))
  _check_data(splits.fingerprints, run.files, data_dir)
  classifier = _loaded(run, landscape.checkpoint)
  assert isinstance(classifier, learners.Classifier)
  params, statistics = classifier.params

  def batches(split: str, most: int) -> Any:
    data = {"train": splits.train, "val": splits.val, "test": splits.test}[split]
    if data is None:
      raise ValueError("--split=val: there are no validation images; choose another")
    size = description.training.batch_size
    batch = examples.in_batches(data, most * size, size, seed=landscape.seed)
    count = batch.targets.shape[0]
    return batch, jax.tree.map(lambda x: jnp.stack([x] * count), statistics)

  example_loss_fn, batch_loss_fn = _loss_fns(classifier.description)
  items = batches(landscape.split, landscape.num_tasks)

  def gap(stop: training.StopSignal) -> dict[str, float]:
    means = {}
    for split in ("train", "test"):
      stop.check()
      part = batches(split, landscape.gap_tasks)
      measure = analysis.per_task(batch_loss_fn, part, chunk=landscape.task_chunk)
      for name, values in jax.jit(measure)(params).items():
        means[f"{split}_{name}"] = float(values.mean())
    gaps = {
      f"{name}_gap": means[f"train_{name}"] - means[f"test_{name}"]
      for name in ("loss", "accuracy")
    }
    return means | gaps

  def start() -> Params:
    built = learners.build_classifier(classifier.description, seed=description.run.seed)
    return built.params.params

  def elsewhere(params: Params) -> Metrics:
    seen, _ = batches("train", _NUM_ESTIMATING)
    here = Variables(params, statistics)
    fitting = estimate_statistics(example_loss_fn, here, seen)
    shared = jax.tree.map(
      lambda new, old: jnp.broadcast_to(new, old.shape), fitting, items[1]
    )
    fit = (items[0], shared)
    measure = analysis.per_task(batch_loss_fn, fit, chunk=landscape.task_chunk)
    return measure(params)

  return Measured(
    params=params,
    loss=analysis.meta_objective(batch_loss_fn, items, chunk=landscape.task_chunk),
    metrics=analysis.per_task(batch_loss_fn, items, chunk=landscape.task_chunk),
    gap=gap,
    path=dict,
    start=start,
    elsewhere=elsewhere,
  )


_labelled = functools.lru_cache(maxsize=1)(load_splits)


@functools.lru_cache(maxsize=8)
def _loss_fns(
  description: learners.ClassifierDescription,
) -> tuple[ExampleLossFn, TaskLossFn]:
  """The loss per example, and `batch_loss_fn(params, (batch, statistics))`, means."""
  loss_fn = learners.build_classifier(description).loss_fn

  def batch_loss_fn(params: Params, item: Any) -> tuple[jax.Array, Metrics]:
    batch, statistics = item
    metrics, _ = loss_fn(Variables(params, statistics), batch, False)
    means = {name: values.mean() for name, values in metrics.items()}
    return means["loss"], means

  return loss_fn, batch_loss_fn
