"""A classifier network and a SAM variant of one's own, as one would write them."""

import dataclasses

from flax import linen as nn

from jsharp.models import ClassifierNetwork
from jsharp.nn import RunningBatchNorm
from jsharp.options import option
from jsharp.perturbations import SharpLink, sam


class Normalised(nn.Module):
  """Two linear layers with batch normalisation between them, quick to compile."""

  num_outputs: int

  @nn.compact
  def __call__(self, inputs, train):
    x = nn.Dense(4)(inputs.reshape(len(inputs), -1))
    return nn.Dense(self.num_outputs)(RunningBatchNorm()(x, train))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalisedOptions(ClassifierNetwork):
  def module(self, num_outputs, *, convolution="auto"):
    return Normalised(num_outputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareOfSAM(SharpLink):
  share: float = option(0.5, "Of the radius.")

  def link(self):
    return sam(self.share * self.rho, p=self.p)
