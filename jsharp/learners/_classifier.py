"""Ordinary image classifiers: descriptions and prediction."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jsharp.algorithms.supervised import (
  ExampleLossFn,
  classifier_functions,
  example_loss,
)
from jsharp.core.execution import PORTABLE, Execution
from jsharp.data import LabelledSource, Splits
from jsharp.data.examples import Examples, inputs_of
from jsharp.learners._export import Exportable, ToExport
from jsharp.models import ClassifierNetwork
from jsharp.options import Check, Options, at_least, each, finite, option
from jsharp.precision import in_precision
from jsharp.types import Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierDescription(Options):
  """The description of an ordinary classifier.

  Attributes:
    network: the network with its own options.
    class_names: the names of outputs 0, 1, ...
    input_shape: `(height, width, channels)` of an image in [0, 1].
    pixel_mean: one number per channel, subtracted from pixel values of 0 to 255.
    pixel_scale: one number per channel, multiplied by the difference.
    precision: the precision of products, see `jsharp.precision`.
    source: the dataset of the training images, which determines how images are read.
  """

  network: ClassifierNetwork = option(help="The network.")
  class_names: tuple[str, ...] = option(
    check=Check(lambda names: len(set(names)) > 1, "must have at least 2 names.")
  )
  input_shape: tuple[int, ...] = option(
    check=each(at_least(1), "must be integers of at least 1, such as (28, 28, 1).")
  )
  pixel_mean: tuple[float, ...] = option(
    check=each(finite(), "must be finite numbers.")
  )
  pixel_scale: tuple[float, ...] = option(
    check=each(finite(), "must be finite numbers.")
  )
  precision: Literal["float32", "tf32", "bfloat16"] = option("float32")
  source: LabelledSource | None = option(None)

  def complete(self) -> None:
    """Checks that there is one mean and one scale per channel."""
    channels = self.input_shape[-1]
    for numbers in (self.pixel_mean, self.pixel_scale):
      if len(numbers) != channels:
        raise ValueError(
          "pixel_mean and pixel_scale need one number per channel, got "
          f"{numbers} for {channels} channels"
        )


@dataclasses.dataclass(frozen=True)
class Classifier(Exportable):
  """An ordinary classifier with its parameters and running statistics.

  Created by `build_classifier`, `jsharp.load` or a run of `experiments.supervised`.

  Attributes:
    description: its description.
    params: `Variables`, the parameters and the running statistics.
    loss_fn: the loss on normalised images, for `jsharp.algorithms.supervised`.
    logits: `logits(variables, images) -> [n, num_classes]`, compiled, for images in
      [0, 1].

  Example:
    >>> from jsharp.models.resnet import ResNetOptions
    >>> classifier = build_classifier(ClassifierDescription(
    ...   network=ResNetOptions(), class_names=("cat", "dog"), input_shape=(8, 8, 1),
    ...   pixel_mean=(127.5,), pixel_scale=(0.01,)))
    >>> classifier.logits(classifier.params, jnp.ones((3, 8, 8, 1))).shape
    (3, 2)
  """

  description: ClassifierDescription
  params: Variables
  loss_fn: ExampleLossFn
  logits: Callable[[Variables, jax.Array], jax.Array]

  def predict(self, params: Variables | None, inputs: Any) -> jax.Array:
    """Logits for images; batch normalisation uses the running statistics.

    Args:
      params: parameters to use instead of its own; None for its own.
      inputs: `[n, height, width, channels]` float in [0, 1].

    Returns:
      `[n, num_classes]`, in the order of `description.class_names`.

    Raises:
      ValueError: if the shape of the images differs from training, or they are
        integers.

    Example:
      See `build_classifier`.
    """
    wanted = self.description.input_shape
    if jnp.shape(inputs)[1:] != wanted or jnp.ndim(inputs) != len(wanted) + 1:
      raise ValueError(
        f"inputs must be [n, {', '.join(map(str, wanted))}], got "
        f"{list(jnp.shape(inputs))}; resize them to the size of the training images"
      )
    if not jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
      raise ValueError(
        f"inputs must be float in [0, 1], got {jnp.result_type(inputs)}; divide uint8 "
        "images by 255"
      )
    return self.logits(self.params if params is None else params, jnp.asarray(inputs))

  def adapt(self, support: Any, **options: Any) -> NoReturn:
    """Raises an error: only a few-shot learner adapts to new classes.

    Raises:
      ValueError: always.
    """
    raise ValueError(
      f"{self.description.network.name} was trained as an ordinary classifier of "
      f"{len(self.description.class_names)} classes and cannot adapt to a support set; "
      "call predict(None, images), or load a few-shot learner"
    )

  def _to_export(self) -> ToExport:
    about = self.description
    portable = build_classifier(about, execution=PORTABLE)
    return ToExport(
      lambda images: jax.nn.softmax(portable.logits(self.params, images)),
      about.input_shape,
      {"classes": list(about.class_names)},
    )

  def replace(self, params: Variables) -> "Classifier":
    """The same classifier with other parameters."""
    return dataclasses.replace(self, params=params)


def relabelled(splits: Splits, teacher: Any, *, batch_size: int = 256) -> Splits:
  """Replaces the training labels by the probabilities of a classifier (bootstrap).

  The bootstrap rows of Foret et al. (2021, arXiv 2010.01412, table 4) train a
  classifier, relabel the images by it and train again from scratch.

  Args:
    splits: the splits of ordinary training.
    teacher: a trained `Classifier` of the same classes and images.
    batch_size: images at a time.

  Returns:
    The splits with `train.labels` `[num_examples, num_classes]` float32, and the digest
    of these among the fingerprints, as "labels".

  Raises:
    ValueError: if `teacher` is not a classifier, or has other classes or images.

  Example:
    >>> from jsharp.data.characters import LabelledCharacters
    >>> from jsharp.data import load_splits
    >>> from jsharp.models.resnet import ResNetOptions
    >>> splits = load_splits(LabelledCharacters(num_characters=2, image_size=8))
    >>> teacher = build_classifier(ClassifierDescription(
    ...   network=ResNetOptions(), class_names=splits.class_names,
    ...   input_shape=(8, 8, 1), pixel_mean=(127.5,), pixel_scale=(0.01,)))
    >>> relabelled(splits, teacher).train.labels.shape
    (30, 2)
  """
  if not isinstance(teacher, Classifier):
    raise ValueError(
      f"--relabel needs a classifier of experiments.supervised, got a learner of "
      f"{type(teacher).__name__}'s kind; name a run of ordinary training"
    )
  about, images = teacher.description, splits.train.images
  for what, theirs, ours in (
    ("classes", about.class_names, splits.class_names),
    ("images", about.input_shape, images.shape[1:]),
  ):
    if tuple(theirs) != tuple(ours):
      raise ValueError(
        f"--relabel: the classifier was trained on the {what} {_shown(theirs)}, but "
        f"these are {_shown(ours)}; name one that was trained on this dataset"
      )
  labels = np.concatenate(
    [
      jax.nn.softmax(
        teacher.predict(None, images[i : i + batch_size] / np.float32(255))
      )
      for i in range(0, len(images), batch_size)
    ]
  )
  digest = hashlib.sha256(labels.tobytes()).hexdigest()[:16]
  return splits._replace(
    train=splits.train._replace(labels=labels),
    fingerprints={**splits.fingerprints, "labels": digest},
  )


def _shown(values: Any) -> str:
  words = [str(value) for value in values]
  rest = f" and {len(words) - 5} more" if len(words) > 5 else ""
  return ", ".join(words[:5]) + rest


def build_classifier(
  description: ClassifierDescription,
  *,
  seed: int = 0,
  execution: Execution = Execution(),
  label_smoothing: float = 0.0,
) -> Classifier:
  """Builds a classifier from its description, with initial parameters.

  Args:
    description: the description.
    seed: the seed of the initial parameters.
    execution: how it is computed; only `convolution` matters here.
    label_smoothing: the label smoothing of its training loss, see
      `jsharp.algorithms.example_loss`.

  Returns:
    The classifier, with initial `params`.

  Raises:
    ValueError: if the network does not fit the images.

  Example:
    >>> from jsharp.models.resnet import ResNetOptions
    >>> classifier = build_classifier(ClassifierDescription(
    ...   network=ResNetOptions(), class_names=("cat", "dog"), input_shape=(8, 8, 1),
    ...   pixel_mean=(127.5,), pixel_scale=(0.01,)))
    >>> classifier.predict(None, jnp.ones((5, 8, 8, 1))).shape
    (5, 2)
  """
  module = description.network.module(
    len(description.class_names), convolution=execution.convolution
  )
  init_fn, plain_fn = classifier_functions(module)
  apply_fn = in_precision(plain_fn, description.precision)
  image = jnp.zeros((1, *description.input_shape), jnp.float32)
  mean, scale = (
    np.asarray(numbers, np.float32)
    for numbers in (description.pixel_mean, description.pixel_scale)
  )
  pixels = Examples(images=None, labels=None, mean=mean, scale=scale)

  @jax.jit
  def logits(variables: Variables, images: jax.Array) -> jax.Array:
    inputs = inputs_of(pixels, images.astype(jnp.float32) * 255)
    outputs, _ = apply_fn(
      variables.params, inputs, statistics=variables.statistics, train=False
    )
    return outputs

  return Classifier(
    description=description,
    params=init_fn(jax.random.key(seed), image),
    loss_fn=example_loss(apply_fn, label_smoothing=label_smoothing),
    logits=logits,
  )
