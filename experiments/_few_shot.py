"""Few-shot experiments: what those on images share, and what all of them share."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments._flags import Choice, Group, Program
from experiments._program import Experiment, Parts

if TYPE_CHECKING:
  from jsharp.core.execution import Execution
  from jsharp.data import Dataset, ImageSource
  from jsharp.data.tasks import Kind
  from jsharp.learners import Learner
  from jsharp.training import StopSignal, TrainingResult
  from jsharp.training.options import Placement
  from jsharp.types import MetaAlgorithm, Task

ALGORITHM = Choice("algorithm", "algorithm", "The meta-learning algorithm.", "maml")
LEARNER: Mapping[str, str | Choice] = {
  "algorithm": ALGORITHM,
  "sharpness": "jsharp.algorithms._options:Sharpness",
}
TRAINING: Mapping[str, str | Choice] = {
  "training": "jsharp.training.options:MetaTraining",
  "outer": "jsharp.algorithms._options:OuterLoop",
}
MACHINE: Mapping[str, str | Choice] = {
  "run": "jsharp.training.options:Run",
  "machine": "jsharp.training.options:Machine",
}
TESTING: Mapping[str, str | Choice] = {
  "testing": "jsharp.training.options:Testing",
}


def image_experiment(
  name: str, defaults: Mapping[str, Any], summary: str
) -> Experiment:
  """An experiment on few-shot tasks of images.

  Args:
    name: as it is called.
    defaults: of its flags.
    summary: what `--help` begins with.
  """
  dataset = Choice(
    "dataset",
    "dataset",
    "What to learn from: omniglot, miniimagenet, characters (drawn by jsharp itself, "
    "needs no files), image_folder (any split/class/image), tfds:NAME (already "
    "prepared by tensorflow-datasets) or your own as module:Class.",
    None,
  )
  test_dataset = Choice(
    "dataset",
    "test_dataset",
    "Tests on this dataset in place of --dataset: training and validation stay as they "
    "are. Values as for --dataset.",
    None,
  )
  network = Choice(
    "network",
    "model",
    "conv4: four convolutions with max-pooling; conv4_strided: with stride 2 in place "
    "of pooling, the fast one; mlp: the net without convolutions, 256-128-64-64; or "
    "your own as module:Class.",
    "conv4",
    hidden=("sine_mlp",),
    aliases=("network",),
  )
  program = Program(
    name,
    (
      Group(
        "data",
        {
          "data": dataset,
          "test_data": test_dataset,
          "placement": "jsharp.training.options:Placement",
        },
      ),
      Group("tasks", {"tasks": "jsharp.data.tasks:Tasks"}),
      Group("learner", {**LEARNER, "network": network}),
      Group("training", TRAINING),
      Group("testing", TESTING),
      Group("machine", MACHINE),
    ),
    defaults,
    summary,
  )
  return Experiment(program, _describe, functools.partial(_words, name), build, leaner)


def _describe(parts: dict[str, Any]) -> Any:
  from jsharp.learners import check_parts
  from jsharp.training.runs import FewShotRun

  description = FewShotRun(**parts)
  check_parts(
    description.algorithm,
    description.network,
    description.sharpness,
    precision=description.run.precision,
    problem="classification",
  )
  several_kinds = len(description.tasks.training()) > 1
  if description.training.num_seeds > 1 and several_kinds:
    raise ValueError(
      f"--num_seeds={description.training.num_seeds} goes with one kind of task; train "
      "several ways and shots one seed after another"
    )
  return description


def _words(name: str, description: Any) -> list[str]:
  data, placement = description.data.name, description.placement
  folder = pathlib.Path(placement.data_dir or "").name if description.data.files else ""
  words = [name] if data == name else [name, data]
  if folder and folder not in (data, name, "data"):
    words.append(folder)
  words += algorithm_words(description)
  return [*words, f"{description.tasks.way}way", f"{description.tasks.shot}shot"]


def algorithm_words(description: Any) -> list[str]:
  """What a run is called after its algorithm."""
  name, sharpness = description.algorithm.name, description.sharpness.sharpness
  return [name] if sharpness == "none" else [name, f"sharp_{sharpness}"]


def leaner(description: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
  """The same run in less memory, the fastest way first."""
  import jax

  from jsharp.algorithms import SecondOrderOptions

  if jax.default_backend() == "cpu":  # one task at a time is fastest and leanest
    chunks = [1]
  else:
    chunks = [description.training.num_tasks // (description.machine.num_devices or 1)]
    while chunks[-1] > 1:
      chunks.append(-(-chunks[-1] // 2))
  for chunk in chunks:
    for algorithm in description.algorithm.leaner():
      mode = "stored"
      if isinstance(algorithm, SecondOrderOptions):
        mode = algorithm.second_order
      chosen = {"task_chunk": chunk, "second_order": mode}
      yield description.replace(algorithm=algorithm), chosen


class Members(NamedTuple):
  """The learners of a run, one for each seed that is trained side by side."""

  learners: list[Learner]
  execution: Execution

  def algorithm(self, way: int) -> MetaAlgorithm:
    """The algorithm of one seed, or of several side by side."""
    from jsharp.training.over_seeds import over_seeds

    algorithms = [learner.algorithm(way) for learner in self.learners]
    return algorithms[0] if len(algorithms) == 1 else over_seeds(algorithms)

  def params(self) -> Any:
    """The initial parameters, stacked where there are several seeds."""
    import jax
    import jax.numpy as jnp

    starts = [learner.made.params for learner in self.learners]
    if len(starts) == 1:
      return starts[0]
    return jax.tree.map(lambda *rows: jnp.stack(rows), *starts)

  def evaluator(self, way: int, query_loss_fn: Any, **adapt: Any) -> Callable[..., Any]:
    """`evaluate_tasks(params, tasks) -> metrics` by some query loss."""
    from jsharp.evaluation import evaluator
    from jsharp.training.over_seeds import evaluator_over_seeds

    first = self.learners[0]
    options = {**first.made.at_test, **adapt}
    evaluate = evaluator(
      functools.partial(first.algorithm(way).adapt, **options),
      query_loss_fn,
      execution=self.execution,
    )
    if len(self.learners) == 1:
      return evaluate
    return evaluator_over_seeds(evaluate, num_seeds=len(self.learners))

  def trained(self, params: Any) -> dict[str, Learner]:
    """The learners with trained parameters, by the folder that each is saved in."""
    import jax

    if len(self.learners) == 1:
      return {"": self.learners[0].replace(params)}
    return {
      f"seed_{number}": learner.replace(jax.tree.map(lambda x, i=number: x[i], params))
      for number, learner in enumerate(self.learners)
    }


def members(
  description: Any,
  execution: Execution,
  *,
  problem: Literal["classification", "regression"],
  num_outputs: int,
  input_shape: tuple[int, ...],
  source: Any = None,
) -> Members:
  """Builds the learners of a run, one for each of its seeds."""
  from jsharp import learners

  made = learners.Description(
    algorithm=description.algorithm,
    network=description.network,
    sharpness=description.sharpness,
    outer=description.outer,
    precision=description.run.precision,
    problem=problem,
    num_outputs=num_outputs,
    input_shape=input_shape,
    source=source,
  )
  first, count = description.run.seed, description.training.num_seeds
  return Members(
    [
      learners.build(made, seed=seed, execution=execution)
      for seed in range(first, first + count)
    ],
    execution,
  )


def loop(description: Any) -> dict[str, Any]:
  """The parts of a run that say how long it trains and what decides."""
  training = description.training
  return {
    "loop": {
      "num_steps": training.num_steps,
      "num_tasks": training.num_tasks * training.num_seeds,
      "eval_every": training.eval_every,
      "keep_top": training.ensemble if training.ensemble > 1 else 0,
      "keep_path": training.keep_path,
      "num_devices": description.machine.num_devices or 1,
    },
    "chosen_by": f"validation on {training.val_tasks} tasks",
  }


def protocol(description: Any) -> dict[str, Any]:
  """The part of the protocol that every experiment shares."""
  from jsharp import options
  from jsharp.options import Role

  algorithm, sharpness = description.algorithm, description.sharpness
  outer, run = description.outer, description.run
  own = options.select(algorithm, lambda field: field.role is not Role.MACHINE)
  steps = ("num_inner_steps", "num_eval_inner_steps", "inner_optimizer", "inner_lr")
  inner = {name: own.pop(name) for name in steps if name in own}
  if "inner_optimizer" in inner:
    inner = {"optimizer": inner.pop("inner_optimizer"), **inner}
  last = run.seed + description.training.num_seeds - 1
  return {
    "algorithm": {
      "name": algorithm.name,
      **own,
      **sharpness.protocol(algorithm),
    },
    "inner loop": inner,
    "outer loop": {
      "optimizer": outer.outer_optimizer,
      "outer_lr": outer.outer_lr,
      "schedule": outer.schedule(),
      "num_tasks": description.training.num_tasks,
      "clip_meta_gradient": outer.clip_meta_gradient,
    },
    "precision": run.precision,
    "seeds": {
      "seed": run.seed,
      "to": last if last > run.seed else None,
      "eval_seed": description.testing.eval_seed,
    },
  }


def load(
  source: ImageSource, test_source: ImageSource | None, placement: Placement
) -> dict[str, Dataset]:
  """The splits of a run: those of its dataset, `test` perhaps of another one.

  Raises:
    ValueError: if the images of the two datasets differ in shape, or files are needed
      and no directory was given.
    OSError: if the data cannot be read.
  """
  splits = source.load(placement.data_dir)
  if test_source is None:
    return splits
  other = test_source.load(placement.test_data_dir or placement.data_dir)["test"]
  shape = splits["train"].image_shape
  if other.image_shape != shape:
    raise ValueError(
      f"the images of --test_dataset={test_source.name} are {other.image_shape}, those "
      f"of --dataset={source.name} {shape}; a model takes one shape: where only height "
      "and width differ pass --image_size, where the channels differ the two cannot be "
      "combined"
    )
  return {**splits, "test": other}


def build(description: Any, execution: Execution) -> Parts:
  """Builds the parts of a run on images from its description.

  Raises:
    ValueError: if the description and the data contradict each other.
    OSError: if the data cannot be read.
  """
  from jsharp.data.placement import placed

  datasets = load(description.data, description.test_data, description.placement)
  tasks = description.tasks
  usual, further = tasks.test(), list(tasks.variations())
  for split, kinds in (
    ("train", tasks.training()),
    ("val", [usual]),
    ("test", [usual, *further]),
  ):
    for kind in kinds:
      kind.check(datasets[split])
  fingerprints = {split: data.fingerprint() for split, data in datasets.items()}
  classes = {split: data.num_classes for split, data in datasets.items()}
  shape = datasets["train"].image_shape
  datasets = placed(datasets, description.placement.images)
  ready = members(
    description,
    execution,
    problem="classification",
    num_outputs=tasks.largest_way,
    input_shape=shape,
    source=description.data,
  )
  algorithm, draw = _training(description, ready)
  return Parts(
    algorithm=algorithm,
    params=ready.params(),
    sample_tasks=draw,
    data=datasets["train"],
    **loop(description),
    validate=_validation(description, ready, usual, datasets["val"]),
    score="accuracy",
    test=_Test(description, ready, datasets["test"]),
    fingerprints=fingerprints,
    protocol={
      **protocol(description),
      "task": tasks.protocol(),
      "model": _model(description, ready),
      "normalisation": _normalisation(description),
      "data": {
        **_named(description, shape),
        "classes": " / ".join(str(count) for count in classes.values()),
        **fingerprints,
      },
    },
    learners=ready.trained,
    title=_title(description),
  )


def _title(description: Any) -> str:
  name = _named(description, ())["name"]
  return f"{name}: {' '.join(algorithm_words(description))}"


def _named(description: Any, shape: tuple[int, ...]) -> dict[str, Any]:
  """What the data are called: the dataset, its folder, the size of its images."""
  name, placement = description.data.name, description.placement
  facts: dict[str, Any] = {"name": name}
  if description.data.files and placement.data_dir:
    facts["folder"] = pathlib.Path(placement.data_dir).expanduser().resolve().name
    if name in ("miniimagenet", "image_folder"):
      facts["name"] = facts["folder"]
      facts["read as"] = name
  if shape:
    facts["images"] = "x".join(map(str, shape))
  if description.test_data is not None:
    facts["tested on"] = description.test_data.name
  return facts


def _model(description: Any, ready: Members) -> dict[str, Any]:
  import jax

  from jsharp import options

  first = ready.learners[0].made.params
  return {
    "name": description.network.name,
    **options.select(description.network, lambda field: True),
    "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(first)),
  }


def _normalisation(description: Any) -> dict[str, Any]:
  algorithm = description.algorithm
  statistics: dict[str, Any] = {
    "statistics": "of the batch",
    "transductive": "the whole query set",
    "inductive": "support set and one query example",
  }
  if algorithm.uses_running_statistics() and description.network.has_norm:
    both = "of the batch in training, running ones per step at test"
    statistics = {"statistics": both}
  return {**statistics, "scale and offset adapted": algorithm.adapts_norm()}


def _training(
  description: Any, ready: Members
) -> tuple[MetaAlgorithm, Callable[..., Any]]:
  """The algorithm and the tasks of each of its steps."""
  import jax
  import jax.numpy as jnp

  from jsharp.data import sample_many, task_key
  from jsharp.training.mixture import mixture

  num_tasks, seed = description.training.num_tasks, description.run.seed

  def sampler(kind: Kind, seed: int) -> Callable[..., Task]:
    sample_one = kind.sampler()

    def draw(step: Any, data: Any, part: tuple[Any, int] = (0, 1)) -> Task:
      index, count = part
      return sample_many(
        lambda key: sample_one(key, data),
        task_key(seed, step),
        num_tasks=num_tasks // count,
        first_task=index * (num_tasks // count),
      )

    return draw

  kinds = description.tasks.training()
  if len(kinds) > 1:
    (learner,) = ready.learners
    algorithms = [learner.algorithm(kind.shape["way"]) for kind in kinds]
    return mixture(algorithms, [sampler(kind, seed) for kind in kinds], seed=seed)
  samplers = [sampler(kinds[0], seed + i) for i in range(len(ready.learners))]
  algorithm = ready.algorithm(kinds[0].shape["way"])
  if len(samplers) == 1:
    return algorithm, samplers[0]

  def draw_all(step: Any, data: Any, **part: Any) -> Task:
    drawn = [draw(step, data, **part) for draw in samplers]
    return jax.tree.map(lambda *rows: jnp.stack(rows), *drawn)

  return algorithm, draw_all


def fixed_tasks(description: Any, kind: Any, stream: Any) -> Any:
  """The tasks of validation or test, the same for every run."""
  from jsharp.evaluation import task_list

  return task_list(kind.sampler(), seed=description.testing.eval_seed, stream=stream)


def _validation(description: Any, ready: Members, kind: Kind, data: Any) -> Any:
  from jsharp import losses
  from jsharp.evaluation import evaluate
  from jsharp.normalization import query_loss, transductive

  way = kind.shape["way"]
  predict = transductive(ready.learners[0].apply_fn(way))
  judged = ready.evaluator(way, query_loss(predict, losses.cross_entropy))
  tasks = fixed_tasks(description, kind, "val")

  def validate(params: Any, stop: StopSignal) -> dict[str, float]:
    metrics = evaluate(
      judged,
      params,
      tasks,
      data,
      num_tasks=description.training.val_tasks,
      stop=stop,
      execution=ready.execution,
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  return validate


@dataclasses.dataclass(frozen=True)
class _Test:
  """The test of the chosen parameters: every kind of task, and the ensemble."""

  description: Any
  ready: Members
  data: Any

  def __call__(self, trained: TrainingResult, stop: StopSignal) -> dict[str, Any]:
    tasks, training = self.description.tasks, self.description.training
    metrics = self._measure(tasks.test(), trained.best_params, stop)
    figures = {
      **_summary(metrics),
      "num_eval_tasks": self.description.testing.eval_tasks,
      "per_task": metrics,
    }
    if training.num_seeds > 1:
      figures["test_accuracy_by_seed"] = metrics["accuracy"].mean(axis=0).tolist()
    if training.ensemble > 1:
      figures |= _summary(self._ensemble(trained, stop), prefix="test_ensemble_")
      figures["ensemble_steps"] = [one.step for one in trained.top]
    if further := list(tasks.variations()):
      figures["test_variations"] = [
        {**kind.name, **_summary(self._measure(kind, trained.best_params, stop))}
        for kind in further
      ]
    return figures

  def _common(self, kind: Kind, stop: StopSignal) -> dict[str, Any]:
    return {
      "sample_task": fixed_tasks(self.description, kind, "test"),
      "data": self.data,
      "num_tasks": self.description.testing.eval_tasks,
      "stop": stop,
      "execution": self.ready.execution,
    }

  def _measure(self, kind: Kind, params: Any, stop: StopSignal) -> dict[str, Any]:
    """Metrics `[num_eval_tasks]`, or one per task and seed, under both policies."""
    from jsharp import losses
    from jsharp.evaluation import evaluate, transductive_and_inductive

    way = kind.shape["way"]
    apply_fn = self.ready.learners[0].apply_fn(way)
    both = transductive_and_inductive(apply_fn, losses.cross_entropy)
    evaluate_tasks = self.ready.evaluator(way, both)
    return evaluate(evaluate_tasks, params, **self._common(kind, stop))

  def _ensemble(self, trained: TrainingResult, stop: StopSignal) -> dict[str, Any]:
    from jsharp.evaluation import evaluate_ensemble, log_probabilities
    from jsharp.normalization import transductive

    kind = self.description.tasks.test()
    way = kind.shape["way"]
    apply_fn = self.ready.learners[0].apply_fn(way)
    logs = log_probabilities(transductive(apply_fn))
    evaluate_tasks = self.ready.evaluator(way, logs)
    trees = [one.tree for one in trained.top]
    return evaluate_ensemble(evaluate_tasks, trees, **self._common(kind, stop))


def _summary(metrics: dict[str, Any], prefix: str = "test_") -> dict[str, float]:
  """Means and intervals over tasks, of what a task gives on average over seeds."""
  from jsharp.evaluation.report import summarise

  by_task = {
    name: values if values.ndim == 1 else values.mean(axis=1)
    for name, values in metrics.items()
  }
  return summarise(by_task, prefix)
