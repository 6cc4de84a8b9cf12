"""What the flags of ordinary classification stand for: data, optimizer, protocol."""

import functools
import inspect
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import jsharp
from experiments import classification_flags
from experiments.choices import NO_DATA
from experiments.supervised_flags import ALGORITHMS
from jsharp import data, models
from jsharp.data import augmentation, examples, label_noise, same_classes, subset

NUM_TEST_CHARACTERS = 5


class Splits(NamedTuple):
  """The data of a run, on the host.

  Attributes:
    train: what is trained on, label noise included.
    val: what is validated on, None for nothing.
    test: what is tested on.
    num_available: how many training images there were to choose from.
    num_wrong: how many training labels the noise made wrong.
    num_classes: how many classes there are.
    fingerprints: of the datasets, by split.
  """

  train: examples.Examples
  val: examples.Examples | None
  test: examples.Examples
  num_available: int
  num_wrong: int
  num_classes: int
  fingerprints: dict[str, str]


def load_datasets(settings: SimpleNamespace) -> dict[str, data.Dataset]:
  """Loads `train`, `test` and perhaps `val` of the chosen data.

  Raises:
    ValueError: if the data need a directory and none was given.
  """
  name = settings.dataset
  size = {} if settings.image_size is None else {"size": settings.image_size}
  if name == "characters":
    drawn = data.characters.load(**size)["train"]
    chosen = same_classes.first_classes(drawn, settings.num_characters)
    return same_classes.split_classes(chosen, NUM_TEST_CHARACTERS)
  if settings.data_dir is None:
    fix = "pass the directory that tensorflow-datasets prepared it in as --data_dir"
    if name == "image_folder":
      fix = NO_DATA[name].replace("train/, val/ and test/", "train/ and test/")
    raise ValueError(
      f"--dataset={name} needs files: {fix}. Or pass --dataset=characters, drawn by "
      "jsharp itself, which needs nothing"
    )
  if classification_flags.is_tfds(name):
    tfds_name = name.removeprefix("tfds:")
    return data.tfds_source.load_labelled(tfds_name, settings.data_dir, **size)
  return data.labelled_images.load(settings.data_dir, **size)


def load_splits(settings: SimpleNamespace) -> Splits:
  """Loads the data, holds out what validates, takes a part, puts in the label noise.

  Raises:
    ValueError: if flags and data contradict each other.
    OSError: if the data cannot be read.
  """
  datasets = load_datasets(settings)
  num_classes = datasets["train"].num_classes
  train = examples.from_dataset(datasets["train"])
  val = None
  if settings.val_fraction:
    if "val" in datasets:
      raise ValueError(
        f"--val_fraction={settings.val_fraction}, but the data have a val split; leave "
        "the flag out or the split away"
      )
    num_held = round(settings.val_fraction * len(train.labels))
    train, val = examples.hold_out(train, num_held, seed=settings.data_seed)
  elif "val" in datasets:
    val = examples.from_dataset(datasets["val"], like=train)
  num_available = len(train.labels)
  if settings.train_examples is not None:
    try:
      chosen = subset.balanced_subset(
        train.labels,
        settings.train_examples,
        datasets["train"].class_names,
        seed=settings.data_seed,
      )
    except ValueError as error:
      raise ValueError(f"--train_examples: {error}") from error
    train = examples.take(train, chosen)
  num_wrong = 0
  if settings.label_noise:
    noisy = label_noise.corrupt(
      jax.random.key(settings.data_seed),
      jax.numpy.asarray(train.labels),
      settings.label_noise,
      num_classes,
      other_classes_only=settings.label_noise_other_classes,
    )
    num_wrong = int((noisy != train.labels).sum())
    train = train._replace(labels=np.asarray(noisy))
  return Splits(
    train=train,
    val=val,
    test=examples.from_dataset(datasets["test"], like=train),
    num_available=num_available,
    num_wrong=num_wrong,
    num_classes=num_classes,
    fingerprints={split: d.fingerprint() for split, d in datasets.items()},
  )


def make_model(settings: SimpleNamespace, num_classes: int) -> nn.Module:
  """The network, with one output per class."""
  if settings.model == "resnet":
    return models.ResNet(num_classes, depth=settings.depth)
  return models.WideResNet(num_classes, depth=settings.depth, widen=settings.widen)


def make_augment(settings: SimpleNamespace) -> examples.Augment | None:
  """What is done to training images; None for nothing."""
  if settings.augment == "none":
    return None
  return functools.partial(
    augmentation.standard,
    flip=settings.dataset != "characters",
    cutout_size=16 if settings.augment == "cutout" else 0,
  )


