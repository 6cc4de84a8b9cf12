"""SAM's ascent: gradient in, perturbation *to add* out, no sign flip.

The perturbation solves `argmax <g, e>` over a ball `|e|_p <= rho`. With
`1/p + 1/q = 1` (Foret et al. 2021, arXiv 2010.01412, equation 2)

    e = rho * sign(g) * |g|^(q-1) / (|g|_q^q)^(1/p)

with norms over all leaves together. A change of geometry is a conjugation: with a map
`T` of the parameters the ball is `|e / T|_p <= rho` and `e = T * ball(T * g)`; ASAM
(Kwon et al. 2021, arXiv 2102.11600) has `T = |w| + eta`. The maximum has the
value `rho * |T g|_q`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp import tree as trees
from jsharp._checks import check_nonnegative
from jsharp.perturbations.geometry import conjugate


def scale_to_ball(
  p: Any = 2.0, *, per_leaf: bool = False
) -> optax.GradientTransformation:
  """Maps a gradient to the point of the unit p-ball with the largest inner product.

  The result does not depend on the gradient's scale, from the smallest to the largest
  representable gradient. At a zero gradient the value and its derivative are zero; a
  NaN stays a NaN. It is differentiable wherever the formula is. For `p=1` the whole
  radius goes to the largest coordinate (shared equally among ties), for `p=inf` every
  coordinate becomes its sign. Complex entries enter with their modulus and keep their
  phase: pass the conjugate of JAX's gradient, as for optax's own links.

  Args:
    p: the norm, in `[1, inf]`; a number or a traced scalar.
    per_leaf: whether every leaf has its own ball (layer-wise SAM), instead of one ball
      for all leaves as one vector.

  Returns:
    A stateless transformation of the updates.

  Raises:
    ValueError: if `p` is a number below 1 or NaN.

  Example:
    >>> ball = scale_to_ball()
    >>> update, _ = ball.update(jnp.array([3e-30, 4e-30]), ball.init(None))
    >>> [round(float(u), 6) for u in update]
    [0.6, 0.8]
  """
  static = isinstance(p, int | float)
  if static and not p >= 1:
    raise ValueError(f"p must be in [1, inf], got {p!r}; pass p=2 for SAM's own ball")

  def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    leaves, structure = jax.tree.flatten(updates)
    groups = [[leaf] for leaf in leaves] if per_leaf else [leaves] if leaves else []
    points = [point for group in groups for point in _scaled(group, p)]
    return jax.tree.unflatten(structure, points), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def _scaled(leaves: list[jax.Array], p: Any) -> list[jax.Array]:
  """The point of the unit ball for leaves that share it, of any scale."""
  if isinstance(p, int | float) and p == 2:
    return trees.unit(leaves)
  wide, dtype = trees.widen(leaves)
  # The perturbation is homogeneous of degree zero in g, so the scale may be treated as
  # a constant: its derivative is exactly zero.
  scale = jax.lax.stop_gradient(trees.largest_entry(wide, dtype))
  is_zero = scale == 0
  # The reciprocal of a huge scale would be flushed to zero: shrink both first.
  root = 2.0 ** (jnp.finfo(dtype).maxexp // 2)
  shrink = jnp.where(scale > root, jnp.asarray(1 / root, dtype), 1)
  # An infinite entry has no direction: scale * 0 makes the divisor a NaN.
  divisor = jnp.where(is_zero, jnp.ones_like(scale), scale * shrink) + scale * 0
  scaled = [g * shrink.astype(g.dtype) / divisor.astype(g.dtype) for g in wide]
  points = _unit_ball(
    scaled, p if isinstance(p, int | float) else jnp.asarray(p, dtype), dtype
  )
  return [
    jnp.where(is_zero, jnp.zeros_like(e), e).astype(g.dtype)
    for e, g in zip(points, leaves, strict=True)
  ]


def _unit_ball(g: list[jax.Array], p: Any, dtype: Any) -> list[jax.Array]:
  """The formula above for leaves whose largest entry is 1 (or all are 0)."""

  def total(terms: list[jax.Array]) -> jax.Array:
    return sum((jnp.sum(t).astype(dtype) for t in terms), jnp.zeros((), dtype))

  def over(terms: list[jax.Array], size: jax.Array) -> list[jax.Array]:
    # No division by zero, even in the unused branch: its derivative would be NaN.
    size = jnp.where(size == 0, jnp.ones_like(size), size)
    return [t / size.astype(t.dtype) for t in terms]

  if isinstance(p, int | float):
    if p == 1:
      peak = trees.largest_entry(g, dtype)
      peaks = [
        jnp.where(jnp.abs(x) == peak.astype(jnp.abs(x).dtype), jnp.sign(x), x * 0)
        for x in g
      ]
      return over(peaks, total([jnp.abs(x) for x in peaks]))
    if math.isinf(p):
      return [jnp.sign(x) for x in g]
  inverse_p = 1 / jnp.asarray(p, dtype)
  power = inverse_p / (1 - inverse_p)  # q - 1
  size = [jnp.where(x == 0, 1, jnp.abs(x)) for x in g]
  raised = [s ** power.astype(s.dtype) for s in size]
  points = [
    jnp.where(x == 0, 0, jnp.sign(x) * r.astype(x.dtype))
    for x, r in zip(g, raised, strict=True)
  ]
  mass = total([jnp.abs(x) * jnp.abs(e) for x, e in zip(g, points, strict=True)])
  return over(points, jnp.where(mass == 0, jnp.ones_like(mass), mass) ** inverse_p)


def sam_ascent(
  rho: optax.ScalarOrSchedule,
  *,
  p: Any = 2.0,
  per_leaf: bool = False,
  adaptive: bool = False,
  eta: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """SAM's perturbation of radius `rho`: the solution of `argmax <g, e>` in a ball.

  Args:
    rho: the radius, in units of the parameters (if adaptive, relative to them); a
      number, a traced scalar or an optax schedule.
    p: the norm of the ball, in `[1, inf]`.
    per_leaf: whether every leaf has its own ball of radius `rho`.
    adaptive: whether the ball is ASAM's, `|e / (|w| + eta)|_p <= rho`.
    eta: ASAM's offset, in units of the parameters. ASAM's authors use 0.01 on
      weights; Sharp-MAML's code uses 0.

  Returns:
    An ascent: gradient in, perturbation to add out. Zero bytes of state unless
    `rho` is a schedule.

  Raises:
    ValueError: if `rho` or `eta` is negative or not finite, or `p` below 1.

  Example:
    >>> ascent = sam_ascent(0.05)
    >>> ascent.update(jnp.array([0.0, -2.0]), ascent.init(jnp.zeros(2)))[0].tolist()
    [0.0, -0.05000000074505806]
  """
  check_nonnegative("rho", rho)
  check_nonnegative("eta", eta)
  ball = optax.chain(
    scale_to_ball(p, per_leaf=per_leaf),
    optax.scale_by_learning_rate(rho, flip_sign=False),
  )
  if not adaptive:
    return optax.with_extra_args_support(ball)
  return conjugate(
    ball, lambda params: jax.tree.map(lambda w: jnp.abs(w) + eta, params)
  )
