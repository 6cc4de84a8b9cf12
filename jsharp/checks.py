"""Checks of static arguments: each names the argument, the value and the fix."""

import math
import numbers
from typing import Any


def check_count(name: str, value: Any, *, minimum: int = 1) -> int:
  """Returns `value` if it is an integer of at least `minimum`.

  Args:
    name: the argument's name, for the message.
    value: what the caller passed.
    minimum: the smallest allowed value.

  Returns:
    `value` as an `int`.

  Raises:
    ValueError: if it is no integer or too small.

  Example:
    >>> check_count("num_inner_steps", 5)
    5
  """
  integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not integral or value < minimum:
    raise ValueError(
      f"{name} must be an integer of at least {minimum}, got {value!r}; "
      f"pass {name}={minimum} or more"
    )
  return int(value)


def check_nonnegative(name: str, value: Any) -> None:
  """Refuses a negative or non-finite number; lets arrays and schedules pass.

  Args:
    name: the argument's name, for the message.
    value: a number, or something whose value is not known yet (a traced
      array, a schedule), which is not looked at.

  Raises:
    ValueError: if `value` is a number below zero, infinite or NaN.

  Example:
    >>> check_nonnegative("rho", 0.05)
  """
  if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
    raise ValueError(
      f"{name} must be finite and at least 0, got {value!r}; pass for "
      f"example {name}=0.05"
    )
