"""The optimizers of both loops, with schedules, clipping and SAM's links."""

from types import SimpleNamespace
from typing import Any

import optax

from experiments.method_flags import sharp_loops
from jsharp import sam, sam_ascent, sharpness_aware
from jsharp.core.transforms import stop_gradient


def sharp_adaptation(settings: SimpleNamespace) -> bool:
  """Whether validation and test take SAM steps; by default with low alone."""
  inner, outer = sharp_loops(settings)
  if settings.sharp_adaptation is None:
    return inner and not outer
  return inner and settings.sharp_adaptation


def outer(settings: SimpleNamespace) -> optax.GradientTransformation:
  """The outer optimizer with its schedule, clipping and SAM's link."""
  lr, steps = settings.outer_lr, settings.outer_schedule_steps
  if settings.outer_schedule == "cosine":
    final = settings.final_outer_lr / lr
    lr = optax.cosine_decay_schedule(lr, steps, alpha=final)
  elif settings.outer_schedule == "linear":
    lr = optax.linear_schedule(lr, settings.final_outer_lr, steps)
  links = [{"adam": optax.adam, "sgd": optax.sgd}[settings.outer_optimizer](lr)]
  if settings.clip_meta_gradient:
    links[:0] = [optax.clip(settings.clip_meta_gradient)]
  if settings.sharpness in ("up", "both"):
    links[:0] = [sam(settings.outer_rho, p=settings.p, adaptive=settings.adaptive)]
  return optax.chain(*links) if len(links) > 1 else links[0]


def inner(settings: SimpleNamespace) -> optax.GradientTransformation:
  """The inner optimizer of training."""
  plain = _plain(settings)
  if settings.sharpness not in ("low", "both"):
    return plain
  ascent = sam_ascent(settings.inner_rho, p=settings.p, adaptive=settings.adaptive)
  if not settings.differentiate_perturbation:
    ascent = optax.with_extra_args_support(optax.chain(ascent, stop_gradient()))
  return optax.chain(sharpness_aware(ascent), plain)


def at_evaluation(settings: SimpleNamespace) -> dict[str, Any]:
  """The inner optimizer of validation and test, as a keyword of `adapt`.

  Empty where `adapt` takes the right one without being told.
  """
  if settings.sharpness not in ("low", "both"):
    return {}
  sharp = sharp_adaptation(settings)
  return {"optimizer": inner(settings) if sharp else _plain(settings)}


def _plain(settings: SimpleNamespace) -> optax.GradientTransformation:
  # The rates of these, learned or not, stand behind the optimizer.
  behind = settings.algorithm in ("meta_sgd", "maml_plus_plus")
  lr = 1.0 if behind else settings.inner_lr
  if settings.inner_optimizer == "adam":
    # No one differentiates through Reptile's; elsewhere a zero gradient must not.
    eps_root = 0.0 if settings.algorithm == "reptile" else 1e-8
    return optax.adam(lr, b1=0.0, eps_root=eps_root)
  return optax.sgd(lr)


def schedule(settings: SimpleNamespace) -> str | None:
  """How the outer rate falls, in words."""
  if settings.outer_schedule == "constant":
    return None
  return (
    f"{settings.outer_schedule} to {settings.final_outer_lr:g} in "
    f"{settings.outer_schedule_steps}"
  )
