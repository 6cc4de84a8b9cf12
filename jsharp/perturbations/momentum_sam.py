"""SAM with one gradient per step: the parameters themselves are perturbed."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp.options import option, positive
from jsharp.perturbations._options import Perturbed
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.link import where_updated
from jsharp.types import Params


class ShiftedState(NamedTuple):
  """State of `momentum_sam`.

  Attributes:
    base: state of the wrapped optimizer.
    ascent: state of the perturbation's radius; zero bytes unless it is a schedule.
    perturbation: the shift of the parameters, a pytree like them.
  """

  base: Any
  ascent: Any
  perturbation: Any


def momentum_sam(
  optimizer: optax.GradientTransformation,
  rho: optax.ScalarOrSchedule = 0.3,
  *,
  p: Any = 2.0,
) -> optax.GradientTransformationExtraArgs:
  """Momentum-SAM: SAM along the optimizer's last update, with one gradient per step.

  The parameters that the training loop sees are `w + e`, where `w` is what the wrapped
  optimizer updates and `e = rho * u / |u|` follows its last update `u`; for momentum
  SGD with momentum `v` this is `-rho * v / |v|` (Becker et al. 2024, arXiv 2401.12033;
  rho 0.3, and 3 on CIFAR-100). So the gradient that any training loop computes is
  already the sharp gradient. Evaluate and deploy at `centre(params, opt_state)`. Unlike
  the links, it wraps the optimizer; its `update` needs `params` and no `grad_fn`.

  Args:
    optimizer: any optax optimizer.
    rho: the radius; a number, a traced scalar or a schedule.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    An optimizer. It keeps one copy of the parameters.

  Raises:
    ValueError: if an argument is out of range; from `update`, if `params` is missing.

  Example:
    >>> tx = momentum_sam(optax.sgd(0.1, momentum=0.9), rho=0.5)
    >>> w = jnp.array([1.0])
    >>> updates, state = tx.update(2 * w, tx.init(w), w)
    >>> shifted = optax.apply_updates(w, updates)
    >>> shifted.round(3).tolist(), centre(shifted, state).round(3).tolist()
    ([0.30000001192092896], [0.800000011920929])
  """
  base = optax.with_extra_args_support(optimizer)
  ascent = sam_ascent(rho, p=p)

  def init_fn(params: Any) -> ShiftedState:
    params, _ = trees.inexact(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return ShiftedState(base.init(params), ascent.init(params), zeros)

  def update_fn(
    updates: Any, state: ShiftedState, params: Any = None, **extra: Any
  ) -> tuple[Any, ShiftedState]:
    if params is None:
      raise ValueError(
        "momentum_sam needs the parameters, got params=None; call "
        "update(grads, state, params)"
      )
    params, _ = where_updated(updates, params, None)
    unshifted = jax.tree.map(jnp.subtract, params, state.perturbation)
    steps, base_state = base.update(updates, state.base, unshifted, **extra)
    e, ascent_state = ascent.update(steps, state.ascent, params)
    moves = jax.tree.map(
      lambda u, new, old: u + (new - old), steps, e, state.perturbation
    )
    return moves, ShiftedState(base_state, ascent_state, e)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def centre(params: Any, opt_state: Any) -> Any:
  """The parameters without the perturbation of `momentum_sam`.

  Args:
    params: the parameters after the optimizer's last update.
    opt_state: its state, which contains the state of `momentum_sam` at any place.

  Returns:
    The parameters to evaluate, save and deploy.

  Raises:
    ValueError: if `opt_state` holds no `momentum_sam` or more than one.

  Example:
    >>> tx = momentum_sam(optax.sgd(0.1), rho=0.5)
    >>> w = jnp.array([1.0])
    >>> centre(w, tx.init(w)).tolist()
    [1.0]
  """

  def is_shifted(node: Any) -> bool:
    return isinstance(node, ShiftedState)

  found = [s for s in jax.tree.leaves(opt_state, is_leaf=is_shifted) if is_shifted(s)]
  if len(found) != 1:
    raise ValueError(
      f"opt_state holds {len(found)} states of momentum_sam; pass the state of an "
      "optimizer that was built with exactly one"
    )
  shifted, others = trees.inexact(params)
  centres = jax.tree.map(jnp.subtract, shifted, found[0].perturbation)
  return trees.join(centres, others)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumSAM(Perturbed):
  """SAM along the optimizer's last update, with one gradient per step."""

  name: ClassVar[str] = "momentum_sam"

  rho: float = option(
    0.3,
    "Radius of the perturbation.",
    check=positive("without a perturbation use --algorithm=sgd."),
  )

  def wrap(
    self, optimizer: optax.GradientTransformation, *, steps_per_epoch: int
  ) -> optax.GradientTransformation:
    return momentum_sam(optimizer, self.rho, p=self.p)

  @property
  def centre(self) -> Callable[[Params, Any], Params]:
    return centre
