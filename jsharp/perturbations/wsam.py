"""WSAM (Yue et al. 2023): weighted sharpness."""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp.options import between, option
from jsharp.perturbations._options import SharpLink
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.combine import interpolate
from jsharp.perturbations.link import sharpness_aware


def wsam(
  rho: optax.ScalarOrSchedule = 0.05, *, gamma: Any = 0.5, p: Any = 2.0
) -> optax.GradientTransformationExtraArgs:
  """WSAM: `g + gamma / (1 - gamma) * (s - g)`, weighted sharpness (two gradients).

  `gamma = 0.5` is SAM; smaller values weigh the clean gradient more, larger ones
  extrapolate beyond SAM. This is the coupled form of Yue et al. 2023 (arXiv
  2305.15817): the optimizer receives the sum. Their decoupled form, which takes the
  base step with `g` and adds the sharpness term outside the optimizer, is not
  available.

  Args:
    rho: the radius; a number, a traced scalar or a schedule.
    gamma: the weight of the sharpness, in `[0, 1)`.
    p: the norm of the ball, in `[1, inf]`.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> link = wsam(0.5, gamma=0.75)
    >>> w = jnp.array([1.0])
    >>> link.update(2 * w, link.init(w), w, grad_fn=lambda w: 2 * w)[0].tolist()
    [5.0]
  """
  if isinstance(gamma, int | float) and not 0 <= gamma < 1:
    raise ValueError(f"gamma must lie in [0, 1), got {gamma!r}; 0.5 is SAM itself")
  return sharpness_aware(sam_ascent(rho, p=p), interpolate(gamma / (1 - gamma)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WSAM(SharpLink):
  """SAM that weighs the sharp gradient against the clean one."""

  name: ClassVar[str] = "wsam"

  gamma: float = option(
    0.5,
    "Weight of the sharpness; 0.5 is SAM.",
    check=between(0, 1, "0.5 is SAM itself.", below=True),
  )

  def link(self) -> optax.GradientTransformation:
    return wsam(self.rho, gamma=self.gamma, p=self.p)
