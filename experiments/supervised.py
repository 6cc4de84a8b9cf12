r"""Ordinary classification with any sharpness-aware optimizer.

How much do sharpness-aware optimizers such as SAM lower the test error, and how much
flatter are their minima than those of plain SGD?

  python -m experiments.supervised
  python -m experiments.supervised --data_dir=DIRECTORY \
    --flagfile=experiments/flagfiles/sam_cifar10_wrn28_10.txt

The defaults need no data and take about a minute: a small network on characters drawn
by jsharp itself. On CIFAR-10 a WRN-28-10 has an error of 2.7 +- 0.1 percent with SAM
and 3.5 +- 0.1 without (Foret, Kleiner, Mobahi and Neyshabur, 2021), which needs a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from experiments import _program
from experiments._program import Experiment, Measure, Parts
from jsharp._flags import Choice, Group, Program

if TYPE_CHECKING:
  from jsharp.core.execution import Execution
  from jsharp.data import Splits
  from jsharp.learners import Classifier
  from jsharp.training import StopSignal, TrainingResult
  from jsharp.training.runs import OrdinaryRun
  from jsharp.types import Batch, Metrics, Variables

_DATASET = Choice(
  "labelled dataset",
  "dataset",
  "The dataset: characters (drawn by jsharp itself, needs no files; 15 drawings per "
  "class for training and 5 for testing), cifar10, cifar100 (their Python archives), "
  "image_folder (train/CLASS/IMAGE and test/CLASS/IMAGE, the same classes in both), "
  "imagenet (photographs of any size, streamed from folders, tar files or records), "
  "tfds:NAME (already prepared by tensorflow-datasets, as tfds:cifar10), base:NAME "
  "(the training classes of a few-shot dataset, as base:miniimagenet, for "
  "pretraining) or your own as module:Class.",
  "characters",
)
_ALGORITHM = Choice(
  "sharpness-aware optimizer",
  "algorithm",
  "The optimizer: sgd with momentum, or a sharpness-aware algorithm in front of it.",
  "sam",
  strict=True,
)
_NETWORK = Choice(
  "classifier network",
  "model",
  "The network. resnet: small, for CIFAR, 16-32-64 channels; wide_resnet: "
  "pre-activation; shake_shake: two branches mixed at random; pyramid_net: growing "
  "channels, optionally with ShakeDrop; imagenet_resnet: for photographs of 224 "
  "pixels; conv4, "
  "conv4_strided, resnet12: few-shot backbones, for --init_from of a few-shot program; "
  "or your own as module:Class.",
  "resnet",
)


def _describe(parts: dict[str, Any]) -> Any:
  from jsharp.options import to_json
  from jsharp.training.options import Machine
  from jsharp.training.runs import OrdinaryRun

  rest = {name: part for name, part in parts.items() if name != "devices"}
  return OrdinaryRun(**rest, machine=Machine(**to_json(parts["devices"])))


def _words(description: OrdinaryRun) -> list[str]:
  data, network = description.data, description.network
  preparation = description.preparation
  words = ["supervised", data.name, network.label, description.algorithm.name]
  if preparation.train_examples:
    words.append(f"{preparation.train_examples}examples")
  if preparation.label_noise:
    words.append(f"noise{round(100 * preparation.label_noise)}")
  return words


def build(description: OrdinaryRun, execution: Execution) -> Parts:
  """Builds the parts of a run of ordinary classification from its description.

  Raises:
    ValueError: if the description and the data contradict each other.
    OSError: if the data cannot be read.
  """
  import jax

  from jsharp import learners
  from jsharp.algorithms.fine_tuning import check_groups, hold_groups
  from jsharp.algorithms.supervised import supervised
  from jsharp.data import examples, load_splits, streams
  from jsharp.evaluation import report

  training, preparation = description.training, description.preparation
  algorithm, run = description.algorithm, description.run
  tuning = description.fine_tuning
  splits = load_splits(description.data, description.files.data_dir, preparation)
  if preparation.relabel:
    splits = learners.relabelled(splits, learners.load(preparation.relabel))
  per_epoch = examples.steps_per_epoch(len(splits.train.labels), training.batch_size)
  num_steps = training.num_epochs * per_epoch
  learner = learners.build_classifier(
    learners.ClassifierDescription(
      network=description.network,
      class_names=splits.class_names,
      input_shape=splits.train.images.shape[1:],
      pixel_mean=tuple(splits.train.mean.tolist()),
      pixel_scale=tuple(splits.train.scale.tolist()),
      precision=run.precision,
      source=description.data,
    ),
    seed=run.seed,
    execution=execution,
    label_smoothing=training.label_smoothing,
  )
  params, digest = learners.initial(tuning, learner.params)
  check_groups(params.params, (*tuning.factors, *tuning.freeze))
  fingerprints = {**splits.fingerprints, **({"init": digest} if digest else {})}
  optimizer = algorithm.wrap(
    tuning.optimizer(training.optimizer(num_steps)), steps_per_epoch=per_epoch
  )
  num_gradients = algorithm.num_gradients(num_steps, steps_per_epoch=per_epoch)
  data: Any
  train, val, test = data = splits.train, splits.val, splits.test
  sample_batch: Callable[..., Batch] = functools.partial(
    examples.sample_batch, batch_size=training.batch_size
  )
  if description.data.streamed:
    data = streams.Stream(
      train, batch_size=training.batch_size, num_batches=num_steps, seed=run.seed
    )
    sample_batch = streams.sample_batch
    train = streams.some(train, len(test.labels), seed=preparation.data_seed)
  else:
    train, val, test = jax.device_put(data)
    data = train
  metrics_of, hessian_of = _measurements(description, splits, learner, execution)

  def validate(variables: Variables, stop: StopSignal) -> dict[str, float]:
    metrics = metrics_of(variables, val, stop)
    return {name: float(values.mean()) for name, values in metrics.items()}

  def tested(trained: TrainingResult, stop: StopSignal) -> dict[str, Any]:
    best: Variables = trained.best_params
    metrics = metrics_of(best, test, stop)
    return {
      **report.errors(metrics, metrics_of(best, train, stop)),
      "per_task": report.per_example(metrics),
      "num_gradients": num_gradients,
      "gradients_per_step": num_gradients / num_steps,
      **hessian_of(params, "start", stop),
      **hessian_of(best, "end", stop),
    }

  chosen_by = "nothing: the last one"
  if val is not None:
    chosen_by = f"validation on {val.labels.shape[0]} examples"
  return Parts(
    algorithm=supervised(
      learner.loss_fn,
      optimizer,
      hold=hold_groups(tuning.freeze) if tuning.freeze else None,
      centre=algorithm.centre,
      groups=algorithm.groups,
      statistics_batch_size=training.statistics_batch_size,
      weight_decay=training.weight_decay * training.decay_in_loss,
      key=jax.random.fold_in(jax.random.key(run.seed), 1),
    ),
    params=params,
    sample_tasks=functools.partial(
      sample_batch,
      run.seed,
      distort=preparation.distortion(),
      augment=preparation.augmentation(description.data),
      mix=preparation.mixing(len(splits.class_names)),
    ),
    data=data,
    loop={
      "num_steps": num_steps,
      "num_tasks": training.batch_size,
      "eval_every": training.eval_every * per_epoch,
      "num_devices": description.machine.num_devices,
      "divide": "batch",
    },
    validate=validate if val is not None else None,
    score="accuracy",
    chosen_by=chosen_by,
    test=tested,
    fingerprints=fingerprints,
    protocol=description.protocol(splits, learner.params.params),
    learners=lambda variables: {"": learner.replace(variables)},
    title=f"supervised: {algorithm.name}",
    curves={
      "step_name": "step",
      "labels": {"loss": "cross-entropy (nats)", "accuracy": "accuracy (%)"},
    },
    unit="examples",
  )


def _measurements(
  description: OrdinaryRun, splits: Splits, learner: Classifier, execution: Execution
) -> tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, list[float]]]]:
  """Two functions: metrics per example, and eigenvalues of the Hessian."""
  from jsharp.algorithms.supervised import examples_evaluator
  from jsharp.data import examples, streams
  from jsharp.evaluation import evaluate, evaluate_stream
  from jsharp.types import Variables

  batch_size, hessian = description.training.batch_size, description.hessian
  evaluate_examples = examples_evaluator(learner.loss_fn)

  def evaluate_drawn(variables: Variables, drawn: streams.Drawn) -> Metrics:
    return evaluate_examples(variables, streams.normalised(drawn))

  def metrics_of(variables: Variables, data: Any, stop: StopSignal) -> dict[str, Any]:
    if description.data.streamed:
      stream = streams.Stream(data, batch_size=min(batch_size, len(data.labels)))
      return evaluate_stream(
        evaluate_drawn, variables, stream, stop=stop, execution=execution
      )
    return evaluate(
      evaluate_examples,
      variables,
      examples.example_at,
      data,
      num_tasks=data.labels.shape[0],
      chunk=batch_size,
      stop=stop,
      execution=execution,
    )

  def mean_loss(params: Any, batch: Batch, statistics: Any) -> Any:
    return evaluate_examples(Variables(params, statistics), batch)["loss"].mean()

  def hessian_of(
    variables: Variables, when: str, stop: StopSignal
  ) -> dict[str, list[float]]:
    seed, number = description.preparation.data_seed, hessian.hessian_examples
    return hessian.figures(
      when,
      mean_loss,
      variables.params,
      examples.in_batches(splits.train, number, batch_size, seed=seed),
      context=variables.statistics,
      between=stop.check,
    )

  return metrics_of, hessian_of


_DATA: Mapping[str, str | Choice] = {
  "data": _DATASET,
  "files": "jsharp.training.options:Files",
  "preparation": "jsharp.data.preparation:Preparation",
}
_MACHINE: Mapping[str, str | Choice] = {
  "run": "jsharp.training.options:Run",
  "devices": "jsharp.training.options:Devices",
}
EXPERIMENT = Experiment(
  Program(
    "supervised",
    (
      Group("data", _DATA),
      Group("learner", {"algorithm": _ALGORITHM, "network": _NETWORK}),
      Group(
        "training",
        {
          "training": "jsharp.algorithms.supervised:OrdinaryTraining",
          "fine_tuning": "jsharp.algorithms.fine_tuning:FineTuning",
        },
      ),
      Group("testing", {"hessian": "jsharp.analysis.hessian:HessianOptions"}),
      Group("machine", _MACHINE),
    ),
    {},
    __doc__ or "",
  ),
  _describe,
  _words,
  build,
  measure=Measure("error", 100.0, "test error, %"),
)

if __name__ == "__main__":
  _program.main(EXPERIMENT)
