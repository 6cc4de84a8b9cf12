r"""Few-shot recognition of photographs (mini-ImageNet).

How well does a network classify photographs of 5 new classes after seeing one or five
examples of each?

  python -m experiments.miniimagenet --data_dir=DIRECTORY \
    --flagfile=experiments/flagfiles/sharp_maml_both_miniimagenet_5way_1shot.txt

The defaults are MAML's published 5-way 1-shot setting, 48.7 +- 1.8 percent in the
paper (Finn, Abbeel and Levine, 2017); Sharp-MAML both reports 50.3 (Abbas et al.,
2022). 60,000 meta-steps of 4 tasks need a GPU; docs/performance.md has measured speeds
on a CPU.
"""

from experiments import _program
from experiments._few_shot import image_experiment

EXPERIMENT = image_experiment(
  "miniimagenet",
  {
    "dataset": "miniimagenet",
    "num_filters": 32,
    "num_tasks": 4,
    "query_shot": 15,
    "inner_lr": 0.05,
    "num_inner_steps": 5,
    "num_eval_inner_steps": 10,
    "clip_meta_gradient": 10.0,
  },
  __doc__,
)

if __name__ == "__main__":
  _program.main(EXPERIMENT)
