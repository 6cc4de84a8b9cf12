"""Preparing a labelled dataset for ordinary training: three sets of examples.

In this order, validation examples are held out, a part of the rest is selected, and
label noise is applied to that part.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from jsharp.data import (
  augmentation,
  auto_augment,
  examples,
  label_noise,
  streams,
  subset,
)
from jsharp.data._options import LabelledSource, StreamedSource
from jsharp.data.examples import Augment, Examples
from jsharp.options import Options, Role, at_least, between, option
from jsharp.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation(Options):
  """Options for selecting training examples, label noise and augmentation.

  Example:
    >>> Preparation(label_noise=0.4).val_fraction
    0.0
  """

  role: ClassVar[Role] = Role.TRAINING

  val_fraction: float = option(
    0.0,
    "Fraction of the training images held out for validation, before label noise; the "
    "parameters that are best on them are tested. 0: nothing is held out and the last "
    "parameters are tested, as in the papers. Not for data with a val split.",
    check=between(0, 1, "0.1 is a tenth.", below=True),
  )
  train_examples: int | None = option(
    None,
    "Train on this many training images: the first of a random order in which the "
    "classes alternate, chosen after --val_fraction and before label noise. Default: "
    "all.",
    check=at_least(1),
  )
  label_noise: float = option(
    0.0,
    "Fraction of the training labels that are replaced at random, from 0 to 1.",
    check=between(0, 1, "0.4 is 40 percent."),
  )
  label_noise_other_classes: bool = option(
    False,
    "Draw replaced labels only from the other classes, so that exactly the fraction "
    "--label_noise is wrong. By default from all classes, including the true one.",
  )
  relabel: str | None = option(
    None,
    "Bootstrap: directory of a finished run of ordinary training, or of its saved "
    "classifier. Its predicted probabilities replace the training labels and their "
    "noise. Default: the labels are kept.",
  )
  data_seed: int = option(
    0,
    "Seed of the held-out images, of --train_examples and of the label noise. It is "
    "separate from --seed, so that runs with different seeds have the same data.",
    check=between(0, 2**31 - 1),
  )
  augment: Literal[
    "none", "basic", "cutout", "auto_augment", "auto_augment_imagenet"
  ] = option(
    "none",
    "Augmentation. basic: shift by up to 4 pixels and mirror (characters are not "
    "mirrored); cutout: also zero a square of 16 pixels; auto_augment: first "
    "AutoAugment's policy for CIFAR, then as cutout; auto_augment_imagenet: with its "
    "policy for ImageNet. For streamed images a random crop (Inception crop) replaces "
    "the shift, and auto_augment_imagenet does not use cutout.",
  )
  mixup: float = option(
    0.0,
    "Mixup: mix each image and its label with another of the batch, with a weight from "
    "Beta(mixup, mixup); 1 is usual with label noise. Training accuracy is then the "
    "weight of the predicted class. 0: none.",
    check=at_least(0),
  )

  def distortion(self) -> Augment | None:
    """The augmentation of each training image before normalisation, or None."""
    if not self.augment.startswith("auto_augment"):
      return None
    policy = "imagenet" if self.augment.endswith("imagenet") else "cifar"
    return functools.partial(auto_augment.auto_augment, policy=policy)

  def mixing(self, num_classes: int) -> Callable[[jax.Array, Batch], Batch] | None:
    """`mix(key, batch) -> batch`, or None."""
    if not self.mixup:
      return None
    return functools.partial(
      augmentation.mixup, alpha=self.mixup, num_classes=num_classes
    )

  def augmentation(self, source: LabelledSource) -> Augment | None:
    """The augmentation of each training image after normalisation, or None.

    Args:
      source: the dataset, which says whether mirrored images keep their class, and
        whether images are cropped when they are read.
    """
    if self.augment == "none":
      return None
    plain = self.augment == "basic"
    if source.streamed:
      plain = plain or self.augment == "auto_augment_imagenet"
    return functools.partial(
      augmentation.standard,
      padding=0 if source.streamed else 4,
      flip=source.mirrored,
      cutout_size=0 if plain else 16,
    )

  def protocol(self, splits: "Splits") -> dict[str, Any]:
    """The facts about the training images to report with a result.

    Args:
      splits: the prepared splits.
    """
    noise = None
    if self.label_noise:
      others = self.label_noise_other_classes
      noise = {
        "share drawn anew": self.label_noise,
        "from": "other classes" if others else "all classes",
        "wrong labels": splits.num_wrong,
      }
    mixed = {"mixup": self.mixup} if self.mixup else {}
    soft = {"labels": f"given by {self.relabel}"} if self.relabel else {}
    return {"augmentation": self.augment, **mixed, "label noise": noise, **soft}


class Splits(NamedTuple):
  """The examples of a run, on the host.

  Attributes:
    train: the training set, with its label noise.
    val: the validation set; None for none.
    test: the test set.
    class_names: the names of labels 0, 1, ...
    num_available: number of training images to choose from.
    num_wrong: number of training labels that the noise made wrong.
    fingerprints: the fingerprints of the datasets, by split.
  """

  train: Examples
  val: Examples | None
  test: Examples
  class_names: tuple[str, ...]
  num_available: int
  num_wrong: int
  fingerprints: dict[str, str]


def load_splits(
  source: LabelledSource,
  data_dir: str | os.PathLike[str] | None = None,
  preparation: Preparation | None = None,
) -> Splits:
  """Loads a labelled dataset and prepares it for ordinary training.

  Every set is normalised by the mean and deviation of all training images, including
  those held out; for a streamed dataset, whose images stay in their files, these are
  constants.

  Args:
    source: the dataset.
    data_dir: the directory of its files, if it needs files.
    preparation: how to prepare it; `Preparation()` if None.

  Returns:
    The sets of examples, and facts about them.

  Raises:
    ValueError: if the preparation does not fit the data (too many or too few examples,
      or a validation set although the data have one), or a directory is missing.
    OSError: if files are missing or cannot be read.

  Example:
    >>> from jsharp.data.characters import LabelledCharacters
    >>> source = LabelledCharacters(num_characters=3, image_size=8)
    >>> splits = load_splits(source, preparation=Preparation(val_fraction=0.2))
    >>> [len(part.labels) for part in (splits.train, splits.val, splits.test)]
    [36, 9, 15]
  """
  wanted = preparation or Preparation()
  found, class_names, fingerprints = _examples(source, data_dir)
  train, val = found["train"], None
  if wanted.val_fraction:
    if "val" in found:
      raise ValueError(
        f"--val_fraction={wanted.val_fraction}, but the data have a val split; leave "
        "the flag out or remove the split"
      )
    num_held = round(wanted.val_fraction * len(train.labels))
    train, val = examples.hold_out(train, num_held, seed=wanted.data_seed)
  elif "val" in found:
    val = found["val"]
  num_available = len(train.labels)
  train = _part(train, wanted, class_names)
  train, num_wrong = _with_noise(train, wanted, len(class_names))
  return Splits(
    train=train,
    val=val,
    test=found["test"],
    class_names=class_names,
    num_available=num_available,
    num_wrong=num_wrong,
    fingerprints=fingerprints,
  )


def _examples(
  source: LabelledSource, data_dir: str | os.PathLike[str] | None
) -> tuple[dict[str, Examples], tuple[str, ...], dict[str, str]]:
  """The examples of each split, the names of the classes, and fingerprints."""
  if isinstance(source, StreamedSource):
    listed = streams.load(source, source.directory(data_dir))
    found = {split: data for split, (data, _) in listed.items()}
    names = listed["train"][1].class_names
    return found, names, {split: of.digest for split, (_, of) in listed.items()}
  datasets = source.load(data_dir)
  train = examples.from_dataset(datasets["train"], standardised=source.standardised)
  found = {
    split: examples.from_dataset(dataset, like=train)
    for split, dataset in datasets.items()
    if split != "train"
  }
  fingerprints = {split: data.fingerprint() for split, data in datasets.items()}
  return {"train": train, **found}, tuple(datasets["train"].class_names), fingerprints


def _part(
  train: Examples, wanted: Preparation, class_names: tuple[str, ...]
) -> Examples:
  if wanted.train_examples is None:
    return train
  try:
    chosen = subset.balanced_subset(
      train.labels, wanted.train_examples, class_names, seed=wanted.data_seed
    )
  except ValueError as error:
    raise ValueError(f"--train_examples: {error}") from error
  return examples.take(train, chosen)


def _with_noise(
  train: Examples, wanted: Preparation, num_classes: int
) -> tuple[Examples, int]:
  """The examples with their label noise, and the number of wrong labels."""
  if not wanted.label_noise:
    return train, 0
  noisy = label_noise.corrupt(
    jax.random.key(wanted.data_seed),
    jax.numpy.asarray(train.labels),
    wanted.label_noise,
    num_classes,
    other_classes_only=wanted.label_noise_other_classes,
  )
  num_wrong = int((noisy != train.labels).sum())
  return train._replace(labels=np.asarray(noisy)), num_wrong
