r"""Few-shot recognition of handwritten characters (Omniglot).

How well does a network that has seen one or five drawings of each of 5 or 20 new
characters name further drawings of them?

  python -m experiments.omniglot --data_dir=DIRECTORY \
    --flagfile=experiments/flagfiles/maml_omniglot_5way_1shot.txt
  python -m experiments.omniglot --flagfile=experiments/flagfiles/quickstart.txt

The defaults are MAML's published 5-way 1-shot setting, 98.7 +- 0.4 percent in the
paper (Finn, Abbeel and Levine, 2017), in 60,000 meta-steps; docs/performance.md
has the measured tasks per second. The quickstart needs no data and takes minutes.
"""

from types import SimpleNamespace
from typing import Any

from absl import flags

from experiments import (
  classification_flags,
  common_flags,
  method_flags,
  program,
  task_flags,
)

DEFAULTS = {
  "dataset": "omniglot",
  "model": "conv4_strided",
  "num_tasks": 32,
  "inner_lr": 2.0,
  "num_eval_inner_steps": 3,
}


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags of this experiment."""
  common_flags.define_meta_learning(flag_values)
  classification_flags.define_classification(flag_values)
  method_flags.define_methods(flag_values)
  task_flags.define_tasks(flag_values)
  common_flags.set_defaults(flag_values, DEFAULTS)


def build(settings: SimpleNamespace) -> Any:
  """Builds the parts of a run from the values of the flags."""
  from experiments import classification

  return classification.build(settings)


if __name__ == "__main__":
  program.start("omniglot", define_flags, build)
