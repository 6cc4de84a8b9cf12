"""Fully connected networks, for sinusoid regression and for Omniglot."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._options import Network
from jsharp.models.context import checked_context
from jsharp.models.initial import glorot_uniform
from jsharp.nn import BatchNorm
from jsharp.options import at_least, option
from jsharp.types import Convolution


class MLP(nn.Module):
  """A fully connected network; inputs are flattened, the last layer is linear.

  `MLP((40, 40, 1))` is MAML's network for the sinusoid;
  `MLP((256, 128, 64, 64, way), normalize=True)` its Omniglot network without
  convolutions (Finn et al. 2017). Biases start at zero.

  Attributes:
    features: width of every layer, the output last.
    normalize: whether to batch-normalise before every activation.
    kernel_init: initialiser of the weights, Glorot uniform by default.
    activation: the activation function after every layer but the last.

  Example:
    >>> model = MLP((40, 40, 1))
    >>> x = jnp.zeros([10, 1])
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.apply(variables, x).shape
    (10, 1)
  """

  features: Sequence[int] = (40, 40, 1)
  normalize: bool = False
  kernel_init: Callable[..., Any] = glorot_uniform
  activation: Callable[[jax.Array], jax.Array] = nn.relu

  @nn.compact
  def __call__(self, inputs: jax.Array, num_statistics: int | None = None) -> jax.Array:
    """Maps each example to one vector.

    Args:
      inputs: `[batch, ...]`, float.
      num_statistics: if given, normalise by the statistics of only the first
        `num_statistics` examples; without `normalize` it has no effect.

    Returns:
      `[batch, features[-1]]`.

    Raises:
      ValueError: if `features` is empty, or `inputs` is not a batch of float arrays.
    """
    if not self.features:
      raise ValueError("MLP: features must name at least the output width; got ().")
    if inputs.ndim < 2 or not jnp.issubdtype(inputs.dtype, jnp.floating):
      raise ValueError(
        "MLP: inputs must be a float array [batch, ...] with at least two axes; got "
        f"{inputs.dtype} {inputs.shape}."
      )
    x = inputs.reshape(inputs.shape[0], -1)
    last = len(self.features) - 1
    for layer, width in enumerate(self.features):
      x = nn.Dense(
        width,
        name=f"dense_{layer}",
        kernel_init=self.kernel_init,
        param_dtype=x.dtype,
      )(x)
      if layer < last:
        if self.normalize:
          x = BatchNorm(name=f"norm_{layer}")(x, num_statistics)
        x = self.activation(x)
    return x


class ContextMLP(MLP):
  """An `MLP` that concatenates the context to its inputs.

  `ContextMLP((40, 40, 1), context_size=5)` is CAVIA's network for the sinusoid.

  Attributes:
    context_size: length of the context.

  Example:
    >>> model = ContextMLP((40, 40, 1), context_size=5)
    >>> x = jnp.zeros([10, 1])
    >>> variables = model.init(jax.random.key(0), x)
    >>> variables["params"]["dense_0"]["kernel"].shape
    (6, 40)
    >>> model.apply(variables, x, context=jnp.ones(5)).shape
    (10, 1)
  """

  context_size: int = 5

  def __call__(
    self,
    inputs: jax.Array,
    num_statistics: int | None = None,
    context: jax.Array | None = None,
  ) -> jax.Array:
    """Maps each example to one vector.

    Args:
      inputs: `[batch, ...]`, float.
      num_statistics: see `MLP`.
      context: `[context_size]`; zeros if None.

    Returns:
      `[batch, features[-1]]`.

    Raises:
      ValueError: as `MLP` does, or if `context` has another shape.
    """
    context = checked_context(context, self.context_size, inputs.dtype)
    rows = jnp.broadcast_to(context[None], (inputs.shape[0], self.context_size))
    x = jnp.concatenate([inputs.reshape(inputs.shape[0], -1), rows], axis=1)
    return super().__call__(x, num_statistics)


_WIDTHS = (256, 128, 64, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPOptions(Network):
  """The network without convolutions, 256-128-64-64."""

  name: ClassVar[str] = "mlp"

  @property
  def head(self) -> str:
    return f"dense_{len(_WIDTHS)}"

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> MLP:
    features = _WIDTHS if num_outputs is None else (*_WIDTHS, num_outputs)
    return MLP(features=features, normalize=True)

  def with_context(
    self, num_outputs: int, size: int, *, convolution: Convolution = "auto"
  ) -> Any:
    return ContextMLP(
      features=(*_WIDTHS, num_outputs), normalize=True, context_size=size
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SineNetwork(Network):
  """Two hidden layers without normalisation, for regression."""

  name: ClassVar[str] = "sine_mlp"
  has_norm: ClassVar[bool] = False

  hidden_width: int = option(40, "Units of each hidden layer.", check=at_least(1))
  activation: Literal["relu", "tanh"] = option(
    "relu",
    "Activation of the hidden layers: relu in MAML, tanh in Reptile's demonstration.",
  )

  @property
  def head(self) -> str:
    return "dense_2"

  def _common(self) -> tuple[tuple[int, int], Callable[[jax.Array], jax.Array]]:
    activations = {"relu": jax.nn.relu, "tanh": jnp.tanh}
    return (self.hidden_width, self.hidden_width), activations[self.activation]

  def module(
    self, num_outputs: int | None, *, convolution: Convolution = "auto"
  ) -> MLP:
    hidden, activation = self._common()
    features = hidden if num_outputs is None else (*hidden, num_outputs)
    return MLP(features=features, activation=activation)

  def with_context(
    self, num_outputs: int, size: int, *, convolution: Convolution = "auto"
  ) -> Any:
    hidden, activation = self._common()
    return ContextMLP(
      features=(*hidden, num_outputs), activation=activation, context_size=size
    )
