"""What networks are described by: those for tasks, and ordinary classifiers."""

import dataclasses
from typing import Any, ClassVar

from jsharp.options import Options
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
