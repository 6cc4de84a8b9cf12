"""Base classes for the options of networks: few-shot networks and classifiers."""

import dataclasses
from typing import Any, ClassVar, Literal

from jsharp.options import Options, option
from jsharp.types import Convolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Options):
  """The options of a few-shot network, which maps each image or vector to a vector.

  Class attributes:
    has_norm: whether it has normalisation layers.
  """

  kind: ClassVar[str] = "network"
  has_norm: ClassVar[bool] = True

  @property
  def looks_at_batch(self) -> bool:
    """Whether it normalises by the statistics of the current batch."""
    return self.has_norm

  @property
  def needs_pretraining(self) -> bool:
    """Whether it is useful only with pretrained parameters."""
    return False

  @property
  def head(self) -> str:
    """The name of the module that is its linear head."""
    return "head"

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> Any:
    """The network as a Linen module.

    Args:
      num_outputs: outputs of its head; None for the embedding, without a head.
      convolution: the form of its convolutions, see `jsharp.nn.conv2d`.
    """
    raise NotImplementedError

  def with_context(
    self, num_outputs: int, size: int, *, convolution: Convolution = "auto"
  ) -> Any:
    """The network with a context of `size` numbers, for `jsharp.cavia`.

    Raises:
      ValueError: if it has no context input.
    """
    raise ValueError(
      f"--algorithm=cavia needs a network with a context input, and {self.name} has "
      "none; choose conv4, conv4_strided or mlp"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone(Network):
  """A few-shot network that can be pretrained, with a choice of normalisation."""

  norm: Literal["batch", "group", "layer", "frozen"] = option(
    "batch",
    "Normalisation. batch: by the statistics of the current batch of images; group: "
    "over groups of 16 channels of each image; layer: over all channels of each image; "
    "frozen: by the running averages of pretraining, with --init_from.",
    added=True,
  )

  @property
  def looks_at_batch(self) -> bool:
    return self.norm == "batch"

  @property
  def needs_pretraining(self) -> bool:
    return self.norm == "frozen"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierNetwork(Options):
  """The options of an ordinary classifier, which normalises by running averages."""

  kind: ClassVar[str] = "classifier network"

  @property
  def label(self) -> str:
    """Its name and size, as used in the names of runs."""
    return self.name

  def module(self, num_outputs: int, *, convolution: Convolution = "auto") -> Any:
    """The network as a Linen module, called as `module(inputs, train)`.

    Args:
      num_outputs: the number of classes.
      convolution: form of its convolutions, see `jsharp.nn.conv2d`.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedNetwork(ClassifierNetwork):
  """A few-shot backbone as an ordinary classifier, for `--init_from`.

  Its parameters have the same names as the backbone's. A few-shot learner can therefore
  start from all of them except the head, and from the running averages if its
  normalisation is "frozen".
  """

  classifier_head: Literal["linear", "cosine"] = option(
    "linear",
    "Head of the network in pretraining. linear: a linear layer; cosine: the cosine of "
    "features and class weights times 2 (10 for more than 200 classes), as in the "
    "pretraining of Baseline++.",
  )

  def backbone(self, *, convolution: Convolution = "auto") -> Any:
    """The few-shot network without its head, with running averages."""
    raise NotImplementedError

  def module(self, num_outputs: int, *, convolution: Convolution = "auto") -> Any:
    from jsharp.models.pretraining import Pretraining

    backbone = self.backbone(convolution=convolution)
    return Pretraining(
      backbone=backbone, num_outputs=num_outputs, head=self.classifier_head
    )