def algorithm_arguments(settings: SimpleNamespace) -> dict[str, Any]:
  """Every argument of the algorithm's constructor, its own defaults included."""
  if settings.algorithm == "sgd":
    return {}
  names = ("rho", *ALGORITHMS[settings.algorithm])
  given = {name: getattr(settings, name) for name in names}
  if settings.algorithm == "looksam":
    given["every"] = settings.sam_every
  given = {name: value for name, value in given.items() if value is not None}
  parameters = inspect.signature(getattr(jsharp, settings.algorithm)).parameters
  return {
    **{
      name: parameter.default
      for name, parameter in parameters.items()
      if parameter.default is not inspect.Parameter.empty
    },
    **given,
  }


def make_optimizer(
  settings: SimpleNamespace, *, num_steps: int, per_epoch: int
) -> optax.GradientTransformation:
  """Perturbation, weight decay, clipping, SGD: the whole chain.

  The decay is that of the unperturbed parameters and no part of the gradient that the
  perturbation follows; in SAM's code it is a part of the loss, in both passes.
  """
  rate: Any = settings.lr
  if settings.schedule == "cosine":
    rate = optax.cosine_decay_schedule(settings.lr, num_steps)
  links = []
  if settings.weight_decay:
    links.append(optax.add_decayed_weights(settings.weight_decay))
  if settings.clip_gradient is not None:
    links.append(optax.clip_by_global_norm(settings.clip_gradient))
  momentum = settings.momentum or None
  links.append(optax.sgd(rate, momentum, nesterov=settings.nesterov))
  if settings.algorithm == "sgd":
    return optax.chain(*links)
  constructor = getattr(jsharp, settings.algorithm)
  arguments = algorithm_arguments(settings)
  if settings.algorithm == "momentum_sam":
    return constructor(optax.chain(*links), **arguments)
  link = constructor(**arguments)
  start, every = sharp_steps(settings, per_epoch)
  every = 1 if settings.algorithm == "looksam" else every  # It counts by itself.
  if start or every > 1:
    link = optax.conditionally_transform(
      link, lambda step: (step >= start) & ((step - start) % every == 0)
    )
  return optax.chain(link, *links)


def sharp_steps(settings: SimpleNamespace, per_epoch: int) -> tuple[int, int]:
  """The first step with a second gradient, and every which one has one."""
  own = algorithm_arguments(settings).get("every")  # LookSAM's.
  return round(settings.sam_start * per_epoch), own or settings.sam_every or 1


def count_gradients(
  settings: SimpleNamespace, *, num_steps: int, per_epoch: int
) -> dict[str, float]:
  """Gradients in all and per step, on average."""
  total = num_steps
  if settings.algorithm not in ("sgd", "momentum_sam"):
    start, every = sharp_steps(settings, per_epoch)
    total += -(-max(num_steps - start, 0) // every)
  return {"num_gradients": total, "gradients_per_step": total / num_steps}


def protocol(
  settings: SimpleNamespace, splits: Splits, *, num_parameters: int
) -> dict[str, Any]:
  """What a reader of the figures must know."""
  widen = settings.widen if settings.model == "wide_resnet" else None
  noise = None
  if settings.label_noise:
    noise = {
      "share drawn anew": settings.label_noise,
      "from": "other classes" if settings.label_noise_other_classes else "all classes",
      "wrong labels": splits.num_wrong,
    }
  arguments = algorithm_arguments(settings)
  if settings.algorithm != "looksam":
    arguments["every"] = settings.sam_every
  return {
    "algorithm": {
      "name": settings.algorithm,
      **arguments,
      "from epoch": settings.sam_start or None,
    },
    "optimizer": {
      "name": "sgd",
      "lr": settings.lr,
      "schedule": settings.schedule,
      "momentum": settings.momentum,
      "nesterov": settings.nesterov,
      "weight_decay": settings.weight_decay,
      "clip_gradient": settings.clip_gradient,
      "batch_size": settings.batch_size,
      "num_epochs": settings.num_epochs,
    },
    "model": {
      "name": settings.model,
      "depth": settings.depth,
      "widen": widen,
      "num_parameters": num_parameters,
    },
    "precision": settings.precision,
    "normalisation": "the batch in training, running averages (0.9) at test",
    "augmentation": settings.augment,
    "label noise": noise,
    "data": {
      "name": settings.dataset,
      "training examples": len(splits.train.labels),
      "chosen evenly from": splits.num_available if settings.train_examples else None,
      "classes": splits.num_classes,
      **splits.fingerprints,
    },
    "seeds": {"seed": settings.seed, "data_seed": settings.data_seed},
  }
