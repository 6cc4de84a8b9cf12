"""What every sharpness-aware optimizer is described by."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import optax

from jsharp.options import Options, Role, at_least, norm, option, positive
from jsharp.perturbations._steps import on_steps
from jsharp.types import Params


class SharpGroups(NamedTuple):
  """m-sharpness (Foret et al. 2021, arXiv 2010.01412, section 4.1).

  Attributes:
    ascent: gradient in, perturbation out, without state: `jsharp.sam_ascent(0.05)`.
    size: m, the number of examples that share a perturbation.
    second_order: as for `jsharp.sharpen`.
  """

  ascent: optax.GradientTransformation
  size: int
  second_order: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpOptimizer(Options):
  """A way to make any optimizer sharpness-aware, or to leave it plain."""

  kind: ClassVar[str] = "sharpness-aware optimizer"
  role: ClassVar[Role] = Role.TRAINING

  def wrap(
    self, optimizer: optax.GradientTransformation, *, steps_per_epoch: int
  ) -> optax.GradientTransformation:
    """The sharpness-aware form of an optimizer.

    Args:
      optimizer: takes the step, with weight decay, clipping and momentum.
      steps_per_epoch: converts epochs to steps.

    Returns:
      An optimizer whose `update` needs `params` and `grad_fn`.
    """
    raise NotImplementedError

  def num_gradients(self, num_steps: int, *, steps_per_epoch: int) -> int:
    """The gradients that `num_steps` steps compute."""
    return num_steps

  @property
  def groups(self) -> SharpGroups | None:
    """Groups of examples with a perturbation each, in place of a link, or None."""
    return None

  @property
  def centre(self) -> Callable[[Params, Any], Params] | None:
    """`centre(params, opt_state)`: what to evaluate where perturbed parameters move.

    None where the parameters are what to evaluate.
    """
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perturbed(SharpOptimizer):
  """Options of everything that perturbs within a ball."""

  rho: float = option(
    0.05,
    "Radius of the perturbation.",
    check=positive("without a perturbation use --algorithm=sgd."),
  )
  p: float = option(2.0, "Norm of the ball, from 1 to inf.", check=norm())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpLink(Perturbed):
  """Options of the links that take a second gradient, at the perturbed parameters."""

  sam_every: int = option(
    1, "Steps from one perturbed step to the next.", check=at_least(1)
  )
  sam_start: float = option(
    0.0,
    "Epochs without perturbation at the start; parts of an epoch are possible.",
    check=at_least(0),
  )

  def link(self) -> optax.GradientTransformation:
    """The link that stands before the optimizer and perturbs on every step."""
    raise NotImplementedError

  def wrap(
    self, optimizer: optax.GradientTransformation, *, steps_per_epoch: int
  ) -> optax.GradientTransformation:
    start = self._first_step(steps_per_epoch)
    return optax.chain(
      on_steps(self.link(), start=start, every=self.sam_every), optimizer
    )

  def num_gradients(self, num_steps: int, *, steps_per_epoch: int) -> int:
    sharp = max(num_steps - self._first_step(steps_per_epoch), 0)
    return num_steps + -(-sharp // self.sam_every)

  def _first_step(self, steps_per_epoch: int) -> int:
    return round(self.sam_start * steps_per_epoch)
