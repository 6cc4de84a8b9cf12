"""What a learner is: algorithm, network, optimizers and the kind of its inputs."""

import dataclasses
from typing import ClassVar, Literal

from jsharp.algorithms import Algorithm, OuterLoop, Sharpness
from jsharp.data import ImageSource
from jsharp.data.pictures import Looks
from jsharp.models import Network
from jsharp.options import Options, Role, at_least, each, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description(Options):
  """A learner, described once: from it follow flags, files and what `build` makes.

  Attributes:
    algorithm: the meta-learning algorithm with its own options.
    network: the network with its own options.
    sharpness: SAM in either loop.
    outer: the outer loop that trains it.
    precision: what products are computed in.
    problem: whether outputs are classes or numbers.
    num_outputs: outputs of the network: the most classes of a linear head.
    input_shape: of one example: `(height, width, channels)` of images in [0, 1].
    source: where its images came from, which says how they were read; None otherwise.

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
    check=each(at_least(1), "needs whole numbers of at least 1, as in (28, 28, 1).")
  )
  source: ImageSource | None = option(None)

  kind: ClassVar[str] = ""

  def complete(self) -> None:
    """Refuses parts that do not go together."""
    check_parts(
      self.algorithm,
      self.network,
      self.sharpness,
      precision=self.precision,
      problem=self.problem,
    )

  @property
  def looks(self) -> Looks:
    """What pictures must be made into for it, as its training images were.

    Raises:
      ValueError: if its inputs are no images.
    """
    if len(self.input_shape) != 3:
      raise ValueError(f"the learner's inputs are {self.input_shape}, not images")
    source = self.source or ImageSource
    return Looks(self.input_shape, source.filter, source.light_ink)

  def exact(self) -> "Description":
    """The same learner with the exact derivatives of the values that it computes.

    Training may leave terms of a derivative out, as first-order MAML does.
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
  """Refuses an algorithm that does not go with what surrounds it.

  Args:
    algorithm: with its options.
    network: with its options.
    sharpness: SAM in either loop.
    precision: as in `Description`.
    problem: as in `Description`.

  Raises:
    ValueError: naming the option and the fix.

  Example:
    >>> from jsharp.algorithms.protonet import ProtoNet
    >>> from jsharp.models.mlp import SineNetwork
    >>> check_parts(ProtoNet(), SineNetwork(), Sharpness(),
    ...   precision="float32", problem="regression")
    Traceback (most recent call last):
    ValueError: --algorithm=protonet classifies, and this is a regression; ...
  """
  if algorithm.classifies and problem != "classification":
    raise ValueError(
      f"--algorithm={algorithm.name} classifies, and this is a regression; choose an "
      "algorithm with an inner loop, or black_box"
    )
  algorithm.check(network)
  sharpness.check(algorithm)
  if precision not in algorithm.precisions:
    raise ValueError(
      f"--precision={precision} does not go with --algorithm={algorithm.name}, which "
      f"solves a linear system by products of this precision; take "
      f"--precision={algorithm.precisions[0]}"
    )
