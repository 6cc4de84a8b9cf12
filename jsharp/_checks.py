"""Checks of static arguments: each names the argument, the value and the fix."""

import math
import numbers
from collections.abc import Sequence
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
    ValueError: if it is not an integer or is too small.

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


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
  """Returns `value` if it is one of the choices.

  Args:
    name: the argument's name, for the message.
    value: what the caller passed.
    choices: the allowed values.

  Returns:
    `value`.

  Raises:
    ValueError: if it is not one of them.

  Example:
    >>> check_choice("inner_steps", "scanned", ("unrolled", "scanned"))
    'scanned'
  """
  if value not in choices:
    raise ValueError(
      f"{name} must be one of {', '.join(choices)}, got {value!r}; "
      f"pass {name}={choices[0]!r} for the default"
    )
  return value


def check_chunk(name: str, value: Any) -> None:
  """Checks a number of tasks to be computed at a time.

  Args:
    name: the argument's name, for the message.
    value: what the caller passed.

  Raises:
    ValueError: if it is not a count, None or "in_order".

  Example:
    >>> check_chunk("task_chunk", 4)
    >>> check_chunk("task_chunk", "in_order")
  """
  if isinstance(value, str) and value != "in_order":
    raise ValueError(
      f'{name} must be an integer of at least 1, None or "in_order", got {value!r}; '
      f"pass {name}=None for the default"
    )
  if value is not None and not isinstance(value, str):
    check_count(name, value)


def check_positive(name: str, value: Any, *, example: float) -> Any:
  """Returns `value` if it is a finite number above 0; accepts any array.

  Args:
    name: the argument's name, for the message.
    value: a number, or an array, which is not checked.
    example: a usual value, for the message.

  Returns:
    A number as a `float`, anything else unchanged.

  Raises:
    ValueError: if `value` is a number of at most zero, infinite or NaN.

  Example:
    >>> check_positive("proximity", 2, example=2.0)
    2.0
  """
  if not isinstance(value, numbers.Real):
    return value
  number = float(value)
  if not 0 < number < math.inf:
    raise ValueError(
      f"{name} must be finite and above 0, got {value!r}; pass for example "
      f"{name}={example}"
    )
  return number


def check_rates(
  name: str, value: Any, *, is_range_allowed: bool = False
) -> tuple[Any, Any]:
  """Returns a step size as the range `(low, high)` that it is drawn from.

  Args:
    name: the argument's name, for the message.
    value: a number, or a pair of numbers. Scalar arrays are not checked.
    is_range_allowed: whether it may be a pair.

  Returns:
    `(low, high)`, equal for a single number. Numbers are converted to `float`.

  Raises:
    ValueError: if `value` is anything else, if a number is infinite or NaN, or if `low`
      is above `high`.

  Example:
    >>> check_rates("inner_lr", 0.1)
    (0.1, 0.1)
    >>> check_rates("inner_lr", [0.1, 0.2], is_range_allowed=True)
    (0.1, 0.2)
  """
  is_range = is_range_allowed and isinstance(value, tuple | list) and len(value) == 2
  ends = tuple(value) if is_range else (value, value)

  def is_finite(end: Any) -> bool:
    if isinstance(end, numbers.Real):
      return not isinstance(end, bool) and math.isfinite(end)
    return hasattr(end, "dtype") and getattr(end, "ndim", None) == 0

  if not all(map(is_finite, ends)) or (is_range and not ends[0] <= ends[1]):
    kind = "a finite number" + " or a range (low, high)" * is_range_allowed
    example = (0.005, 0.1) if is_range_allowed else 0.1
    raise ValueError(
      f"{name} must be {kind}, got {value!r}; pass for example {name}={example}"
    )
  low, high = (float(x) if isinstance(x, numbers.Real) else x for x in ends)
  return low, high


def check_nonnegative(name: str, value: Any) -> None:
  """Rejects a negative or non-finite number; accepts any array or schedule.

  Args:
    name: the argument's name, for the message.
    value: a number, or an object whose value is not known yet (a traced array, a
      schedule), which is not checked.

  Raises:
    ValueError: if `value` is a number below zero, infinite or NaN.

  Example:
    >>> check_nonnegative("rho", 0.05)
    >>> check_nonnegative("rho", -1.0)
    Traceback (most recent call last):
    ...
    ValueError: rho must be finite and at least 0, got -1.0; pass for example rho=0.05
  """
  if isinstance(value, numbers.Real) and not 0 <= float(value) < math.inf:
    raise ValueError(
      f"{name} must be finite and at least 0, got {value!r}; pass for "
      f"example {name}=0.05"
    )
