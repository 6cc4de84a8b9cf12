"""jsharp: functional few-shot meta-learning in JAX, sharpness-aware at either loop.

Both loops are optax: what an algorithm is, is decided by which links stand in
which chain.

    maml(loss_fn, optax.sgd(a), optax.adam(b), num_inner_steps=5)
    sharp_maml(..., inner_rho=5e-4, outer_rho=5e-4)       # SAM at both levels
    optax.chain(jsharp.sam(0.05), optax.adamw(1e-3))      # SAM in any optax chain
"""

from jsharp import losses, normalization
from jsharp.adaptation import inner_loop
from jsharp.algorithms import fomaml, maml, sharp_maml
from jsharp.objectives import after_adaptation, over_tasks
from jsharp.sam import conjugate, sam, sam_ascent, scale_to_ball, sharpness_aware
from jsharp.transforms import stop_gradient
from jsharp.types import Batch, MetaAlgorithm, MetaState, Task

__version__ = "0.1.0"

__all__ = [
  "Batch",
  "MetaAlgorithm",
  "MetaState",
  "Task",
  "after_adaptation",
  "conjugate",
  "fomaml",
  "inner_loop",
  "losses",
  "maml",
  "normalization",
  "over_tasks",
  "sam",
  "sam_ascent",
  "scale_to_ball",
  "sharp_maml",
  "sharpness_aware",
  "stop_gradient",
]
