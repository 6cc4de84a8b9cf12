"""Descriptions of learners: algorithm, network, optimizers and inputs."""

import dataclasses
from typing import ClassVar, Literal

from jsharp.algorithms import Algorithm, OuterLoop, Sharpness
from jsharp.data import ImageSource
from jsharp.data.pictures import Looks
from jsharp.models import Network
from jsharp.options import Options, Role, at_least, each, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description(Options):
  """The description of a learner, which determines its flags, files and code.

  Attributes:
    algorithm: the meta-learning algorithm with its own options.
    network: the network with its own options.
    sharpness: SAM in either loop.
    outer: the outer loop that trains it.
    precision: the precision of products, see `jsharp.precision`.
    problem: "classification" or "regression".
    num_outputs: outputs of the network: the largest number of classes of a linear head.
    input_shape: the shape of one example: `(height, width, channels)` for images in
      [0, 1].
    source: the dataset of its training images, which determines how images are read;
      None without a dataset.

  Example:
    >>> from jsharp.algorithms.maml import MAML
    >>> from jsharp.models.conv4 import Conv4Options
    >>> description = Description(
    ...   algorithm=MAML(), network=Conv4Options(), num_outputs=5,
    ...   input_shape=(28, 28, 1))
    >>> description.algorithm.inner_lr, description.network.num_filters
    (0.01, 64)
  """

  algorithm: Algorithm = option(help="The meta-learning algorithm.")
  network: Network = option(help="The network.")
  sharpness: Sharpness = option(Sharpness(), "SAM in either loop.")
  outer: OuterLoop = option(OuterLoop(), "The outer loop.", role=Role.TRAINING)
  precision: Literal["float32", "tf32", "bfloat16"] = option("float32")
  problem: Literal["classification", "regression"] = option("classification")
  num_outputs: int = option(check=at_least(1))
  input_shape: tuple[int, ...] = option(
    check=each(at_least(1), "must be integers of at least 1, such as (28, 28, 1).")
  )
  source: ImageSource | None = option(None)

  kind: ClassVar[str] = ""

  def complete(self) -> None:
    """Checks that the parts fit together."""
    check_parts(
      self.algorithm,
      self.network,
      self.sharpness,
      precision=self.precision,
      problem=self.problem,
    )

  @property
  def looks(self) -> Looks:
    """How images must be prepared for it, as its training images were.

    Raises:
      ValueError: if its inputs are not images.
    """
    if len(self.input_shape) != 3:
      raise ValueError(f"the learner's inputs are {self.input_shape}, not images")
    source = self.source or ImageSource
    return Looks(self.input_shape, source.filter, source.light_ink)

  def exact(self) -> "Description":
    """The same learner with exact derivatives.

    Training may leave out terms of a derivative, as first-order MAML does.
    """
    sharpness = self.sharpness.replace(differentiate_perturbation=True)
    return self.replace(algorithm=self.algorithm.exact(), sharpness=sharpness)


def check_parts(
  algorithm: Algorithm,
  network: Network,
  sharpness: Sharpness,
  *,
  precision: str,
  problem: str,
) -> None:
  """Checks that an algorithm fits the network, precision and problem.

  Args:
    algorithm: the algorithm with its options.
    network: the network with its options.
    sharpness: SAM in either loop.
    precision: as in `Description`.
    problem: as in `Description`.

  Raises:
    ValueError: if it does not; the message names the option and the fix.

  Example:
    >>> from jsharp.algorithms.protonet import ProtoNet
    >>> from jsharp.models.mlp import SineNetwork
    >>> check_parts(ProtoNet(), SineNetwork(), Sharpness(),
    ...   precision="float32", problem="regression")
    Traceback (most recent call last):
    ValueError: --algorithm=protonet classifies, but this is a regression; ...
  """
  if algorithm.classifies and problem != "classification":
    raise ValueError(
      f"--algorithm={algorithm.name} classifies, but this is a regression; choose an "
      "algorithm with an inner loop, or black_box"
    )
  algorithm.check(network)
  sharpness.check(algorithm)
  if precision not in algorithm.precisions:
    raise ValueError(
      f"--precision={precision} cannot be combined with --algorithm={algorithm.name}, "
      f"which solves a linear system by products of this precision; use "
      f"--precision={algorithm.precisions[0]}"
    )
