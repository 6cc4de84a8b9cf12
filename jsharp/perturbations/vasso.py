"""VaSSO (Li and Giannakis 2023): the ascent of a running mean."""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp.options import between, option
from jsharp.perturbations._options import SharpLink
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.directions import follow_running_mean
from jsharp.perturbations.link import sharpness_aware


def vasso(
  rho: optax.ScalarOrSchedule = 0.05, *, decay: Any = 0.1, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """VaSSO: the ascent of `d = decay * d + (1 - decay) * g` (two gradients).

  The running mean makes the perturbation less sensitive to a batch's noise (Li and
  Giannakis 2023, arXiv 2309.15639, whose theta is `1 - decay`; 0.9 in their code).
  Keeps one copy of the gradient.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    decay: weight of the past, in `[0, 1)`; 0 is SAM.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> link = vasso(0.5, decay=0.6)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [3.0]
  """
  return sharpness_aware(optax.chain(follow_running_mean(decay), sam_ascent(rho, p=p)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaSSO(SharpLink):
  """SAM along the running mean of the gradient."""

  name: ClassVar[str] = "vasso"

  decay: float = option(
    0.1,
    "Weight of the past in the running mean; 0 is SAM.",
    check=between(0, 1, "0.1 is usual.", below=True),
  )

  def link(self) -> optax.GradientTransformation:
    return vasso(self.rho, decay=self.decay, p=self.p)
