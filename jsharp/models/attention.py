"""A transformer that reads a support set and predicts query examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp._checks import check_count
from jsharp._labels import as_known, one_hot
from jsharp.models._dense import dense
from jsharp.models._layer_norm import LayerNorm
from jsharp.models.initial import initialised

_EXPANSION = 4  # Hidden width of a block's MLP, in multiples of the block's width.


class AttentionLearner(nn.Module):
  """An in-context learner: its forward pass attends to the support set.

  Every example is one token: its embedding, concatenated with its target and a flag
  that the target is known; both are zero for a query example. Then follow blocks of
  attention and of a two-layer GELU network, each with layer normalisation in front and
  a residual connection; finally a normalisation and a linear head on the query tokens.

  Support tokens attend to the support set; a query token attends to the support set and
  to itself, never to another query example. There are no positional embeddings. So the
  order of the support set does not matter, and a prediction does not depend on the
  other query examples unless the embedding normalises by them.

  After SNAIL (Mishra, Rohaninejad, Chen, Abbeel 2018, arXiv 1707.03141), whose network
  differs: it reads a causal sequence with the query example at its end, by dilated
  temporal convolutions between the attention layers.

  Attributes:
    embedding: a module `embedding(inputs) -> [num_examples, dim]`, such as
      `Conv4(num_outputs=None)`, or `MLP((40, 40))` for the sinusoid.
    num_outputs: size of the output vector: the way of a classification task, or the
      number of target values of a regression.
    width: size of a token.
    num_layers: number of blocks.
    num_heads: attention heads per block; `width` must be a multiple of it.

  Example:
    >>> from jsharp.models.mlp import MLP
    >>> model = AttentionLearner(MLP((8,)), num_outputs=2, width=8, num_heads=2)
    >>> support, labels = jnp.ones([4, 3]), jnp.array([0, 0, 1, 1])
    >>> variables = jax.jit(model.init)(jax.random.key(0), support, labels, support)
    >>> model.apply(variables, support, labels, jnp.ones([5, 3])).shape
    (5, 2)
  """

  embedding: nn.Module
  num_outputs: int
  width: int = 64
  num_layers: int = 2
  num_heads: int = 4

  @nn.compact
  def __call__(
    self,
    support_inputs: jax.Array,
    support_targets: jax.Array,
    query_inputs: jax.Array,
    num_statistics: int | None = None,
  ) -> jax.Array:
    """Predicts query examples from a support set.

    The two sets are embedded one after the other, each as its own normalisation batch.

    Args:
      support_inputs: `[num_support, ...]`.
      support_targets: `[num_support]` integer labels in `[0, num_outputs)`, or
        `[num_support, ...]` float targets.
      query_inputs: `[num_query, ...]`.
      num_statistics: if given, the embedding normalises the query inputs by the
        statistics of only the first `num_statistics` of them.

    Returns:
      `[num_query, num_outputs]`.

    Raises:
      ValueError: if the sizes do not fit each other.
    """
    self._check()
    support = self.embedding(support_inputs)
    extra = () if num_statistics is None else (num_statistics,)
    query = self.embedding(query_inputs, *extra)
    if support.ndim != 2:
      raise ValueError(
        "AttentionLearner: embedding must give [num_examples, dim]; got "
        f"{support.shape}. Flatten each example to one vector."
      )
    known = _known(support_targets, support, self.num_outputs)
    unknown = jnp.zeros((query.shape[0], known.shape[1]), query.dtype)
    token = dense(self.width, "token", support.dtype)
    support = token(jnp.concatenate([support, known], axis=1))
    query = token(jnp.concatenate([query, unknown], axis=1))
    for layer in range(self.num_layers):
      block = _Block(self.num_heads, name=f"block_{layer}")
      support, query = block(support, query)
    query = LayerNorm(name="norm")(query)
    return dense(self.num_outputs, "head", query.dtype)(query)

  def _check(self):
    for name in ("num_outputs", "width", "num_layers", "num_heads"):
      check_count(f"AttentionLearner: {name}", getattr(self, name))
    if self.width % self.num_heads:
      raise ValueError(
        f"AttentionLearner: width must be a multiple of num_heads={self.num_heads}; "
        f"got {self.width}."
      )


class _Block(nn.Module):
  """Attention and a two-layer network, each with layer normalisation in front."""

  num_heads: int

  @nn.compact
  def __call__(self, support, query):
    width, dtype = support.shape[-1], support.dtype
    attention = _Attention(self.num_heads, name="attention")
    normalise = LayerNorm(name="norm_0")
    by_support, by_query = attention(normalise(support), normalise(query))
    normalise = LayerNorm(name="norm_1")
    up = dense(_EXPANSION * width, "up", dtype)
    down = dense(width, "down", dtype)

    def finish(x, attended):
      x = x + attended
      return x + down(nn.gelu(up(normalise(x))))

    return finish(support, by_support), finish(query, by_query)


class _Attention(nn.Module):
  """Multi-head attention to the support set; a query token also attends to itself."""

  num_heads: int

  @nn.compact
  def __call__(self, support, query):
    width, dtype = support.shape[-1], support.dtype
    shape = (self.num_heads, width // self.num_heads)
    parts = {name: dense(width, name, dtype) for name in ("ask", "key", "value")}
    out = dense(width, "out", dtype)

    def heads(name, x):
      return parts[name](x).reshape(x.shape[0], *shape)

    def scores(asking, keys):
      return jnp.einsum("qhd,khd->hqk", asking, keys) / shape[1] ** 0.5

    keys, values = heads("key", support), heads("value", support)
    weights = jax.nn.softmax(scores(heads("ask", support), keys))
    by_support = jnp.einsum("hqk,khd->qhd", weights, values)

    asking, own_values = heads("ask", query), heads("value", query)
    own = jnp.einsum("qhd,qhd->hq", asking, heads("key", query)) / shape[1] ** 0.5
    weights = jax.nn.softmax(
      jnp.concatenate([scores(asking, keys), own[..., None]], axis=-1)
    )
    by_query = jnp.einsum("hqk,khd->qhd", weights[..., :-1], values)
    by_query += weights[..., -1].T[..., None] * own_values
    return out(by_support.reshape(-1, width)), out(by_query.reshape(-1, width))


def as_learner_functions(
  module: nn.Module,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Turns a module that reads a support set into two functions.

  Args:
    module: called as `module(support_inputs, support_targets, query_inputs)`, with
      `num_statistics` as a fourth argument if it can normalise by the first query rows.

  Returns:
    `init_fn(key, support_inputs, support_targets, query_inputs) -> params` and
    `apply_fn(params, support_inputs, support_targets, query_inputs,
    num_statistics=None) -> outputs`.

  Raises:
    ValueError: from `init_fn`, if the module has state besides its parameters.

  Example:
    >>> from jsharp.models.mlp import MLP
    >>> module = AttentionLearner(MLP((8,)), num_outputs=1, width=8, num_heads=2)
    >>> init_fn, apply_fn = as_learner_functions(module)
    >>> x, y = jnp.ones([4, 1]), jnp.ones([4, 1])
    >>> apply_fn(init_fn(jax.random.key(0), x, y, x), x, y, jnp.ones([5, 1])).shape
    (5, 1)
  """

  def init_fn(key, support_inputs, support_targets, query_inputs):
    inputs = (support_inputs, support_targets, query_inputs)
    variables = initialised(module, key, *inputs)
    if extra := variables.keys() - {"params"}:
      raise ValueError(
        f"{type(module).__name__} has state {sorted(extra)} besides its parameters; "
        "use layers without state, such as jsharp.nn.BatchNorm."
      )
    return variables["params"]

  def apply_fn(
    params, support_inputs, support_targets, query_inputs, num_statistics=None
  ):
    extra = () if num_statistics is None else (num_statistics,)
    return module.apply(
      {"params": params}, support_inputs, support_targets, query_inputs, *extra
    )

  return init_fn, apply_fn


def _known(targets, support, num_outputs):
  """Targets as features `[num_support, ...]`, with a last column of ones."""
  targets = as_known(targets)
  integer = jnp.issubdtype(targets.dtype, jnp.integer)
  if (
    targets.shape[:1] != support.shape[:1]
    or (integer and targets.ndim != 1)
    or not (integer or jnp.issubdtype(targets.dtype, jnp.floating))
  ):
    raise ValueError(
      "AttentionLearner: support_targets must be integer labels [num_support] or "
      f"float targets [num_support, ...] for {support.shape[0]} support examples; got "
      f"{targets.dtype} {targets.shape}."
    )
  if integer:
    features = one_hot(targets, num_outputs, support.dtype)
  else:
    features = targets.reshape(targets.shape[0], -1).astype(support.dtype)
  return jnp.pad(features, ((0, 0), (0, 1)), constant_values=1)
