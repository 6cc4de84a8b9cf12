"""The rise of the loss around a point: the worst case in a ball, and the average.

`jsharp.analysis` has the definitions.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp._checks import check_count, check_nonnegative
from jsharp.analysis._estimates import (
  Estimate,
  Loss,
  as_partial,
  mean_estimate,
  of_variables,
  random_like,
)
from jsharp.perturbations import sam_ascent
from jsharp.types import Params

_MAX_HALVINGS = 4


class WorstCase(NamedTuple):
  """The largest rise of the loss that was found within a ball.

  Attributes:
    rise: the rise, at least 0 and at least `one_step`: a lower bound of the maximum.
    one_step: the rise at SAM's own perturbation, one gradient step to the boundary;
      it may be negative.
    perturbation: the perturbation with this rise, a pytree like the parameters, with
      None for leaves without a derivative.
  """

  rise: float
  one_step: float
  perturbation: Params


def worst_case_rise(
  loss: Loss,
  params: Params,
  *,
  rho: float,
  p: float = 2.0,
  num_steps: int = 10,
  num_starts: int = 2,
  adaptive: bool = False,
  key: jax.Array,
  between: Callable[[], None] = lambda: None,
) -> WorstCase:
  """The largest rise of the loss within a ball, by conditional gradient ascent.

  Each step moves towards SAM's perturbation for the gradient at the current point: all
  the way if that raises the loss, otherwise half as far, and so on. So the loss never
  falls, the search never leaves the ball, and there is no step size to choose. On
  convex losses every step goes all the way. The first start is the centre. If its
  gradient is zero, the search from there ends at once, so the other starts are random
  points near it.

  Args:
    loss: `loss(params) -> scalar`.
    params: the centre of the ball. Leaves without a derivative, such as a counter or an
      activation function, do not change.
    rho: the radius, in units of the parameters (if adaptive, relative to them).
    p: the norm of the ball, in `[1, inf]`.
    num_steps: steps from every start; each takes one gradient and one to five losses.
    num_starts: the number of starts; 1 is only the centre.
    adaptive: whether the ball is `|e / |w||_p <= rho`.
    key: the random key of the other starts.
    between: called before every step; raise an exception in it to stop.

  Returns:
    The largest rise found, the rise of one step, and the perturbation.

  Raises:
    ValueError: if a count is not positive, `rho` is negative or `p` is below 1.

  Example:
    >>> bowl = lambda w: 2 * w[0] ** 2 + w[1] ** 2 / 2  # its minimum is at the centre
    >>> found = worst_case_rise(bowl, jnp.zeros(2), rho=0.5, key=jax.random.key(0))
    >>> f"{found.rise:.3f} {found.one_step:.3f}"
    '0.500 0.000'
  """
  check_count("num_steps", num_steps)
  check_count("num_starts", num_starts)
  check_nonnegative("rho", rho)
  sam_ascent(rho, p=p)  # Checks rho and p.
  loss, params = of_variables(loss, params)
  loss, options = as_partial(loss), {"p": float(p), "adaptive": bool(adaptive)}
  radius = jnp.float32(rho)
  centre_loss = float(_value(loss, params))
  best, best_value, one_step = jax.tree.map(jnp.zeros_like, params), centre_loss, 0.0
  for start in range(num_starts):
    point = jax.tree.map(jnp.zeros_like, params)
    value = jnp.asarray(_value(loss, params))
    if start:
      start_key = jax.random.fold_in(key, start)
      point = _start(params, radius, start_key, **options)
      value = _value(loss, jax.tree.map(jnp.add, params, point))
    for step in range(num_steps):
      between()
      point, value, whole = _climb(loss, params, point, value, radius, **options)
      if start == step == 0:
        one_step = float(whole) - centre_loss
    if float(value) > best_value:
      best, best_value = point, float(value)
  return WorstCase(best_value - centre_loss, one_step, best)


def average_case_rise(
  loss: Loss,
  params: Params,
  *,
  rho: float,
  num_samples: int,
  key: jax.Array,
  adaptive: bool = False,
  on_sphere: bool = False,
  between: Callable[[], None] = lambda: None,
) -> Estimate:
  """The mean rise of the loss under random perturbations of length `rho`.

  Each sample is the mean over a perturbation and its negative, which cancels the
  first-order term; it takes two losses.

  Args:
    loss: `loss(params) -> scalar`.
    params: the parameters; leaves with a derivative are perturbed.
    rho: the root mean square length, in units of the parameters: every entry is
      Gaussian with standard deviation `rho / sqrt(dim)`. If adaptive, times `|w|`.
    num_samples: at least 2.
    key: the random key of the perturbations.
    adaptive: whether every entry is scaled by the corresponding entry of `params`.
    on_sphere: whether every perturbation has length `rho`, instead of only the root
      mean square.
    between: called before every sample; raise an exception in it to stop.

  Returns:
    The estimate. It may be negative.

  Raises:
    ValueError: if `num_samples` is below 2 or `rho` is negative.

  Example:
    >>> found = average_case_rise(lambda w: jnp.sum(w**2), jnp.ones(2), rho=0.5,
    ...   num_samples=2, key=jax.random.key(0), on_sphere=True)
    >>> f"{found.value:.3f}"
    '0.250'
  """
  check_count("num_samples", num_samples, minimum=2)
  check_nonnegative("rho", rho)
  loss, params = of_variables(loss, params)
  loss, options = as_partial(loss), {"adaptive": adaptive, "on_sphere": on_sphere}
  before = float(_value(loss, params))
  samples = []
  for number in range(num_samples):
    between()
    sample_key = jax.random.fold_in(key, number)
    up, down = _both_ways(loss, params, jnp.float32(rho), sample_key, **options)
    samples.append((float(up) + float(down)) / 2 - before)
  return mean_estimate(samples)


_value = jax.jit(lambda loss, params: loss(params))


def _ascent(radius, p, adaptive):
  return optax.with_extra_args_support(sam_ascent(radius, p=p, adaptive=adaptive))


@functools.partial(jax.jit, static_argnames=("p", "adaptive"))
def _start(params, radius, key, *, p, adaptive):
  """A random point of the ball, near its centre."""
  direction = random_like(jax.random.normal, key, params)
  ascent = _ascent(radius * 0.01, p, adaptive)
  return ascent.update(direction, ascent.init(params), params)[0]


@functools.partial(jax.jit, static_argnames=("p", "adaptive"))
def _climb(loss, params, point, value, radius, *, p, adaptive):
  """One step; returns the new point, its loss, and the loss at the full step."""
  ascent = _ascent(radius, p, adaptive)
  _, grads = trees.value_and_grad(loss)(jax.tree.map(jnp.add, params, point))
  target, _ = ascent.update(grads, ascent.init(params), params)

  def at(share):
    moved = jax.tree.map(
      lambda a, b: a + share.astype(a.dtype) * (b - a), point, target
    )
    return moved, loss(jax.tree.map(jnp.add, params, moved))

  def attempt(carry):  # Calling the loss in one place halves the compilation time.
    tries, _, _, whole = carry
    moved, new = at(0.5 ** tries.astype(jnp.float32))
    return tries + 1, moved, new, jnp.where(tries == 0, new, whole)

  _, moved, new, whole = jax.lax.while_loop(
    lambda carry: (carry[0] <= _MAX_HALVINGS) & ~(carry[2] > value),
    attempt,
    (jnp.int32(0), target, value, value),
  )
  better = new > value
  point = jax.tree.map(lambda a, b: jnp.where(better, b, a), point, moved)
  return point, jnp.where(better, new, value), whole


@functools.partial(jax.jit, static_argnames=("adaptive", "on_sphere"))
def _both_ways(loss, params, rho, key, *, adaptive, on_sphere):
  noise = random_like(jax.random.normal, key, params)
  if on_sphere:
    noise, scale = trees.unit(noise), rho
  else:
    scale = rho / math.sqrt(sum(x.size for x in jax.tree.leaves(params)))

  def moved(sign):
    return jax.tree.map(
      lambda w, n: (
        w + (sign * scale).astype(w.dtype) * n * (jnp.abs(w) if adaptive else 1)
      ),
      params,
      noise,
    )

  return loss(moved(1)), loss(moved(-1))
