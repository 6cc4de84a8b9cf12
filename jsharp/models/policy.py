"""Gaussian policies for control."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._options import Network
from jsharp.models.mlp import MLP
from jsharp.options import at_least, option
from jsharp.types import Convolution


class GaussianPolicy(nn.Module):
  """A Gaussian over actions, with means from a fully connected network.

  The standard deviations do not depend on the observation; they start at 1.

  Attributes:
    action_size: the length of an action vector.
    hidden: widths of the hidden layers.
    activation: the activation function after each of them.

  Example:
    >>> policy = GaussianPolicy(action_size=2)
    >>> variables = policy.init(jax.random.key(0), jnp.zeros([1, 4]))
    >>> policy.apply(variables, jnp.zeros([7, 4])).shape
    (7, 4)
  """

  action_size: int
  hidden: Sequence[int] = (100, 100)
  activation: Any = nn.relu

  @nn.compact
  def __call__(
    self, observations: jax.Array, num_statistics: int | None = None
  ) -> jax.Array:
    """Maps observations to the parameters of `jsharp.control.log_density`.

    Args:
      observations: `[batch, observation_size]`.
      num_statistics: ignored; nothing is normalised.

    Returns:
      `[batch, 2 * action_size]`: means, then logarithms of standard deviations.
    """
    del num_statistics
    features = (*self.hidden, self.action_size)
    means = MLP(features=features, activation=self.activation, name="mean")(
      observations
    )
    log_scales = self.param(
      "log_scales", nn.initializers.zeros, (self.action_size,), means.dtype
    )
    return jnp.concatenate([means, jnp.broadcast_to(log_scales[None], means.shape)], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyNetwork(Network):
  """A Gaussian policy with two hidden layers."""

  name: ClassVar[str] = "policy"
  has_norm: ClassVar[bool] = False

  hidden_width: int = option(100, "Units of each hidden layer.", check=at_least(1))
  activation: Literal["relu", "tanh"] = option(
    "relu", "Activation of the hidden layers."
  )

  @property
  def head(self) -> str:
    return "dense_2"

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> GaussianPolicy:
    if num_outputs is None or num_outputs % 2:
      raise ValueError(
        f"num_outputs={num_outputs}: must be even, since a policy has a mean and a "
        "scale for every entry of an action"
      )
    activations = {"relu": jax.nn.relu, "tanh": jnp.tanh}
    return GaussianPolicy(
      action_size=num_outputs // 2,
      hidden=(self.hidden_width, self.hidden_width),
      activation=activations[self.activation],
    )
