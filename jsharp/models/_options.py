"""What networks are described by: those for tasks, and ordinary classifiers."""

import dataclasses
from typing import Any, ClassVar, Literal

from jsharp.options import Options, option
from jsharp.types import Convolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Options):
  """A network for tasks: images or vectors in, one vector for each out.

  Class attributes:
    has_norm: whether it has normalisation layers.
  """

  kind: ClassVar[str] = "network"
  has_norm: ClassVar[bool] = True

  @property
  def looks_at_batch(self) -> bool:
    """Whether its normalisation takes the statistics of the batch at hand."""
    return self.has_norm

  @property
  def needs_pretraining(self) -> bool:
    """Whether initial parameters make no sense in it."""
    return False

  @property
  def head(self) -> str:
    """Name of the module that is its linear head."""
    return "head"

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> Any:
    """The network as a Linen module.

    Args:
      num_outputs: outputs of its head; None for the embedding, without a head.
      convolution: form of its convolutions, see `jsharp.nn.conv2d`.
    """
    raise NotImplementedError

  def with_context(
    self, num_outputs: int, size: int, *, convolution: Convolution = "auto"
  ) -> Any:
    """The network with a context of `size` numbers, for `jsharp.cavia`.

    Raises:
      ValueError: if it has no place for one.
    """
    raise ValueError(
      f"--algorithm=cavia needs a network with a place for its context, and "
      f"{self.name} has none; choose conv4, conv4_strided or mlp"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone(Network):
  """A network for tasks that can be pretrained, with normalisation by choice."""

  norm: Literal["batch", "group", "layer", "frozen"] = option(
    "batch",
    "Normalisation: batch, by the statistics of the images at hand; group, of 16 "
    "channels of each image; layer, of all channels of each image; frozen, by the "
    "running averages of pretraining, with --init_from.",
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
  """A network for ordinary classification, which normalises by running averages."""

  kind: ClassVar[str] = "classifier network"

  @property
  def label(self) -> str:
    """Its name and size, for the names of runs."""
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

  Its parameters have the names of the backbone's, so a few-shot learner begins with
  all of them but the head, and with the running averages where its normalisation is
  "frozen".
  """

  classifier_head: Literal["linear", "cosine"] = option(
    "linear",
    "Of the pretrained network: linear; or cosine, the cosine of features and class "
    "weights times 2 (10 for more than 200 classes), as Baseline++ is pretrained.",
  )

  def backbone(self, *, convolution: Convolution = "auto") -> Any:
    """The network for tasks, without a head and with running averages."""
    raise NotImplementedError

  def module(self, num_outputs: int, *, convolution: Convolution = "auto") -> Any:
    from jsharp.models.pretraining import Pretraining

    backbone = self.backbone(convolution=convolution)
    return Pretraining(
      backbone=backbone, num_outputs=num_outputs, head=self.classifier_head
    )
