r"""Few-shot recognition of handwritten characters (Omniglot).

How well does a network recognise 5 or 20 new characters after seeing one or five
drawings of each?

  python -m experiments.omniglot --data_dir=DIRECTORY \
    --flagfile=experiments/flagfiles/maml_omniglot_5way_1shot.txt
  python -m experiments.omniglot --flagfile=experiments/flagfiles/quickstart.txt

The defaults are MAML's published 5-way 1-shot setting, 98.7 +- 0.4 percent in the
paper (Finn, Abbeel and Levine, 2017), in 60,000 meta-steps; docs/performance.md
has measured speeds. The quickstart needs no data and takes minutes.
"""

from experiments import _program
from experiments._few_shot import image_experiment

EXPERIMENT = image_experiment(
  "omniglot",
  {
    "dataset": "omniglot",
    "model": "conv4_strided",
    "num_tasks": 32,
    "inner_lr": 2.0,
    "num_eval_inner_steps": 3,
  },
  __doc__,
)

if __name__ == "__main__":
  _program.main(EXPERIMENT)
