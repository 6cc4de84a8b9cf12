"""ASAM (Kwon et al. 2021): a ball relative to the parameters."""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp.options import at_least, option, positive
from jsharp.perturbations._options import SharpLink
from jsharp.perturbations.sam import sam


def asam(
  rho: optax.ScalarOrSchedule = 0.5, *, p: Any = 2.0, eta: float = 0.01
) -> optax.GradientTransformationExtraArgs:
  """Adaptive SAM: `e = rho * T^2 g / |T g|` with `T = |w| + eta` (two gradients).

  The ball follows rescalings of the weights, so the sharpness within it is the same for
  weights that compute the same function. The radius is relative, about ten times SAM's:
  0.5 on CIFAR-10 and 1 on CIFAR-100 (Kwon et al. 2021, arXiv 2102.11600). The authors'
  code uses `T = 1` for biases; for that, pass your own `by(params)` to
  `conjugate(sam_ascent(rho), by)`.

  Args:
    rho: the radius, relative to the parameters.
    p: the norm of the ball, in `[1, inf]`.
    eta: offset of `T`, in units of the parameters.

  Returns:
    A link for `optax.chain`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> link = asam(0.5, eta=0.0)
    >>> w = jnp.array([2.0, 0.0])
    >>> grad_fn = lambda w: w - jnp.array([0.0, 1.0])
    >>> link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)[0].tolist()
    [3.0, -1.0]
  """
  return sam(rho, p=p, adaptive=True, eta=eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ASAM(SharpLink):
  """SAM in a ball that is scaled by the size of each parameter."""

  name: ClassVar[str] = "asam"

  rho: float = option(
    0.5,
    "Radius of the perturbation, relative to the parameters.",
    check=positive("without a perturbation use --algorithm=sgd."),
  )
  eta: float = option(
    0.01,
    "Offset of the adaptive ball, in units of the parameters.",
    check=at_least(0),
  )

  def link(self) -> optax.GradientTransformation:
    return asam(self.rho, p=self.p, eta=self.eta)
