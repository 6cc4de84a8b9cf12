"""The flags of tasks that are unlike each other, or unlike those of training."""

import math
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.classification_flags import DATASETS, one_of_datasets
from experiments.validators import positive

flags.disclaim_key_flags()  # as in common_flags.py

DISTORTIONS = {"rotation": 0.0, "shear": 0.0, "scale": 1.0}
"""What can be bent, and the value that bends nothing."""


def define_tasks(flag_values: flags.FlagValues) -> None:
  """Defines the flags of shapes, noise, distortion and the data of the test."""
  f = flag_values
  flags.DEFINE_integer(
    "num_seeds",
    1,
    "Trains so many seeds, from --seed on, in one program; each by itself, with "
    "parameters and tasks of its own. The checkpoint that is tested is the one with "
    "the best validation on average over the seeds.",
    flag_values=f,
  )
  positive(("num_seeds",), f, "give a number of at least 1.")
  for name, other in (("way", "--way"), ("shot", "--shot")):
    flags.DEFINE_list(
      f"train_{name}",
      None,
      f"As {other}, in training. Several numbers, as in 5,10,20: every meta-step draws "
      f"one of them. Default: as {other}.",
      flag_values=f,
    )
    flags.DEFINE_list(
      f"eval_{name}",
      None,
      f"Further values of {other} that the chosen checkpoint is tested with, each "
      "reported by itself.",
      flag_values=f,
    )
    for flag in (f"train_{name}", f"eval_{name}"):
      _validate(f, flag, _counts, "needs whole numbers of at least 1, as in 5,10.")
  for sets, effect in (
    ("support", "in training and at test"),
    ("query", "in training; test labels are never wrong"),
  ):
    flags.DEFINE_float(
      f"{sets}_label_noise",
      0.0,
      f"Share of wrong labels in the {sets} sets, {effect}.",
      flag_values=f,
    )
  flags.DEFINE_list(
    "eval_support_label_noise",
    None,
    "Shares of wrong support labels that the chosen checkpoint is tested with besides, "
    "as in 0,0.2,0.4, each reported by itself.",
    flag_values=f,
  )
  _validate(f, "eval_support_label_noise", _shares, "needs shares from 0 to 1.")
  for name in ("support_label_noise", "query_label_noise"):
    _validate(f, name, _share, "must lie between 0 and 1; 0.2 is 20 percent.")
  for name, unit in (
    ("rotation", "degrees"),
    ("shear", "columns per row"),
    ("scale", "times the size"),
  ):
    flags.DEFINE_list(
      name,
      None,
      f"Bends the images of every task alike: {name} in {unit}, uniform from LOW to "
      "HIGH by task, as in -20,20. In training, validation and test.",
      flag_values=f,
    )
    flags.DEFINE_list(
      f"eval_{name}",
      None,
      f"Values of {name} that the chosen checkpoint is tested with besides, as in "
      "0,30,60, each reported by itself.",
      flag_values=f,
    )
    _validate(f, name, _range, "needs LOW,HIGH with LOW <= HIGH, as in 0.8,1.2.")
    _validate(f, f"eval_{name}", _numbers, "needs finite numbers, as in 0,30,60.")
  flags.DEFINE_string(
    "test_dataset",
    None,
    "Tests on this dataset in place of --dataset: training and validation stay as they "
    "are. Values as for --dataset.",
    flag_values=f,
  )
  flags.DEFINE_string(
    "test_data_dir",
    None,
    "Directory of --test_dataset. Default: as --data_dir.",
    flag_values=f,
  )
  one_of_datasets(("test_dataset",), f, DATASETS)


def numbers(value: list[str] | None) -> list[float]:
  """The numbers of a list flag, none where it was not given."""
  return [float(entry) for entry in value or ()]


def counts(value: list[str] | None) -> list[int]:
  """The whole numbers of a list flag, none where it was not given."""
  return [int(entry) for entry in value or ()]


def _validate(
  flag_values: flags.FlagValues, name: str, accepts: Callable[[Any], bool], fix: str
) -> None:
  def validator(value: Any) -> bool:
    try:
      return value is None or accepts(value)
    except ValueError:  # no number at all
      return False

  flags.register_validator(name, validator, message=fix, flag_values=flag_values)


def _share(value: float) -> bool:
  return 0 <= value <= 1


def _shares(value: list[str]) -> bool:
  return bool(value) and all(0 <= share <= 1 for share in numbers(value))


def _counts(value: list[str]) -> bool:
  return bool(value) and min(counts(value)) >= 1


def _numbers(value: list[str]) -> bool:
  return bool(value) and all(map(math.isfinite, numbers(value)))


def _range(value: list[str]) -> bool:
  return (
    _numbers(value) and len(value) == 2 and sorted(numbers(value)) == numbers(value)
  )
