"""Loss landscapes: the loss on a line or a plane through the parameters.

The length of a random direction has no meaning by itself: if batch normalisation
follows a layer, the network's function does not depend on the norm of its filters, so a
step of length 1 is large for one network and small for another. Filter normalisation
(Li et al. 2018, arXiv 1712.09913) scales every filter of a direction to the norm of the
same filter of the parameters,

    d_j = noise_j * |w_j| / |noise_j|        for every filter j of every layer

where a filter is everything that produces one output feature: all axes of a kernel
except the last. Leaves with one axis or none (biases, the scales and offsets of
normalisation) do not change. Two networks can then be compared on the same axes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsharp import tree as trees
from jsharp._checks import check_count
from jsharp.analysis._estimates import as_partial, of_variables, random_like
from jsharp.types import Params


def filter_normalise(
  direction: Params, params: Params, *, keep_vectors: bool = False
) -> Params:
  """Scales every filter of a direction to the norm of the parameters' filter.

  Args:
    direction: a pytree like `params`.
    params: the parameters that the direction starts from.
    keep_vectors: False sets leaves with at most one axis to zero; True scales each of
      them as one filter.

  Returns:
    The direction, with zero filters where either filter is zero.

  Example:
    >>> d = {"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
    >>> w = {"kernel": jnp.array([[1.0, 2.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> normalised = filter_normalise(d, w)
    >>> normalised["kernel"].tolist(), normalised["bias"].tolist()
    ([[0.6000000238418579, 2.0], [0.800000011920929, 0.0]], [0.0, 0.0])
  """

  def scaled(d: jax.Array, w: jax.Array) -> jax.Array:
    if d.ndim <= 1 and not keep_vectors:
      return jnp.zeros_like(d)
    length = _per_filter(d, d)
    wanted = jnp.sqrt(_per_filter(w, w))
    factor = jnp.where(
      length == 0, 0, wanted / jnp.sqrt(jnp.where(length == 0, 1, length))
    )
    return d * jnp.broadcast_to(factor, d.shape)

  return jax.tree.map(scaled, trees.inexact(direction)[0], trees.inexact(params)[0])


def direction(
  key: jax.Array,
  params: Params,
  *,
  orthogonal_to: Params | None = None,
  keep_vectors: bool = False,
) -> Params:
  """A random, filter-normalised direction.

  With the same key, networks of the same shape get the same noise, each scaled to its
  own filters.

  Args:
    key: the random key of the Gaussian noise.
    params: the parameters that the direction starts from.
    orthogonal_to: a direction to be orthogonal to, filter by filter, so that scaling
      the filters keeps it orthogonal. Filters with a single entry have no orthogonal
      direction and become zero.
    keep_vectors: as for `filter_normalise`.

  Returns:
    A pytree like `params`, with None for leaves without a derivative.

  Raises:
    ValueError: if the orthogonal part is zero.

  Example:
    >>> w = {"kernel": jnp.full((4, 4), 0.5)}
    >>> first = direction(jax.random.key(0), w)
    >>> second = direction(jax.random.key(1), w, orthogonal_to=first)
    >>> f"{jnp.linalg.norm(first['kernel'][:, 2]):.4f}"
    '1.0000'
    >>> f"{abs(jnp.vdot(first['kernel'], second['kernel'])):.4f}"
    '0.0000'
  """
  variables, _ = trees.inexact(params)
  other, _ = trees.inexact(orthogonal_to)
  drawn = _drawn(key, variables, other, keep_vectors=keep_vectors)
  wide = [x for x in jax.tree.leaves(drawn) if x.ndim > 1 and x.size > x.shape[-1]]
  if orthogonal_to is not None and wide and not any(map(jnp.any, wide)):
    raise ValueError(
      "no part of this direction is orthogonal to orthogonal_to; both were probably "
      "drawn with the same key: use another key"
    )
  return drawn


def line(
  loss: Callable[[Params], Any],
  params: Params,
  along: Params,
  alphas: Any,
  *,
  chunk: int = 1,
) -> Any:
  """Evaluates `loss` along a line, `loss(params + alpha * along)`.

  Args:
    loss: any pure function of the parameters that returns a pytree of arrays: a
      scalar, or `jsharp.analysis.per_task(...)` for one curve per task.
    params: the centre; leaves without a derivative do not change.
    along: a direction, a pytree like `params`.
    alphas: `[num_alphas]`.
    chunk: the number of points computed at a time, which determines the memory.

  Returns:
    The pytree that `loss` returns, with a leading axis `[num_alphas]`.

  Raises:
    ValueError: if `chunk` is not positive.

  Example:
    >>> one, two = jnp.float32(1.0), jnp.float32(2.0)
    >>> line(lambda w: w**2, one, two, [-0.5, 0.0, 1.0]).tolist()
    [0.0, 1.0, 9.0]
  """
  points = jnp.asarray(alphas, jnp.float32).reshape(-1, 1)
  chunk = min(check_count("chunk", chunk), len(points))
  loss, params = of_variables(loss, params)
  directions = (trees.inexact(along)[0],)
  return _values(as_partial(loss), params, directions, points, chunk=chunk)


def surface(
  loss: Callable[[Params], Any],
  params: Params,
  first: Params,
  second: Params,
  alphas: Any,
  betas: Any,
  *,
  chunk: int = 1,
) -> Any:
  """Evaluates `loss` on a grid, `loss(params + alpha * first + beta * second)`.

  It is compiled once per number of points, so a grid can be computed row by row, with
  one entry of `alphas` at a time.

  Args:
    loss: as for `line`.
    params: the centre.
    first: a direction, a pytree like `params`.
    second: another direction.
    alphas: `[num_alphas]`.
    betas: `[num_betas]`.
    chunk: as for `line`.

  Returns:
    The pytree that `loss` returns, with leading axes `[num_alphas, num_betas]`.

  Raises:
    ValueError: if `chunk` is not positive.

  Example:
    >>> x, y = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    >>> surface(lambda w: w[0] - w[1], 0 * x, x, y, [0.0, 2.0], [0.0, 1.0]).tolist()
    [[0.0, -1.0], [2.0, 1.0]]
  """
  alphas, betas = (jnp.asarray(v, jnp.float32).reshape(-1) for v in (alphas, betas))
  points = jnp.stack(jnp.meshgrid(alphas, betas, indexing="ij"), -1).reshape(-1, 2)
  chunk = min(check_count("chunk", chunk), len(points))
  loss, params = of_variables(loss, params)
  directions = trees.inexact((first, second))[0]
  values = _values(as_partial(loss), params, directions, points, chunk=chunk)
  return jax.tree.map(
    lambda x: x.reshape(len(alphas), len(betas), *x.shape[1:]), values
  )


@functools.partial(jax.jit, static_argnames="keep_vectors")
def _drawn(key, params, other, *, keep_vectors):
  noise = random_like(jax.random.normal, key, params)
  if other is not None:
    noise = jax.tree.map(_without, noise, other)
  return filter_normalise(noise, params, keep_vectors=keep_vectors)


@functools.partial(jax.jit, static_argnames="chunk")
def _values(loss, params, directions, points, *, chunk):
  def at(point):
    moved = params
    for number, along in enumerate(directions):
      moved = trees.add_scaled(moved, point[number], along)
    return loss(moved)

  return jax.lax.map(at, points, batch_size=chunk if chunk > 1 else None)


def _per_filter(a: jax.Array, b: jax.Array) -> jax.Array:
  """Inner products of the filters, `[..., num_filters]`; a vector is one filter."""
  axes = tuple(range(a.ndim - 1)) if a.ndim > 1 else None
  return jnp.sum(a * b, axis=axes, keepdims=True)


def _without(noise: jax.Array, other: jax.Array) -> jax.Array:
  if noise.size == (noise.shape[-1] if noise.ndim > 1 else 1):
    return jnp.zeros_like(noise)
  square = _per_filter(other, other)
  share = jnp.where(
    square == 0, 0, _per_filter(noise, other) / jnp.where(square == 0, 1, square)
  )
  rest = noise - jnp.broadcast_to(share, noise.shape) * other
  # For parallel filters only rounding error is left, which scaling would magnify.
  is_parallel = _per_filter(rest, rest) < 1e-6 * _per_filter(noise, noise)
  return jnp.where(jnp.broadcast_to(is_parallel, rest.shape), 0, rest)
