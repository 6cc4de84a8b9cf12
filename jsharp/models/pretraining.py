"""A few-shot backbone as an ordinary classifier of all base classes."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._dense import dense
from jsharp.models.initial import glorot_uniform
from jsharp.tree import at_least_float32

_MANY = 200
_TINY = 1e-12


class Pretraining(nn.Module):
  """A backbone with running averages, followed by a classifier.

  Parameters have the backbone's own names; the classifier's are in "head". The cosine
  head is the one of Baseline++ (Chen et al. 2019, arXiv 1904.04232): the cosine of
  features and a class's weights, times 2, or times 10 for more than 200 classes as in
  its code; no bias. The code also learns a factor for each class; here, as in the
  paper, there is none.

  Attributes:
    backbone: called as `backbone(inputs, train) -> [batch, dim]`, with `norm="running"`
      and `num_outputs=None`.
    num_outputs: the number of classes.
    head: "linear" or "cosine".

  Example:
    >>> from jsharp.models import Conv4
    >>> model = Pretraining(Conv4(None, num_filters=4, norm="running"), num_outputs=64)
    >>> images = jnp.zeros([2, 16, 16, 3])
    >>> variables = jax.eval_shape(
    ...   lambda key: model.init(key, images, False), jax.random.key(0))
    >>> sorted(variables["params"])[::4], sorted(variables)
    (['conv_0', 'head', 'norm_3'], ['batch_stats', 'params'])
  """

  backbone: nn.Module
  num_outputs: int
  head: Literal["linear", "cosine"] = "linear"

  def setup(self) -> None:
    """Shares one scope between the backbone's and the head's parameters."""
    nn.share_scope(self, self.backbone)

  @nn.compact
  def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
    """Maps images to `[batch, num_outputs]` logits.

    Args:
      inputs: `[batch, height, width, channels]`, float.
      train: whether to normalise by the batch's own statistics; `batch_stats` must then
        be mutable.

    Raises:
      ValueError: as the backbone does.
    """
    features = self.backbone(inputs, train)
    if self.head == "linear":
      logits: jax.Array = dense(self.num_outputs, "head", features.dtype)(features)
      return logits
    return _CosineHead(self.num_outputs, name="head")(features)


class _CosineHead(nn.Module):
  num_outputs: int

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    shape = (features.shape[-1], self.num_outputs)
    kernel = self.param("kernel", glorot_uniform, shape, features.dtype)
    scale = 2.0 if self.num_outputs <= _MANY else 10.0
    return scale * cosines(features, kernel)


def cosines(features: jax.Array, weights: jax.Array) -> jax.Array:
  """The cosine of each feature vector and each column of the weights.

  Args:
    features: `[num_examples, dim]`.
    weights: `[dim, num_classes]`.

  Returns:
    `[num_examples, num_classes]`, in [-1, 1]; 0 for a vector of zeros, where the
    gradient is 0 too.

  Example:
    >>> cosines(jnp.array([[0.0, 4.0], [0.0, 0.0]]), jnp.eye(2)).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
  """
  products = jnp.matmul(unit(features), unit(weights.T).T, precision="highest")
  return products.astype(features.dtype)


def unit(rows: jax.Array) -> jax.Array:
  """Rows divided by their norms; a row of zeros stays zero, with gradient zero.

  Args:
    rows: `[..., dim]`.

  Returns:
    An array like `rows`.

  Example:
    >>> unit(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
  """
  wide = rows.astype(at_least_float32(rows.dtype))
  # Scaled first, so that no square overflows or underflows.
  largest = jax.lax.stop_gradient(jnp.abs(wide).max(axis=-1, keepdims=True))
  some = largest > _TINY
  scaled = wide / jnp.where(some, largest, 1)
  square = jnp.square(scaled).sum(axis=-1, keepdims=True)
  length = jnp.sqrt(jnp.where(some, square, 1))
  return jnp.where(some, scaled / length, 0).astype(rows.dtype)
