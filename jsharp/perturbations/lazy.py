"""SAM on some steps only: every k-th step, or the last ones."""

from typing import Any

import optax

from jsharp.perturbations._steps import check_static_count
from jsharp.perturbations.sam import sam


def sam_every(
  rho: optax.ScalarOrSchedule = 0.05, *, every: Any = 5, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """SAM on every k-th step, the plain gradient otherwise (1 + 1/k gradients per step).

  Steps 0, k, 2k, ... are sharp. For any other link, use
  `optax.conditionally_transform(link, lambda step: step % k == 0)`. Inside `jax.vmap`
  with a step counter per element, both branches are computed and nothing is saved.

  Args:
    rho: the radius; a schedule counts the sharp steps only.
    every: k.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> link = sam_every(0.5, every=2)
    >>> w, grad_fn = jnp.array([1.0]), lambda w: 2 * w
    >>> sharp, state = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)
    >>> plain, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
    >>> sharp.tolist(), plain.tolist()
    ([3.0], [2.0])
  """
  check_static_count("every", every)
  return optax.conditionally_transform(sam(rho, p=p), lambda step: step % every == 0)


def late_sam(
  rho: optax.ScalarOrSchedule = 0.05, *, start: Any, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """The plain gradient before step `start`, SAM from then on.

  A few epochs of SAM at the end of training come close to SAM throughout (Zhou et al.
  2025, arXiv 2410.10373).

  Args:
    rho: the radius; a schedule counts the sharp steps only.
    start: the first sharp step, counted from 0.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> link = late_sam(0.5, start=1)
    >>> w, grad_fn = jnp.array([1.0]), lambda w: 2 * w
    >>> plain, state = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)
    >>> sharp, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
    >>> plain.tolist(), sharp.tolist()
    ([2.0], [3.0])
  """
  check_static_count("start", start, minimum=0)
  return optax.conditionally_transform(sam(rho, p=p), lambda step: step >= start)
