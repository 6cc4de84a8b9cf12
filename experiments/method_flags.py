"""The flags of single algorithms, and of what composes with all of them.

A flag of single algorithms that is changed with another one is refused, so that no one
believes in an effect that is not there.
"""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from absl import flags

from experiments.validators import positive

flags.disclaim_key_flags()  # as in common_flags.py

SHARP_MAML = {
  "sharp_maml_low": "low",
  "sharp_maml_up": "up",
  "sharp_maml_both": "both",
}
WITHOUT_INNER_GRADIENT = ("protonet", "ridge", "black_box")

# Whose meta-gradient goes back through inner gradients of the whole loss.
SECOND_ORDER = (
  "maml",
  *SHARP_MAML,
  "boil",
  "cavia",
  "maml_plus_plus",
  "meta_sgd",
)

# Which algorithms read a flag; flags that are not here concern all.
READERS = {
  "second_order": SECOND_ORDER,
  "initial_rates": ("meta_sgd",),
  "inner_batch_size": ("reptile",),
  "eval_inner_batch_size": ("reptile",),
  "keep_inner_state": ("reptile",),
  "proximity": ("imaml",),
  "num_cg_steps": ("imaml",),
  "multi_step_loss_steps": ("maml_plus_plus",),
  "first_order_steps": ("maml_plus_plus",),
  "per_step_norm": ("maml_plus_plus",),
  "running_statistics": ("maml_plus_plus",),
  "learn_rates": ("maml_plus_plus",),
  "context_size": ("cavia",),
  "width": ("black_box",),
  "num_layers": ("black_box",),
  "num_heads": ("black_box",),
}


def define_methods(flag_values: flags.FlagValues) -> None:
  """Defines the flags of the algorithms."""
  _define_optimizers(flag_values)
  _define_reptile(flag_values)
  _define_maml_plus_plus(flag_values)
  _define_others(flag_values)


def _define_optimizers(f: flags.FlagValues) -> None:
  flags.DEFINE_enum(
    "sharpness",
    "none",
    ("none", "low", "up", "both"),
    "SAM at the inner loop (low, radius --inner_rho), at the outer loop (up, radius "
    "--outer_rho) or at both, with any algorithm that has such a loop. sharp_maml_low, "
    "_up and _both are maml with it.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "inner_optimizer",
    "sgd",
    ("sgd", "adam"),
    "sgd, or Adam without momentum (beta1 = 0), as in Reptile's code.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "outer_optimizer", "adam", ("adam", "sgd"), "At the outer loop.", flag_values=f
  )
  flags.DEFINE_enum(
    "outer_schedule",
    "constant",
    ("constant", "cosine", "linear"),
    "How --outer_lr falls to --final_outer_lr over --outer_schedule_steps: cosine as "
    "in MAML++, linear as in Reptile.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "outer_schedule_steps",
    None,
    "Meta-steps that the schedule takes; afterwards the rate stays.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "final_outer_lr", 0.0, "Where the schedule of --outer_lr ends.", flag_values=f
  )
  flags.DEFINE_integer(
    "ensemble",
    1,
    "Tests the ensemble of so many checkpoints too, those that were best in "
    "validation; 5 in MAML++.",
    flag_values=f,
  )
  positive(("outer_schedule_steps", "ensemble"), f, "give a number of at least 1.")
  flags.register_validator(
    "final_outer_lr",
    lambda value: 0 <= value < float("inf"),
    message="must be at least 0 and finite.",
    flag_values=f,
  )


def _define_reptile(f: flags.FlagValues) -> None:
  flags.DEFINE_integer(
    "inner_batch_size",
    None,
    "reptile: support examples per inner step in training; a step takes the next ones "
    "in turn. Default: all.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "eval_inner_batch_size",
    None,
    "reptile: the same at validation and test. Default: as --inner_batch_size.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "keep_inner_state",
    False,
    "reptile: hand the inner optimizer's state on from task to task, as its code does.",
    flag_values=f,
  )
  positive(
    ("inner_batch_size", "eval_inner_batch_size"), f, "give a number of at least 1."
  )


