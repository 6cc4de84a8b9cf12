"""The flags that the experiments share, each refused early where it makes no sense.

Flags are defined by functions on a given `FlagValues`, not at import, so that every
experiment has its own defaults and tests can parse as many command lines as they
like. Nothing heavy is imported here: `--help` has to be quick.
"""

import math
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments import process_flags, resource_flags
from experiments.validators import norms, positive, seeds

ALGORITHMS = (
  "maml",
  "fomaml",
  "sharp_maml_low",
  "sharp_maml_up",
  "sharp_maml_both",
  "maml_plus_plus",
  "meta_sgd",
  "anil",
  "boil",
  "reptile",
  "imaml",
  "cavia",
  "protonet",
  "ridge",
  "black_box",
)

RHO = 0.0005
"""Radius of Sharp-MAML's authors at either loop."""

# Messages and registrations name the module that calls `define_*`, so that --help
# lists the flags under the experiment itself.
flags.disclaim_key_flags()


def define_run(flag_values: flags.FlagValues) -> None:
  """Defines the flags of any run: where it lies, its seed, its records."""
  f = flag_values
  flags.DEFINE_string(
    "run_dir",
    None,
    "Directory of the run: checkpoints, metrics, result. The same command with the "
    "same directory goes on where it stopped. Default: runs/, with a name made of "
    "the experiment, the algorithm, the kind of task and the seed.",
    flag_values=f,
  )
  flags.DEFINE_string(
    "compilation_cache_dir",
    "~/.cache/jsharp/xla",
    "Directory for compiled programs, so that a second start need not compile "
    "again. It holds native code: it is created for you alone and "
    "refused if others can write to it. Empty: no cache.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the initial parameters and of what is trained on when.",
    flag_values=f,
  )
  flags.DEFINE_enum(
    "precision",
    "float32",
    ("float32", "tf32", "bfloat16"),
    "What the network's products are computed in: float32 on every device; tf32 where "
    "a GPU has it, else float32; bfloat16, forward and backward, with parameters, "
    "updates, losses and metrics in float32.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "log_every", 50, "Steps from one line of metrics to the next.", flag_values=f
  )
  flags.DEFINE_float(
    "checkpoint_seconds",
    60.0,
    "Seconds from one checkpoint to the next: what a power cut can cost. Ctrl-C and "
    "SIGTERM save by themselves.",
    flag_values=f,
  )
  seeds(("seed",), f)
  positive(("log_every",), f, "give a number of at least 1.")
  positive(("checkpoint_seconds",), f, "usual values lie between 10 and 600.")


def define_meta_learning(flag_values: flags.FlagValues) -> None:
  """Defines the flags of the algorithm, the loops and the run."""
  f = flag_values
  flags.DEFINE_enum(
    "algorithm", "maml", ALGORITHMS, "The meta-learning algorithm.", flag_values=f
  )
  define_run(f)
  flags.DEFINE_integer(
    "eval_seed",
    0,
    "Seed of the validation and test tasks; apart from --seed, so that runs of "
    "several seeds are measured on the same tasks.",
    flag_values=f,
  )
  seeds(("eval_seed",), f)
  _define_task_flags(f)
  _define_loop_flags(f)
  resource_flags.define(f)
  process_flags.define(f)
  _define_sharpness_flags(f)


def _define_task_flags(f: flags.FlagValues) -> None:
  flags.DEFINE_integer("shot", 1, "Support examples per class and task.", flag_values=f)
  flags.DEFINE_integer(
    "query_shot",
    None,
    "Query examples per class and task. In classification the query set is also one "
    "normalisation batch, so this number changes the result. Default: as --shot.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "eval_query_shot",
    None,
    "Query examples per class at validation and test. Default: as --query_shot.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "eval_tasks",
    600,
    "Test tasks, always the same ones. 600 is the papers' number; the interval "
    "shrinks with its square root.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "val_tasks",
    200,
    "Validation tasks, always the same ones; the checkpoint that is best on them is "
    "the one that is tested.",
    flag_values=f,
  )
  positive(
    ("shot", "query_shot", "eval_query_shot", "val_tasks"),
    f,
    "give a number of at least 1.",
  )
  flags.register_validator(
    "eval_tasks",
    lambda value: value >= 2,
    message="an interval needs at least 2 tasks; the papers use 600.",
    flag_values=f,
  )


