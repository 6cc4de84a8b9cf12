"""SAM (Foret et al. 2021), which the other variants here modify."""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp.options import at_least, option
from jsharp.perturbations._options import SharpGroups, SharpLink
from jsharp.perturbations.ascent import sam_ascent
from jsharp.perturbations.link import sharpness_aware


def sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  p: Any = 2.0,
  per_leaf: bool = False,
  adaptive: bool = False,
  eta: float = 0.0,
  second_order: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Sharpness-aware minimisation: the gradient at `w + rho * g / |g|` (two per step).

  Source: Foret et al. 2021, arXiv 2010.01412; `p` is the norm of their equation 2.

  Args:
    rho: the radius of the ball; a number, a traced scalar or a schedule.
    p: the norm of the ball, in `[1, inf]`.
    per_leaf: whether every leaf has its own ball.
    adaptive: ASAM's geometry; see also `asam`.
    eta: ASAM's offset.
    second_order: whether to differentiate through the perturbation, see
      `sharpness_aware`.

  Returns:
    A link for `optax.chain`; see `sharpness_aware`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(w**2)
    >>> tx = optax.chain(sam(0.05), optax.sgd(0.1))
    >>> w = jnp.array([1.0, 1.0])
    >>> value, grads = jax.value_and_grad(loss)(w)
    >>> updates, _ = tx.update(grads, tx.init(w), w, grad_fn=jax.grad(loss))
    >>> [round(float(x), 4) for x in optax.apply_updates(w, updates)]
    [0.7929, 0.7929]
  """
  return sharpness_aware(
    sam_ascent(rho, p=p, per_leaf=per_leaf, adaptive=adaptive, eta=eta),
    second_order=second_order,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAM(SharpLink):
  """The gradient at the worst point of a ball.

  Example:
    >>> SAM(sam_every=5).num_gradients(10, steps_per_epoch=5)
    12
  """

  name: ClassVar[str] = "sam"

  adaptive: bool = option(False, "Scale the ball by the size of each parameter.")
  eta: float = option(
    0.0,
    "Offset of the adaptive ball, in units of the parameters.",
    check=at_least(0),
  )
  second_order: bool = option(
    False,
    "Differentiate through the perturbation too, which the paper's appendix C.4 found "
    "to be worse; costs about two more gradients.",
  )

  perturbation_batch_size: int | None = option(
    None,
    "m-sharpness: the number of images that share a perturbation. Each group of this "
    "size in a batch gets its own perturbation, one group after the other, or on "
    "several devices. With --batch_size divided by --num_devices, each device has its "
    "own perturbation, as in the paper. Default: the whole batch, on any number of "
    "devices.",
    check=at_least(1),
  )

  def complete(self) -> None:
    """Rejects groups combined with perturbation on some steps only."""
    if self.perturbation_batch_size and (self.sam_every > 1 or self.sam_start):
      raise ValueError(
        "--perturbation_batch_size perturbs on every step; leave out --sam_every and "
        "--sam_start"
      )

  @property
  def groups(self) -> SharpGroups | None:
    if self.perturbation_batch_size is None:
      return None
    ascent = sam_ascent(self.rho, p=self.p, adaptive=self.adaptive, eta=self.eta)
    return SharpGroups(ascent, self.perturbation_batch_size, self.second_order)

  def wrap(
    self, optimizer: optax.GradientTransformation, *, steps_per_epoch: int
  ) -> optax.GradientTransformation:
    if self.groups:
      return optimizer
    return super().wrap(optimizer, steps_per_epoch=steps_per_epoch)

  def link(self) -> optax.GradientTransformation:
    return sam(
      self.rho,
      p=self.p,
      adaptive=self.adaptive,
      eta=self.eta,
      second_order=self.second_order,
    )

  def num_gradients(self, num_steps: int, *, steps_per_epoch: int) -> int:
    total = super().num_gradients(num_steps, steps_per_epoch=steps_per_epoch)
    # A Hessian-vector product costs about two gradients.
    return total + 2 * (total - num_steps) * self.second_order
