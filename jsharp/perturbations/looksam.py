"""LookSAM (Liu et al. 2022): a second gradient only on every k-th step."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_nonnegative
from jsharp.options import at_least, option
from jsharp.perturbations._options import SharpLink
from jsharp.perturbations._steps import check_static_count, on_steps
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.link import (
  check_update_arguments,
  own_params,
  sharp_gradient,
  where_updated,
)
from jsharp.tree import inexact, length, orthogonal_part, unit


class LookState(NamedTuple):
  """State of `looksam`.

  Attributes:
    step: int32, steps taken.
    ascent: state of the ascent.
    flat: the part of the last sharp gradient that is orthogonal to the clean gradient,
      scaled to unit length; zero if there was none.
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
  """LookSAM: a second gradient only on every k-th step (1 + 1/k gradients per step).

  On steps 0, k, 2k, ... it returns the sharp gradient `s` and stores the direction `v`
  of `s - (s . g / |g|^2) g`; on the other steps it returns `g + alpha * |g| * v / |v|`
  (Liu et al. 2022, arXiv 2203.02714; k = 5 and alpha = 0.7 on ImageNet, less on CIFAR).
  If `v` is zero up to rounding (`s` parallel to `g`), nothing is added. Keeps one copy
  of the gradient. Inside `jax.vmap` with a step counter per element, both branches are
  computed and nothing is saved.

  Args:
    rho: the radius; a schedule counts the sharp steps only.
    every: k; 1 is SAM.
    alpha: weight of the reused direction.
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
  check_static_count("every", every)
  check_nonnegative("alpha", alpha)
  ascent = optax.with_extra_args_support(sam_ascent(rho, p=p))

  def init_fn(params: Any) -> LookState:
    params, _ = inexact(own_params(params))
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
    params = own_params(params)
    check_update_arguments(params, grad_fn)
    params, grad_fn = where_updated(updates, params, grad_fn)

    def look() -> tuple[Any, Any, Any]:
      e, ascent_state = ascent.update(
        updates, state.ascent, params, grad_fn=grad_fn, **extra
      )
      sharp = sharp_gradient(grad_fn, params, e, like=updates)
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
      again = jax.tree.map(
        lambda g, v: g + size.astype(g.dtype) * v, updates, state.flat
      )
      return again, state.ascent, state.flat

    gradient, ascent_state, flat = jax.lax.cond(state.step % every == 0, look, reuse)
    step = optax.safe_increment(state.step)
    return gradient, LookState(step, ascent_state, flat)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _coarsest(tree: Any, default: jax.Array) -> Any:
  dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)] or [default.dtype]
  return max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookSAM(SharpLink):
  """SAM that reuses a sharp direction for several steps."""

  name: ClassVar[str] = "looksam"

  alpha: float = option(0.7, "Weight of the reused direction.", check=at_least(0))
  sam_every: int = option(5, "Perturb only every this many steps.", check=at_least(1))

  def link(self) -> optax.GradientTransformation:
    return looksam(self.rho, every=self.sam_every, alpha=self.alpha, p=self.p)

  def wrap(
    self, optimizer: optax.GradientTransformation, *, steps_per_epoch: int
  ) -> optax.GradientTransformation:
    start = self._first_step(steps_per_epoch)
    return optax.chain(on_steps(self.link(), start=start, every=1), optimizer)