def _define_loop_flags(f: flags.FlagValues) -> None:
  flags.DEFINE_integer(
    "num_tasks",
    4,
    "Tasks per meta-step; their meta-gradients are averaged.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_steps",
    60_000,
    "Meta-steps in all. No schedule depends on it: a finished run can be made longer.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "num_inner_steps", 1, "Gradient steps on the support set.", flag_values=f
  )
  flags.DEFINE_integer(
    "num_eval_inner_steps",
    None,
    "The same at validation and test. Default: as --num_inner_steps.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "inner_lr",
    0.01,
    "Step size of the inner optimizer, for the MEAN loss over the support set. MAML's "
    "published rates belong to a loss summed over the classes: multiply them by "
    "--way.",
    flag_values=f,
  )
  flags.DEFINE_float(
    "outer_lr", 1e-3, "Step size of the outer optimizer.", flag_values=f
  )
  flags.DEFINE_float(
    "clip_meta_gradient",
    None,
    "Clips every entry of the meta-gradient to +- this value before Adam; MAML's code "
    "uses 10 on mini-ImageNet. 0: no clipping.",
    flag_values=f,
  )
  flags.DEFINE_integer(
    "eval_every",
    500,
    "Meta-steps from one validation to the next. It decides which parameters can "
    "become the best checkpoint, so a run keeps it.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "keep_path",
    False,
    "Keep the initial parameters and those of every validation, to draw the way of "
    "training in a landscape: one copy of the parameters each (4 bytes per number), "
    "num_steps / eval_every + 1 in all.",
    flag_values=f,
  )
  positive(
    (
      "num_tasks",
      "num_steps",
      "num_inner_steps",
      "num_eval_inner_steps",
      "eval_every",
    ),
    f,
    "give a number of at least 1.",
  )
  positive(
    ("inner_lr", "outer_lr"), f, "usual values lie between 0.0001 and 2, see --help."
  )
  flags.register_validator(
    "clip_meta_gradient",
    lambda value: value is None or 0 <= value < math.inf,
    message="must be at least 0 and finite; 0 trains without clipping.",
    flag_values=f,
  )


def _define_sharpness_flags(f: flags.FlagValues) -> None:
  flags.DEFINE_float(
    "inner_rho",
    RHO,
    "Radius of the perturbation in each inner step (sharp_maml_low, sharp_maml_both, "
    "--sharpness=low or both).",
    flag_values=f,
  )
  flags.DEFINE_float(
    "outer_rho",
    RHO,
    "Radius of the perturbation of the meta-parameters (sharp_maml_up, "
    "sharp_maml_both, --sharpness=up or both).",
    flag_values=f,
  )
  flags.DEFINE_float(
    "p",
    2.0,
    "Norm of the ball that the perturbation lies in, from 1 to inf.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "adaptive",
    False,
    "Scale the ball by the size of each parameter (ASAM).",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "differentiate_perturbation",
    True,
    "Differentiate the meta-gradient through the inner perturbation, as the authors' "
    "code does.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "reuse_perturbation",
    False,
    "sharp_maml_both: in the second pass take the inner perturbation of the first, as "
    "in equation (14) of the paper, where the authors' code computes it anew.",
    flag_values=f,
  )
  flags.DEFINE_boolean(
    "sharp_adaptation",
    None,
    "Perturb the inner steps at validation and test too. Default, as in the authors' "
    "test script: with sharp_maml_low only.",
    flag_values=f,
  )
  positive(
    ("inner_rho", "outer_rho"), f, "without a perturbation use --algorithm=maml."
  )
  norms(("p",), f)


def set_defaults(flag_values: flags.FlagValues, defaults: Mapping[str, Any]) -> None:
  """Gives an experiment its own defaults."""
  for name, value in defaults.items():
    flag_values.set_default(name, value)
