"""jsharp: functional few-shot meta-learning in JAX, sharpness-aware at either loop.

Both loops are optax: what an algorithm is, is decided by which links stand in
which chain.

    maml(loss_fn, optax.sgd(a), optax.adam(b), num_inner_steps=5)
    sharp_maml(..., inner_rho=5e-4, outer_rho=5e-4)       # SAM at both levels
    optax.chain(jsharp.sam(0.05), optax.adamw(1e-3))      # SAM in any optax chain
"""

from jsharp import losses, normalization
from jsharp.algorithms import (
  anil,
  annealed_step_weights,
  black_box,
  boil,
  cavia,
  fomaml,
  imaml,
  maml,
  maml_plus_plus,
  meta_sgd,
  protonet,
  reptile,
  ridge,
  sharp_maml,
)
from jsharp.core.adaptation import inner_loop
from jsharp.core.execution import Execution
from jsharp.core.objectives import after_adaptation, on_query, over_tasks
from jsharp.core.transforms import learned_rates, learned_step_rates, stop_gradient
from jsharp.perturbations import (
  asam,
  centre,
  conjugate,
  follow_running_mean,
  friendly_sam,
  functional_sam,
  gsam,
  interpolate,
  late_sam,
  le_sam,
  leave_running_mean,
  looksam,
  momentum_sam,
  oppose,
  pmean,
  renormalize,
  repeat,
  restrict,
  sam,
  sam_ascent,
  sam_every,
  scale_to_ball,
  sharpen,
  sharpness_aware,
  vasso,
  wsam,
)
from jsharp.types import Batch, MetaAlgorithm, MetaState, Task

__version__ = "0.1.0"

__all__ = [
  "Batch",
  "Execution",
  "MetaAlgorithm",
  "MetaState",
  "Task",
  "after_adaptation",
  "anil",
  "annealed_step_weights",
  "asam",
  "black_box",
  "boil",
  "cavia",
  "centre",
  "conjugate",
  "follow_running_mean",
  "fomaml",
  "friendly_sam",
  "functional_sam",
  "gsam",
  "imaml",
  "inner_loop",
  "interpolate",
  "late_sam",
  "le_sam",
  "learned_rates",
  "learned_step_rates",
  "leave_running_mean",
  "looksam",
  "losses",
  "maml",
  "maml_plus_plus",
  "meta_sgd",
  "momentum_sam",
  "normalization",
  "on_query",
  "oppose",
  "over_tasks",
  "pmean",
  "protonet",
  "renormalize",
  "repeat",
  "reptile",
  "restrict",
  "ridge",
  "sam",
  "sam_ascent",
  "sam_every",
  "scale_to_ball",
  "sharp_maml",
  "sharpen",
  "sharpness_aware",
  "stop_gradient",
  "vasso",
  "wsam",
]
