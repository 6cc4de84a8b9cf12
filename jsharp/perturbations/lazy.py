"""A second gradient on some steps only: every k-th, the late ones, LookSAM."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count, check_nonnegative
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.link import check_update_arguments
from jsharp.perturbations.variants import sam
from jsharp.tree import add_scaled, length, orthogonal_part, unit


def sam_every(
  rho: optax.ScalarOrSchedule = 0.05, *, every: Any = 5, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """SAM on every k-th step, the plain gradient between (1 + 1/k gradients a step).

  Steps 0, k, 2k, ... are sharp. Any other link does the same by
  `optax.conditionally_transform(link, lambda step: step % k == 0)`. Inside `jax.vmap`
  with a step counter per element both branches are computed and nothing is saved.

  Args:
    rho: the radius; a schedule counts the sharp steps only.
    every: k.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = sam_every(0.5, every=2)
    >>> w, grad_fn = jnp.array([1.0]), lambda w: 2 * w
    >>> sharp, state = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)
    >>> plain, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
    >>> sharp.tolist(), plain.tolist()
    ([3.0], [2.0])
  """
  _check_static_count("every", every)
  return optax.conditionally_transform(sam(rho, p=p), lambda step: step % every == 0)


def late_sam(
  rho: optax.ScalarOrSchedule = 0.05, *, start: Any, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """The plain gradient until step `start`, SAM from there on.

  A few sharp epochs at the end come close to SAM from the beginning (Zhou et al. 2025,
  arXiv 2410.10373).

  Args:
    rho: the radius; a schedule counts the sharp steps only.
    start: the first sharp step, counted from 0.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = late_sam(0.5, start=1)
    >>> w, grad_fn = jnp.array([1.0]), lambda w: 2 * w
    >>> plain, state = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)
    >>> sharp, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
    >>> plain.tolist(), sharp.tolist()
    ([2.0], [3.0])
  """
  _check_static_count("start", start, minimum=0)
  return optax.conditionally_transform(sam(rho, p=p), lambda step: step >= start)


def _check_static_count(name: str, value: Any, *, minimum: int = 1) -> None:
  """A traced count, as from `optax.inject_hyperparams`, cannot be looked at."""
  if not isinstance(value, jax.Array):
    check_count(name, value, minimum=minimum)


class LookState(NamedTuple):
  """State of `looksam`.

  Attributes:
    step: int32, steps taken.
    ascent: state of the ascent.
    flat: unit direction, the part of the last sharp gradient that is orthogonal to
      the clean one; zero if there was none.
  """

  step: jax.Array
  ascent: Any
  flat: Any


def looksam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  every: Any = 5,
  alpha: Any = 0.7,
  p: Any = 2.0,
) -> optax.GradientTransformationExtraArgs:
  """LookSAM: a second gradient on every k-th step only (1 + 1/k gradients a step).

  On steps 0, k, 2k, ... it hands on the sharp gradient `s` and keeps the direction `v`
  of `s - (s . g / |g|^2) g`; in between it hands on `g + alpha * |g| * v / |v|` (Liu et
  al. 2022, arXiv 2203.02714; k = 5 and alpha = 0.7 on ImageNet, less on CIFAR). Where
  `v` is zero to rounding (`s` parallel to `g`), nothing is added. Keeps one copy of the
  gradient. Inside `jax.vmap` with a step counter per element both
  branches are computed and nothing is saved.

  Args:
    rho: the radius; a schedule counts the sharp steps only.
    every: k; 1 is SAM.
    alpha: weight of the direction that is used again.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`; its `update` needs `params` and `grad_fn`.

  Raises:
    ValueError: if an argument is out of range; from `update`, if `params` or
      `grad_fn` is missing.

  Example:
    >>> link = looksam(0.5, every=2, alpha=0.5)
    >>> w = jnp.array([1.0, 1.0])
    >>> grad_fn = lambda w: jnp.array([3.0, 4.0]) * w
    >>> sharp, state = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)
    >>> again, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
    >>> [f"{x:.1f}" for x in (*sharp, *again)]
    ['3.9', '5.6', '1.0', '5.5']
  """
  _check_static_count("every", every)
  check_nonnegative("alpha", alpha)
  ascent = optax.with_extra_args_support(sam_ascent(rho, p=p))

  def init_fn(params: Any) -> LookState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return LookState(jnp.zeros((), jnp.int32), ascent.init(params), zeros)

  def update_fn(
    updates: Any,
    state: LookState,
    params: Any = None,
    *,
    grad_fn: Any = None,
    **extra: Any,
  ) -> tuple[Any, LookState]:
    check_update_arguments(params, grad_fn)

    def look() -> tuple[Any, Any, Any]:
      e, ascent_state = ascent.update(
        updates, state.ascent, params, grad_fn=grad_fn, **extra
      )
      sharp = grad_fn(optax.apply_updates(params, e))
      rest = orthogonal_part(sharp, to=updates)
      size = length(sharp)
      noise = 16 * jnp.finfo(_coarsest(sharp, size)).eps * size
      is_noise = length(rest) <= noise
      flat = jax.tree.map(
        lambda v: jnp.where(is_noise, jnp.zeros_like(v), v), unit(rest)
      )
      return sharp, ascent_state, flat

    def reuse() -> tuple[Any, Any, Any]:
      size = alpha * length(updates)
      again = add_scaled(updates, size, state.flat)
      return again, state.ascent, state.flat

    gradient, ascent_state, flat = jax.lax.cond(state.step % every == 0, look, reuse)
    step = optax.safe_increment(state.step)
    return gradient, LookState(step, ascent_state, flat)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _coarsest(tree: Any, default: jax.Array) -> Any:
  dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)] or [default.dtype]
  return max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))
