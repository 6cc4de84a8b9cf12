"""The parts of both loops: adaptation, optimizer steps, objectives and optax links.

Use them to build an algorithm of your own. `Execution` says how it is computed.
"""

from jsharp.core.adaptation import (
  adapted_value_and_grad,
  inner_loop,
  join,
  repeated,
  split,
)
from jsharp.core.descent import ValueAndGradFn, descend
from jsharp.core.execution import Execution
from jsharp.core.linear_systems import conjugate_gradients
from jsharp.core.objectives import (
  after_adaptation,
  on_query,
  over_tasks,
  sum_over_devices,
)
from jsharp.core.second_order import forward_over_reverse, recomputed
from jsharp.core.transforms import (
  LearnedStepRatesState,
  adaptive_grad_clip,
  clip_by_block_rms,
  clip_by_global_norm,
  learned_rates,
  learned_step_rates,
  stop_gradient,
)

__all__ = [
  "Execution",
  "LearnedStepRatesState",
  "ValueAndGradFn",
  "adapted_value_and_grad",
  "adaptive_grad_clip",
  "after_adaptation",
  "clip_by_block_rms",
  "clip_by_global_norm",
  "conjugate_gradients",
  "descend",
  "forward_over_reverse",
  "inner_loop",
  "join",
  "learned_rates",
  "learned_step_rates",
  "on_query",
  "over_tasks",
  "recomputed",
  "repeated",
  "split",
  "stop_gradient",
  "sum_over_devices",
]
