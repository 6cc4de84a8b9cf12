"""Examples in chunks that stay in a CPU's cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsharp.tree import at_least_float32


def num_chunks(n: int, size: int, limit: int) -> int:
  """The smallest divisor of `n` that makes chunks of `limit` or less, at most `n`.

  Of a number that is known only when the program runs, a symbolic dimension of
  `jax.export`, it need not be a divisor: `split` then fills the last chunk with zeros.

  Args:
    n: number of examples.
    size: of one example.
    limit: what stays in the cache.
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
  """The sum of `function(x, g)` over equal parts, taken in float32 at least."""
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
  """`[n, ...]` as `[chunks, n / chunks, ...]`, the last chunk filled with zeros."""
  n, *rest = x.shape
  size = -(-n // chunks)
  if not isinstance(n, int):
    x = jnp.pad(x, ((0, chunks * size - n), *((0, 0) for _ in rest)))
  return x.reshape(chunks, size, *rest)


def merge(x: jax.Array, n: int) -> jax.Array:
  """`[chunks, size, ...]` as `[n, ...]`, what `split` took apart."""
  x = x.reshape(-1, *x.shape[2:])
  return x if isinstance(n, int) else x[:n]
