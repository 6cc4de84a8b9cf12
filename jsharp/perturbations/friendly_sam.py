"""F-SAM (Li et al. 2024): perturbs along the batch's own noise only."""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp.options import between, finite, option
from jsharp.perturbations._options import SharpLink
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.directions import leave_running_mean
from jsharp.perturbations.link import sharpness_aware


def friendly_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sigma: Any = 1.0,
  decay: Any = 0.9,
  p: Any = 2.0,
) -> optax.GradientTransformationExtraArgs:
  """F-SAM: the ascent of `g - sigma * (running mean of g)` (two gradients).

  The perturbation follows only the batch's own noise (Li et al. 2024, arXiv 2403.12350;
  their code calls the decay lambda and uses 0.6 on CIFAR-100). Keeps one copy of the
  gradient.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    sigma: the fraction of the mean that is subtracted; 0 is SAM.
    decay: of the running mean, in `[0, 1)`.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> link = friendly_sam(0.5)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [3.0]
  """
  direction = leave_running_mean(decay, sigma=sigma)
  return sharpness_aware(optax.chain(direction, sam_ascent(rho, p=p)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FriendlySAM(SharpLink):
  """SAM along the gradient minus its running mean."""

  name: ClassVar[str] = "friendly_sam"

  sigma: float = option(
    1.0, "Fraction of the running mean that is subtracted; 0 is SAM.", check=finite()
  )
  decay: float = option(
    0.9,
    "Weight of the past in the running mean.",
    check=between(0, 1, "0.9 is usual.", below=True),
  )

  def link(self) -> optax.GradientTransformation:
    return friendly_sam(self.rho, sigma=self.sigma, decay=self.decay, p=self.p)
