"""A finished run taken apart again: its parameters, its objective, its tasks."""

import functools
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from experiments import choices, methods, tasks
from experiments.landscape_runs import Run
from jsharp.analysis import meta_objective, per_task
from jsharp.core.objectives import after_adaptation
from jsharp.data import Dataset
from jsharp.evaluation.tasks import evaluate, evaluator, task_list
from jsharp.training.checkpoints import Checkpoints
from jsharp.training.stop_signal import StopSignal
from jsharp.types import AdaptFn, MetaAlgorithm, Metrics, Params, TaskLossFn

_OF_DATA = (
  "dataset",
  "test_dataset",
  "data_dir",
  "test_data_dir",
  "image_size",
  "omniglot_split",
  "rotate_test",
  "images",
)
_EXACT = {"fomaml": "maml"}
_OF_ONE_RUN = {"seed": 0, "run_dir": None, "data_dir": None, "test_data_dir": None}


class Parts(NamedTuple):
  """What is measured of one run.

  Attributes:
    params: the point around which is measured.
    loss: `loss(params) -> scalar`, the mean over the tasks.
    metrics: `metrics(params) -> {"loss": [num_tasks], ...}`.
    gap: `gap(params, stop=...) -> {"train_loss", "test_loss", "loss_gap", ...}`.
    path: `path() -> {step: params}`, what the run kept of its way, oldest first.
  """

  params: Params
  loss: Callable[[Params], jax.Array]
  metrics: Callable[[Params], dict[str, jax.Array]]
  gap: Callable[..., dict[str, float]]
  path: Callable[[], dict[int, Params]]


def load(run: Run, options: Mapping[str, Any]) -> Parts:
  """Rebuilds a run with the code that trained it.

  Raises:
    ValueError: if its data have changed, its checkpoint is missing or does not fit, or
      the objective is not defined for its algorithm.
  """
  flags = vars(run.settings)
  if options["data_dir"] is not None:
    flags = {**flags, "data_dir": options["data_dir"]}
  data = _load(_frozen({name: flags[name] for name in _OF_DATA if name in flags}))
  if data.fingerprints != run.fingerprints:
    raise ValueError(
      f"--runs: the data in {flags['data_dir']} are not those that {run.path} was "
      "trained on; pass the directory of those as --data_dir"
    )
  image_shape = data.splits["train"].image_shape
  shared = _rebuild(_frozen({**flags, **_OF_ONE_RUN}), image_shape)
  params = _restore(run, shared, options["checkpoint"])
  path = functools.partial(_path, run, shared)
  if "params" in getattr(params, "_fields", ()):
    shared, params = _network_alone(shared, params)
    path = functools.partial(_network_path, path)
  fixed = _draw(shared, data.splits[options["split"]], options)
  task_loss_fn, items = _objective(shared, options, params, fixed)
  chunk = {"chunk": options["task_chunk"]}
  return Parts(
    params=params,
    loss=meta_objective(task_loss_fn, items, **chunk),
    metrics=per_task(task_loss_fn, items, **chunk),
    gap=functools.partial(_gap, shared, data, options),
    path=functools.cache(path),
  )


class _Data(NamedTuple):
  splits: dict[str, Dataset]
  fingerprints: dict[str, str]


class _Shared(NamedTuple):
  """What runs share that differ in nothing but their seed: it is compiled once."""

  algorithm: MetaAlgorithm
  initial: Params
  kind: tasks.Kind
  sample_one: Callable[..., Any]
  adapt: AdaptFn
  query_loss_fn: TaskLossFn
  task_loss_fn: TaskLossFn
  evaluate: Callable[[Params, Any], Metrics]


def _frozen(flags: Mapping[str, Any]) -> str:
  return json.dumps(flags, sort_keys=True)


@functools.lru_cache(maxsize=1)
def _load(flags: str) -> _Data:
  settings = SimpleNamespace(**json.loads(flags))
  splits = choices.load_splits(settings)
  fingerprints = {split: data.fingerprint() for split, data in splits.items()}
  return _Data(choices.placed(splits, settings.images), fingerprints)


@functools.lru_cache(maxsize=8)
def _rebuild(flags: str, image_shape: tuple[int, ...]) -> _Shared:
  settings = SimpleNamespace(**json.loads(flags))
  # Values stay what they were in training; derivatives become those of the values.
  settings.algorithm = _EXACT.get(settings.algorithm, settings.algorithm)
  settings.differentiate_perturbation = True
  networks = choices.networks(settings, image_shape, tasks.largest_way(settings))
  method = methods.make(settings, networks)
  kind = tasks.test_kind(settings)
  adapt, query_loss_fn = (
    method.adapt(settings.way),
    method.query_loss_fn(settings.way),
  )
  return _Shared(
    algorithm=method.build(settings.way),
    initial=method.params,
    kind=kind,
    sample_one=kind.sampler(),
    adapt=adapt,
    query_loss_fn=query_loss_fn,
    task_loss_fn=after_adaptation(adapt, query_loss_fn),
    evaluate=evaluator(adapt, query_loss_fn, execution=method.execution),
  )


