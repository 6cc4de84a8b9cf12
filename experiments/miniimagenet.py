r"""Few-shot recognition of photographs (mini-ImageNet).

How well does a network that has seen one or five photographs of each of 5 new
classes name further ones?

  python -m experiments.miniimagenet --data_dir=DIRECTORY \
    --flagfile=experiments/flagfiles/sharp_maml_both_miniimagenet_5way_1shot.txt

The defaults are MAML's published 5-way 1-shot setting, 48.7 +- 1.8 percent in the
paper (Finn, Abbeel and Levine, 2017); Sharp-MAML both reports 50.3 (Abbas et al.,
2022). 60,000 meta-steps of 4 tasks is work for a GPU: docs/performance.md has the
measured tasks per second of a CPU.
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
  "dataset": "miniimagenet",
  "num_filters": 32,
  "num_tasks": 4,
  "query_shot": 15,
  "inner_lr": 0.05,
  "num_inner_steps": 5,
  "num_eval_inner_steps": 10,
  "clip_meta_gradient": 10.0,
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
  program.start("miniimagenet", define_flags, build)
