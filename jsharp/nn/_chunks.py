"""Examples in chunks that stay in a CPU's cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsharp.tree import at_least_float32


def num_chunks(n: int, size: int, limit: int) -> int:
  """The smallest divisor of `n` that gives chunks of size `limit` or less, at most `n`.

  If `n` is a symbolic dimension of `jax.export`, the result need not be a divisor:
  `split` then pads the last chunk with zeros.

  Args:
    n: number of examples.
    size: the size of one example.
    limit: the size that stays in the cache.
  """
  if not isinstance(n, int):
    return n if size >= limit else -(-n * size // limit)
  fewest = min(n, -(-n * size // limit))
  return next(k for k in range(fewest, n + 1) if n % k == 0)


def sum_of_chunks(
  function: Callable[[jax.Array, jax.Array], jax.Array],
  x: jax.Array,
  g: jax.Array,
  chunks: int,
) -> jax.Array:
  """The sum of `function(x, g)` over equal parts, in float32 or wider."""
  if chunks == 1:
    return function(x, g)
  parts = tuple(split(a, chunks) for a in (x, g))
  shape = jax.eval_shape(function, *(part[0] for part in parts))
  wide = at_least_float32(shape.dtype)

  def add(total, part):
    return total + function(*part).astype(wide), None

  total, _ = lax.scan(add, jnp.zeros(shape.shape, wide), parts)
  return total.astype(shape.dtype)


def split(x: jax.Array, chunks: int) -> jax.Array:
  """`[n, ...]` as `[chunks, n / chunks, ...]`, the last chunk padded with zeros."""
  n, *rest = x.shape
  size = -(-n // chunks)
  if not isinstance(n, int):
    x = jnp.pad(x, ((0, chunks * size - n), *((0, 0) for _ in rest)))
  return x.reshape(chunks, size, *rest)


def merge(x: jax.Array, n: int) -> jax.Array:
  """`[chunks, size, ...]` as `[n, ...]`, the inverse of `split`."""
  x = x.reshape(-1, *x.shape[2:])
  return x if isinstance(n, int) else x[:n]
