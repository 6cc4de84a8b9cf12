"""A small decoder-only transformer for text."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jsharp.models._dense import dense
from jsharp.models._layer_norm import LayerNorm

_EXPANSION = 4


class Transformer(nn.Module):
  """A decoder-only transformer: tokens in, logits of each next token out.

  Pre-normalised blocks of causal attention and a two-layer network (Radford et al.
  2019), learned positional embeddings, untied output layer. There is no dropout,
  because a few-shot loss draws no random numbers.

  Attributes:
    vocabulary: the number of distinct tokens.
    length: the largest number of tokens in a text.
    width: size of a token's vector.
    num_layers: number of blocks.
    num_heads: attention heads; `width` must be a multiple of it.

  Example:
    >>> model = Transformer(vocabulary=96, length=16, width=8, num_layers=1)
    >>> tokens = jnp.zeros((2, 16), jnp.int32)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    >>> jax.eval_shape(model.apply, variables, tokens).shape
    (2, 16, 96)
  """

  vocabulary: int
  length: int
  width: int = 64
  num_layers: int = 2
  num_heads: int = 2

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Predicts the next token at each position, from the tokens up to it.

    Args:
      tokens: `[num_texts, at most length]` integers in `[0, vocabulary)`.

    Returns:
      `[num_texts, length, vocabulary]` logits.

    Raises:
      ValueError: if `tokens` is not an integer array of that shape, or `width` is not a
        multiple of `num_heads`.
    """
    is_integer = jnp.issubdtype(tokens.dtype, jnp.integer)
    if tokens.ndim != 2 or tokens.shape[1] > self.length or not is_integer:
      raise ValueError(
        f"Transformer: tokens must be integers [num_texts, at most {self.length}]; got "
        f"{tokens.dtype} {tokens.shape}."
      )
    if self.width % self.num_heads:
      raise ValueError(
        f"Transformer: width must be a multiple of num_heads={self.num_heads}; got "
        f"{self.width}."
      )
    length = tokens.shape[1]
    start = nn.initializers.normal(0.02)
    table = self.param("tokens", start, (self.vocabulary, self.width))
    places = self.param("positions", start, (self.length, self.width))
    x = table[tokens] + places[None, :length]
    for layer in range(self.num_layers):
      x = _Block(self.num_heads, name=f"block_{layer}")(x)
    x = LayerNorm(name="norm")(x)
    logits: jax.Array = dense(self.vocabulary, "head", x.dtype)(x)
    return logits


class _Block(nn.Module):
  num_heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    num_texts, length, width = x.shape
    shape = (num_texts, length, self.num_heads, width // self.num_heads)
    normalised = LayerNorm(name="norm_0")(x)
    asked, keys, values = (
      dense(width, name, x.dtype)(normalised).reshape(shape)
      for name in ("ask", "key", "value")
    )
    scores = jnp.einsum("nqhd,nkhd->nhqk", asked, keys) / shape[-1] ** 0.5
    past = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(past[None, None], scores, -jnp.inf))
    seen = jnp.einsum("nhqk,nkhd->nqhd", weights, values).reshape(x.shape)
    x = x + dense(width, "out", x.dtype)(seen)
    hidden = dense(_EXPANSION * width, "up", x.dtype)(LayerNorm(name="norm_1")(x))
    return x + dense(width, "down", x.dtype)(nn.gelu(hidden))
