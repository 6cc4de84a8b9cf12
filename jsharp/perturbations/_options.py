"""Base classes for the options of sharpness-aware optimizers."""

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
    ascent: gradient in, perturbation out; stateless, such as `jsharp.sam_ascent(0.05)`.
    size: m, the number of examples that share a perturbation.
    second_order: as for `jsharp.sharpen`.
  """

  ascent: optax.GradientTransformation
  size: int
  second_order: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpOptimizer(Options):
  """The options of a way to make an optimizer sharpness-aware, or to leave it plain."""

  kind: ClassVar[str] = "sharpness-aware optimizer"
  role: ClassVar[Role] = Role.TRAINING

  def wrap(
    self, optimizer: optax.GradientTransformation, *, steps_per_epoch: int
  ) -> optax.GradientTransformation:
    """The sharpness-aware form of an optimizer.

    Args:
      optimizer: the optimizer that takes the step, including weight decay, clipping
        and momentum.
      steps_per_epoch: converts epochs to steps.

    Returns:
      An optimizer whose `update` needs `params` and `grad_fn`.
    """
    raise NotImplementedError

  def num_gradients(self, num_steps: int, *, steps_per_epoch: int) -> int:
    """The number of gradients that `num_steps` steps compute."""
    return num_steps

  @property
  def groups(self) -> SharpGroups | None:
    """The settings of m-sharpness, which replaces the link; None for no groups."""
    return None

  @property
  def centre(self) -> Callable[[Params, Any], Params] | None:
    """`centre(params, opt_state)`, the unperturbed parameters to evaluate.

    None if the optimizer's parameters are unperturbed.
    """
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perturbed(SharpOptimizer):
  """Options of optimizers that perturb within a ball."""

  rho: float = option(
    0.05,
    "Radius of the perturbation.",
    check=positive("without a perturbation use --algorithm=sgd."),
  )
  p: float = option(2.0, "Norm of the ball, from 1 to inf.", check=norm())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpLink(Perturbed):
  """Options of the links that take a second gradient, at the perturbed parameters."""

  sam_every: int = option(1, "Perturb only every this many steps.", check=at_least(1))
  sam_start: float = option(
    0.0,
    "Epochs without perturbation at the start; may be fractional.",
    check=at_least(0),
  )

  def link(self) -> optax.GradientTransformation:
    """The link to put in front of the optimizer; it perturbs on every step."""
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
