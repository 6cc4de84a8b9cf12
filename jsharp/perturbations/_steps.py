"""Selecting the steps on which a link is applied."""

from typing import Any

import jax
import optax

from jsharp._checks import check_count


def on_steps(
  link: optax.GradientTransformation, *, start: int, every: int
) -> optax.GradientTransformation:
  """Applies a link on step `start` and on every `every`-th step after it."""
  if not start and every == 1:
    return link
  return optax.conditionally_transform(
    link, lambda step: (step >= start) & ((step - start) % every == 0)
  )


def check_static_count(name: str, value: Any, *, minimum: int = 1) -> None:
  """Checks that a number is a count, unless it is traced.

  A traced count, as from `optax.inject_hyperparams`, has no value yet.
  """
  if not isinstance(value, jax.Array):
    check_count(name, value, minimum=minimum)
