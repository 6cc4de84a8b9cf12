"""Code and flags shared by few-shot experiments."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments._program import Experiment, Parts
from jsharp._flags import Choice, Group, Program

if TYPE_CHECKING:
  from jsharp.core.execution import Execution
  from jsharp.training.runs import FewShotRun

ALGORITHM = Choice(
  "algorithm", "algorithm", "The meta-learning algorithm.", "maml", strict=True
)
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
    name: its name.
    defaults: the defaults of its flags.
    summary: the beginning of `--help`.
  """
  dataset = Choice(
    "dataset",
    "dataset",
    "The dataset: omniglot, miniimagenet, tieredimagenet, cifar_fs, fc100, cub, "
    "characters (drawn by jsharp itself, needs no files), image_folder (any "
    "split/class/image or class/image), tfds:NAME (already prepared by "
    "tensorflow-datasets), domains (several datasets, see --domains) or your own as "
    "module:Class.",
    None,
  )
  test_dataset = Choice(
    "dataset",
    "test_dataset",
    "Test on this dataset instead of --dataset; training and validation do not change. "
    "Its images are resized and converted to match those of --dataset. Values as for "
    "--dataset.",
    None,
  )
  network = Choice(
    "network",
    "model",
    "The network. conv4: four convolutions with max-pooling; conv4_strided: with "
    "stride 2 instead of pooling, the fastest; resnet12: a deep network, see --widths; "
    "wide_resnet and imagenet_resnet (ResNet-18 by default): see --depth; mlp: without "
    "convolutions, 256-128-64-64; or your own as module:Class.",
    "conv4",
    hidden=("sine_mlp", "policy"),
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
      Group(
        "training", {**TRAINING, "initial": "jsharp.algorithms.fine_tuning:Initial"}
      ),
      Group("testing", TESTING),
      Group("machine", MACHINE),
    ),
    defaults,
    summary,
  )
  return Experiment(
    program, _describe, functools.partial(_words, name), build, leaner=True
  )


def figures_by_step(
  name: str, values: Any, metrics: Mapping[str, Any], num_tasks: int
) -> dict[str, Any]:
  """The test figures of a run that is measured after each inner step.

  Args:
    name: NAME in the figures' name `test_NAME_by_step`.
    values: `[num_tasks, num_steps + 1]`.
    metrics: the metrics that are written for each task.
    num_tasks: the number of tasks.
  """
  from jsharp.evaluation import mean_and_ci95

  means, half_widths = zip(*map(mean_and_ci95, values.T), strict=True)
  return {
    f"test_{name}_by_step": list(means),
    f"test_{name}_by_step_ci95": list(half_widths),
    "num_eval_tasks": num_tasks,
    "per_task": metrics,
  }


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


def build(description: FewShotRun, execution: Execution) -> Parts:
  """Builds the parts of a run on images from its description.

  Raises:
    ValueError: if the description and the data contradict each other.
    OSError: if the data cannot be read.
  """
  import jax

  from jsharp.data.placement import origins, placed
  from jsharp.evaluation.side_by_side import side_by_side

  datasets = description.load()
  tasks, training = description.tasks, description.training
  testing = description.testing
  tasks.check(datasets)
  fingerprints = {split: data.fingerprint() for split, data in datasets.items()}
  classes = [str(data.num_classes) for data in datasets.values()]
  domains = ", ".join(name for name, _ in datasets["test"].domains)
  origin = origins(datasets)
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
  learners, digest = learners.beginning_with(description.initial)
  if digest:
    fingerprints["init"] = digest
  algorithm, draw = learners.training(tasks.training(), num_tasks=training.num_tasks)
  protocol = description.protocol()
  leaves = jax.tree.leaves(learners.learners[0].made.params)
  protocol["model"]["num_parameters"] = sum(leaf.size for leaf in leaves)
  protocol["data"] |= {
    "images": "x".join(map(str, shape)),
    "classes": " / ".join(classes),
    "domains": domains or None,
    "prepared": origin,
    **fingerprints,
  }
  return Parts(
    algorithm=algorithm,
    params=learners.params,
    sample_tasks=draw,
    data=datasets["train"],
    loop=description.loop(),
    chosen_by=f"validation on {training.val_tasks} tasks",
    validate=learners.validation(
      tasks.validation(),
      datasets["val"],
      num_tasks=training.val_tasks,
      seed=testing.eval_seed,
    ),
    score="accuracy",
    test=lambda trained, stop: learners.test(
      trained.best_params,
      tasks,
      datasets["test"],
      num_tasks=testing.eval_tasks,
      seed=testing.eval_seed,
      members=trained.top if training.ensemble > 1 else (),
      stop=stop,
    ),
    fingerprints=fingerprints,
    protocol=protocol,
    learners=learners.trained,
    title=f"{description.data_name}: {' '.join(description.words)}",
  )