def _restore(run: Run, shared: _Shared, which: str) -> Params:
  checkpoints = Checkpoints(run.path / "checkpoints")
  state = shared.algorithm.init(shared.initial)
  if which == "best":
    restored = checkpoints.restore_best(state.params)
    params = restored.tree if restored else None
  else:
    restored = checkpoints.restore(state)
    params = restored.tree.params if restored else None
  wanted = run.best_step if which == "best" else run.last_step
  if restored is None or restored.step != wanted:
    found = "none" if restored is None else f"that of step {restored.step}"
    raise ValueError(
      f"--runs: {run.path} reports step {wanted} as its {which} checkpoint, and has "
      f"{found}; let the run finish first, or pass --checkpoint="
      f"{'last' if which == 'best' else 'best'}"
    )
  return params


def _path(run: Run, shared: _Shared) -> dict[int, Params]:
  """The points of the finished run; a longer one may be under way."""
  template = shared.algorithm.init(shared.initial).params
  points = Checkpoints(run.path / "checkpoints").restore_path(template)
  return {point.step: point.tree for point in points if point.step <= run.last_step}


def _network_alone(shared: _Shared, point: Any) -> tuple[_Shared, Params]:
  """The algorithm as a function of its network's parameters alone.

  Learned rates, running statistics, copies per inner step and optimizer states are
  meta-learned or carried beside them; here they are constants.
  """

  def evaluate(params: Params, tasks: Any) -> Any:
    return shared.evaluate(point._replace(params=params), tasks)

  def adapt(params: Params, support: Any) -> Any:
    return shared.adapt(point._replace(params=params), support)

  task_loss_fn = after_adaptation(adapt, shared.query_loss_fn)
  held = shared._replace(evaluate=evaluate, adapt=adapt, task_loss_fn=task_loss_fn)
  return held, point.params


def _network_path(path: Callable[[], dict[int, Any]]) -> dict[int, Params]:
  return {step: point.params for step, point in path().items()}


def _draw(shared: _Shared, dataset: Dataset, options: Mapping[str, Any]) -> Any:
  """The fixed tasks, `[num_tasks, ...]`: the same for every run."""
  shared.kind.check(dataset)
  sample_task = _task_list(shared.sample_one, options["seed"], options["split"])
  numbers = jax.numpy.arange(options["num_tasks"])
  return _draw_all(numbers, dataset, sample_task=sample_task)


@functools.lru_cache(maxsize=16)
def _task_list(sample_one: Any, seed: int, stream: Any) -> Any:
  """One object per list of tasks, for which evaluation is compiled once."""
  return task_list(sample_one, seed=seed, stream=stream)


@functools.partial(jax.jit, static_argnames="sample_task")
def _draw_all(numbers, dataset, *, sample_task):
  return jax.vmap(sample_task, in_axes=(0, None))(numbers, dataset)


def _objective(
  shared: _Shared, options: Mapping[str, Any], params: Params, fixed: Any
) -> tuple[TaskLossFn, Any]:
  """The loss of one item as a function of the parameters, and the items."""
  query_loss_fn = shared.query_loss_fn
  if options["objective"] == "meta":
    return shared.task_loss_fn, fixed
  adapt_all = jax.jit(
    lambda: jax.lax.map(lambda support: shared.adapt(params, support), fixed.support)
  )
  shapes = jax.tree.map(lambda x: x.shape[1:], jax.eval_shape(adapt_all))
  if shapes != jax.tree.map(lambda x: x.shape, params):
    raise ValueError(
      f"--objective={options['objective']} needs an algorithm that adapts the "
      "network's parameters and meta-learns nothing else; take --objective=meta"
    )
  if options["objective"] == "task":
    return query_loss_fn, fixed
  # Every task has its own centre. The objective is a function of the meta-parameters
  # all the same: what they are moved by, the adapted ones are moved by.
  moved = jax.tree.map(lambda a, w: a - w[None], adapt_all(), params)

  def around_adapted(point: Params, item: Any) -> Any:
    by, task = item
    return query_loss_fn(jax.tree.map(jax.numpy.add, point, by), task)

  return around_adapted, (moved, fixed)


def _gap(
  shared: _Shared,
  data: _Data,
  options: Mapping[str, Any],
  params: Params,
  *,
  stop: StopSignal,
) -> dict[str, float]:
  """Means over as many tasks of the training classes as of the test classes."""
  means: dict[str, float] = {}
  for split in ("train", "test"):
    metrics = evaluate(
      shared.evaluate,
      params,
      _task_list(shared.sample_one, options["seed"], split),
      data.splits[split],
      num_tasks=options["gap_tasks"],
      stop=stop,
    )
    for name in ("loss", "accuracy"):
      means[f"{split}_{name}"] = float(metrics[name].mean(dtype=float))
  for name in ("loss", "accuracy"):
    means[f"{name}_gap"] = means[f"train_{name}"] - means[f"test_{name}"]
  return means
