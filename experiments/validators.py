"""What flags refuse, for those that several experiments share."""

import math
from collections.abc import Iterable

from absl import flags

flags.disclaim_key_flags()  # as in common_flags.py


def positive(names: Iterable[str], flag_values: flags.FlagValues, fix: str) -> None:
  """Makes flags refuse what is not positive and finite; None is their default."""
  for name in names:
    flags.register_validator(
      name,
      lambda value: value is None or (value > 0 and math.isfinite(value)),
      message=f"must be positive and finite; {fix}",
      flag_values=flag_values,
    )


def seeds(names: Iterable[str], flag_values: flags.FlagValues) -> None:
  """Makes flags refuse what is no seed."""
  for name in names:
    flags.register_validator(
      name,
      lambda value: 0 <= value < 2**31,
      message="must lie between 0 and 2147483647.",
      flag_values=flag_values,
    )


def norms(names: Iterable[str], flag_values: flags.FlagValues) -> None:
  """Makes flags refuse what is no order of a norm; None is their default."""
  for name in names:
    flags.register_validator(
      name,
      lambda value: value is None or value >= 1,
      message="must lie between 1 and inf; 2 is the papers' norm.",
      flag_values=flag_values,
    )
