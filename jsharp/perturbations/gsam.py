"""GSAM (Zhuang et al. 2022): SAM that also closes the surrogate gap."""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp._checks import check_nonnegative
from jsharp.options import at_least, option
from jsharp.perturbations._options import SharpLink
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.combine import oppose
from jsharp.perturbations.link import sharpness_aware


def gsam(
  rho: optax.ScalarOrSchedule = 0.05, *, alpha: Any = 0.4, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """GSAM: `s - alpha * (the part of g orthogonal to s)` (two gradients).

  Zhuang et al. 2022 (arXiv 2203.08065) tie the radius to the learning rate: pass the
  schedule `rho_min + (rho_max - rho_min) * (lr - lr_min) / (lr_max - lr_min)`.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    alpha: how strongly the surrogate gap is reduced; 0 is SAM. For a schedule, use
      `optax.inject_hyperparams(gsam)(alpha=schedule)`.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> link = gsam(0.5, alpha=0.4)
    >>> w = jnp.array([1.0, 0.0])
    >>> grad_fn = lambda w: jnp.array([2.0, 1.0]) * w
    >>> link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0].tolist()
    [3.0, 0.0]
  """
  check_nonnegative("alpha", alpha)
  return sharpness_aware(sam_ascent(rho, p=p), oppose(alpha))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GSAM(SharpLink):
  """SAM that also closes the surrogate gap."""

  name: ClassVar[str] = "gsam"

  alpha: float = option(
    0.4, "How strongly the surrogate gap is reduced; 0 is SAM.", check=at_least(0)
  )

  def link(self) -> optax.GradientTransformation:
    return gsam(self.rho, alpha=self.alpha, p=self.p)
