"""SAM and its successors under the names that people look for.

Each is a composition of the pieces beside it; `g` is the gradient that reaches the
link, `s` the gradient at `w + e`. Every constructor gives a link to stand before an
optimizer: `optax.chain(jsharp.sam(0.05), optax.adamw(1e-3))`, with
`update(grads, state, params, grad_fn=jax.grad(loss))`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_nonnegative
from jsharp.perturbations.ascent import sam_ascent, scale_to_ball
from jsharp.perturbations.combine import interpolate, oppose
from jsharp.perturbations.directions import follow_running_mean, leave_running_mean
from jsharp.perturbations.link import sharpness_aware
from jsharp.tree import inner_product


def sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  p: Any = 2.0,
  per_leaf: bool = False,
  adaptive: bool = False,
  eta: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Sharpness-aware minimisation: `s` at `e = rho * g / |g|` (two gradients a step).

  Source: Foret et al. 2021, arXiv 2010.01412; `p` is the norm of their equation 2.

  Args:
    rho: the radius of the ball; a number, a traced scalar or a schedule.
    p: the norm of the ball, in `[1, inf]`.
    per_leaf: whether every leaf has a ball of its own.
    adaptive: ASAM's geometry; see also `asam`.
    eta: ASAM's offset.

  Returns:
    A link for `optax.chain`; see `sharpness_aware`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> loss = lambda w: jnp.sum(w**2)
    >>> tx = optax.chain(sam(0.05), optax.sgd(0.1))
    >>> w = jnp.array([1.0, 1.0])
    >>> value, grads = jax.value_and_grad(loss)(w)
    >>> updates, _ = tx.update(grads, tx.init(w), w, grad_fn=jax.grad(loss))
    >>> [round(float(x), 4) for x in optax.apply_updates(w, updates)]
    [0.7929, 0.7929]
  """
  return sharpness_aware(
    sam_ascent(rho, p=p, per_leaf=per_leaf, adaptive=adaptive, eta=eta)
  )


def asam(
  rho: optax.ScalarOrSchedule = 0.5, *, p: Any = 2.0, eta: float = 0.01
) -> optax.GradientTransformationExtraArgs:
  """Adaptive SAM: `e = rho * T^2 g / |T g|` with `T = |w| + eta` (two gradients).

  The ball does not change when weights are rescaled without changing the function.
  Its radius is relative, about ten times SAM's: 0.5 on CIFAR-10 and 1 on CIFAR-100
  (Kwon et al. 2021, arXiv 2102.11600). The authors' code leaves biases at `T = 1`; for
  that, `conjugate(sam_ascent(rho), by)` takes any `by(params)`.

  Args:
    rho: the radius, relative to the parameters.
    p: the norm of the ball, in `[1, inf]`.
    eta: offset, in units of the parameters.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = asam(0.5, eta=0.0)
    >>> w = jnp.array([2.0, 0.0])
    >>> grad_fn = lambda w: w - jnp.array([0.0, 1.0])
    >>> link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0].tolist()
    [3.0, -1.0]
  """
  return sam(rho, p=p, adaptive=True, eta=eta)


def gsam(
  rho: optax.ScalarOrSchedule = 0.05, *, alpha: Any = 0.4, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """GSAM: `s - alpha * (the part of g orthogonal to s)` (two gradients).

  Zhuang et al. 2022 (arXiv 2203.08065) tie the radius to the learning rate: pass the
  schedule `rho_min + (rho_max - rho_min) * (lr - lr_min) / (lr_max - lr_min)`.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    alpha: how strongly the surrogate gap is closed; 0 is SAM. A schedule goes in by
      `optax.inject_hyperparams(gsam)(alpha=schedule)`.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = gsam(0.5, alpha=0.4)
    >>> w = jnp.array([1.0, 0.0])
    >>> grad_fn = lambda w: jnp.array([2.0, 1.0]) * w
    >>> link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0].tolist()
    [3.0, 0.0]
  """
  check_nonnegative("alpha", alpha)
  return sharpness_aware(sam_ascent(rho, p=p), oppose(alpha))


def wsam(
  rho: optax.ScalarOrSchedule = 0.05, *, gamma: Any = 0.5, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """WSAM: `g + gamma / (1 - gamma) * (s - g)`, sharpness with a weight (two gradients).

  `gamma = 0.5` is SAM, less leans to the clean gradient, more overshoots. This is the
  coupled form of Yue et al. 2023 (arXiv 2305.15817): the optimizer sees the sum. Their
  decoupled form takes the base step with `g` and the sharpness term outside of the
  optimizer; it is not offered.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    gamma: in `[0, 1)`.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = wsam(0.5, gamma=0.75)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [5.0]
  """
  if isinstance(gamma, int | float) and not 0 <= gamma < 1:
    raise ValueError(f"gamma must lie in [0, 1), got {gamma!r}; 0.5 is SAM itself")
  return sharpness_aware(sam_ascent(rho, p=p), interpolate(gamma / (1 - gamma)))


def friendly_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sigma: Any = 1.0,
  decay: Any = 0.9,
  p: Any = 2.0,
) -> optax.GradientTransformationExtraArgs:
  """F-SAM: the ascent of `g - sigma * (running mean of g)` (two gradients).

  Only the batch's own noise perturbs (Li et al. 2024, arXiv 2403.12350; their code
  calls the decay lambda and takes 0.6 on CIFAR-100). Keeps one copy of the gradient.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    sigma: share of the mean that is taken out; 0 is SAM.
    decay: of the running mean, in `[0, 1)`.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = friendly_sam(0.5)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [3.0]
  """
  direction = leave_running_mean(decay, sigma=sigma)
  return sharpness_aware(optax.chain(direction, sam_ascent(rho, p=p)))


def vasso(
  rho: optax.ScalarOrSchedule = 0.05, *, decay: Any = 0.1, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """VaSSO: the ascent of `d = decay * d + (1 - decay) * g` (two gradients).

  The running mean steadies the perturbation against a batch's noise (Li and Giannakis
  2023, arXiv 2309.15639, whose theta is `1 - decay`; 0.9 in their code). Keeps one copy
  of the gradient.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    decay: weight of the past, in `[0, 1)`; 0 is SAM.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = vasso(0.5, decay=0.6)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [3.0]
  """
  return sharpness_aware(optax.chain(follow_running_mean(decay), sam_ascent(rho, p=p)))


def le_sam(
  sigma: Any, *, max_rho: Any = 1.0, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """LE-SAM: a radius that raises the loss by `sigma` to first order (two gradients).

  `rho = min(sigma / |g|_q, max_rho)`, so a flat place is perturbed far and a steep one
  little (arXiv 2605.10183).

  Args:
    sigma: the rise of the loss, in its units.
    max_rho: the largest radius.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> link = le_sam(0.5)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [2.5]
  """
  check_nonnegative("sigma", sigma)
  check_nonnegative("max_rho", max_rho)
  ball = scale_to_ball(p)

  def ascend(updates: Any, params: Any = None) -> Any:
    del params
    points, _ = ball.update(updates, ball.init(None))
    slope = inner_product(updates, points)  # |g|_q
    flat = slope * max_rho <= sigma
    rho = jnp.where(flat, max_rho, sigma / jnp.where(flat, 1, slope))
    return jax.tree.map(lambda e: e * rho.astype(e.dtype), points)

  return sharpness_aware(optax.stateless(ascend))