def _define_maml_plus_plus(f: flags.FlagValues) -> None:
  flags.DEFINE_integer(
    "multi_step_loss_steps",
    5000,
    "maml_plus_plus: meta-steps over which the weights of the losses after each inner "
    "step move to the last one; 0 for the last one alone. 5000 in its code.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "first_order_steps",
    0,
    "maml_plus_plus: meta-steps with the first-order gradient before the exact one; 0 "
    "in the code, 50 epochs in the paper.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "per_step_norm",
    True,
    "maml_plus_plus: a normalisation scale and offset of its own for each inner step.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "running_statistics",
    False,
    "maml_plus_plus: normalise at validation and test by running statistics kept per "
    "inner step, as in the paper. Its code, and the default, use those of the batch, "
    "which did far better with one example per class (docs/results.md).",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "learn_rates",
    True,
    "maml_plus_plus: learn a rate per parameter array and inner step, from --inner_lr.",
    flag_values=f,
  )
  for name in ("multi_step_loss_steps", "first_order_steps"):
    flags.register_validator(
      name,
      lambda value: value >= 0,
      message="must be at least 0; 0 switches it off.",
      flag_values=f,
    )


def _define_others(f: flags.FlagValues) -> None:
  flags.DEFINE_list(
    "initial_rates",
    ["0.005", "0.1"],
    "meta_sgd: LOW,HIGH between which the learned rates start, uniformly.",
    flag_values=f,
  )
  flags.register_validator(
    "initial_rates",
    _is_range,
    message="needs two numbers LOW,HIGH with LOW <= HIGH, as in 0.005,0.1.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "proximity",
    2.0,
    "imaml: weight of the squared distance to the meta-parameters in the inner "
    "problem, lambda in the paper.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_cg_steps", 5, "imaml: steps of conjugate gradients.", flag_values=f
  )
  flags.DEFINE_integer(
    "context_size",
    None,
    "cavia: numbers that are adapted. Default: 100 for images, 5 for sine waves.",
    flag_values=f,
  )
  flags.DEFINE_integer("width", 64, "black_box: width of a token.", flag_values=f)
  flags.DEFINE_integer(
    "num_layers", 3, "black_box: layers of the transformer.", flag_values=f
  )
  flags.DEFINE_integer("num_heads", 4, "black_box: heads per layer.", flag_values=f)
  positive(("proximity",), f, "2 in the paper.")
  positive(
    ("num_cg_steps", "context_size", "width", "num_layers", "num_heads"),
    f,
    "give a number of at least 1.",
  )


def unread(flag_values: flags.FlagValues, names: Iterable[str]) -> str | None:
  """What is wrong with flags that were changed and are not read, None if all are.

  Args:
    flag_values: the parsed flags.
    names: those of the experiment; without the flags of algorithms all are read.
  """
  names = list(names)
  if "sharpness" not in names:
    return None
  algorithm: Any = flag_values["algorithm"].value
  changed = [f for f in names if flag_values[f].value != flag_values[f].default]
  for flag in changed:
    readers = READERS.get(flag)
    if readers and algorithm not in readers:
      return (
        f"--{flag} has no effect with --algorithm={algorithm}; it belongs to "
        f"{', '.join(readers)}: drop the one or change the other"
      )
  return None


def _is_range(value: list[str]) -> bool:
  try:
    low, high = map(float, value)
  except ValueError:  # not two, or no numbers
    return False
  return low <= high and abs(low) + abs(high) < float("inf")


def sharp_loops(settings: SimpleNamespace) -> tuple[bool, bool]:
  """Whether SAM stands in the inner and in the outer loop."""
  where = SHARP_MAML.get(settings.algorithm, settings.sharpness)
  return where in ("low", "both"), where in ("up", "both")
