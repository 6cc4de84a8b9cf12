"""Few-shot experiments: what those on images share, and what all of them share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from experiments._flags import Choice, Group, Program
from experiments._program import Experiment, Parts

if TYPE_CHECKING:
  from jsharp.core.execution import Execution
  from jsharp.data import Dataset
  from jsharp.evaluation.side_by_side import SideBySide
  from jsharp.training import StopSignal, TrainingResult
  from jsharp.training.runs import FewShotRun

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
  return Experiment(
    program, _describe, functools.partial(_words, name), build, leaner=True
  )


def _describe(parts: dict[str, Any]) -> FewShotRun:
  from jsharp.training.runs import FewShotRun

  return FewShotRun(**parts)


def _words(name: str, description: FewShotRun) -> list[str]:
  data, folder = description.data.name, description.folder
  words = [name] if data == name else [name, data]
  if folder not in ("", "data", name, data):
    words.append(folder)
  words += description.words
  return [*words, f"{description.tasks.way}way", f"{description.tasks.shot}shot"]


def load(description: FewShotRun) -> dict[str, Dataset]:
  """The splits of a run, on the host."""
  from jsharp.data.placement import load_with_test

  placement = description.placement
  return load_with_test(
    description.data,
    placement.data_dir,
    test_source=description.test_data,
    test_data_dir=placement.test_data_dir,
  )


def build(description: FewShotRun, execution: Execution) -> Parts:
  """Builds the parts of a run on images from its description.

  Raises:
    ValueError: if the description and the data contradict each other.
    OSError: if the data cannot be read.
  """
  import jax

  from jsharp.data.placement import placed
  from jsharp.evaluation.side_by_side import side_by_side

  datasets = load(description)
  tasks, training = description.tasks, description.training
  usual, further = tasks.test(), list(tasks.variations())
  for split, kinds in (
    ("train", tasks.training()),
    ("val", [usual]),
    ("test", [usual, *further]),
  ):
    for kind in kinds:
      kind.check(datasets[split])
  fingerprints = {split: data.fingerprint() for split, data in datasets.items()}
  classes = [str(data.num_classes) for data in datasets.values()]
  shape = datasets["train"].image_shape
  datasets = placed(datasets, description.placement.images)
  learners = side_by_side(
    description.learner(
      problem="classification",
      num_outputs=tasks.largest_way,
      input_shape=shape,
      source=description.data,
    ),
    seed=description.run.seed,
    num_seeds=training.num_seeds,
    execution=execution,
  )
  algorithm, draw = learners.training(tasks.training(), num_tasks=training.num_tasks)
  protocol = description.protocol()
  leaves = jax.tree.leaves(learners.learners[0].made.params)
  protocol["model"]["num_parameters"] = sum(leaf.size for leaf in leaves)
  protocol["data"] |= {
    "images": "x".join(map(str, shape)),
    "classes": " / ".join(classes),
    **fingerprints,
  }
  return Parts(
    algorithm=algorithm,
    params=learners.params,
    sample_tasks=draw,
    data=datasets["train"],
    loop=description.loop(),
    chosen_by=f"validation on {training.val_tasks} tasks",
    validate=_validation(description, learners, datasets["val"]),
    score="accuracy",
    test=functools.partial(_test, description, learners, datasets["test"]),
    fingerprints=fingerprints,
    protocol=protocol,
    learners=learners.trained,
    title=f"{description.data_name}: {' '.join(description.words)}",
  )


def _validation(
  description: FewShotRun, learners: SideBySide, dataset: Dataset
) -> Callable[[Any, StopSignal], dict[str, float]]:
  from jsharp.evaluation import evaluate
  from jsharp.evaluation.side_by_side import fixed_tasks

  kind = description.tasks.test()
  judged = learners.validation(kind)
  sample_task = fixed_tasks(kind, "val", seed=description.testing.eval_seed)

  def validate(params: Any, stop: StopSignal) -> dict[str, float]:
    metrics = evaluate(
      judged,
      params,
      sample_task,
      dataset,
      num_tasks=description.training.val_tasks,
      stop=stop,
      execution=learners.execution,
    )
    return {name: float(values.mean()) for name, values in metrics.items()}

  return validate


def _test(
  description: FewShotRun,
  learners: SideBySide,
  dataset: Dataset,
  trained: TrainingResult,
  stop: StopSignal,
) -> dict[str, Any]:
  """Figures of the chosen parameters: every kind of task, and the ensemble."""
  tasks, testing = description.tasks, description.testing
  common: dict[str, Any] = {
    "dataset": dataset,
    "num_tasks": testing.eval_tasks,
    "seed": testing.eval_seed,
    "stop": stop,
  }
  metrics = learners.measure(trained.best_params, tasks.test(), **common)
  figures: dict[str, Any] = {
    **_summary(metrics),
    "num_eval_tasks": testing.eval_tasks,
    "per_task": metrics,
  }
  if description.training.num_seeds > 1:
    figures["test_accuracy_by_seed"] = metrics["accuracy"].mean(axis=0).tolist()
  if description.training.ensemble > 1:
    members = [one.tree for one in trained.top]
    together = learners.measure_ensemble(members, tasks.test(), **common)
    figures |= _summary(together, prefix="test_ensemble_")
    figures["ensemble_steps"] = [one.step for one in trained.top]
  if further := list(tasks.variations()):
    figures["test_variations"] = [
      {
        **kind.name,
        **_summary(learners.measure(trained.best_params, kind, **common)),
      }
      for kind in further
    ]
  return figures


def _summary(metrics: dict[str, Any], prefix: str = "test_") -> dict[str, float]:
  """Means and intervals over tasks, of what a task gives on average over seeds."""
  from jsharp.evaluation.report import summarise

  by_task = {
    name: values if values.ndim == 1 else values.mean(axis=1)
    for name, values in metrics.items()
  }
  return summarise(by_task, prefix)
