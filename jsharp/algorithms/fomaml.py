"""First-order MAML (Finn et al. 2017, section 5.2; Nichol et al. 2018).

    params = outer_optimizer(params, mean over tasks of grad(query loss)(adapted))

MAML on `first_order(loss_fn)`: every inner gradient is treated as a constant, so under
SGD the Jacobian of the inner loop is the identity. With SGD it equals
`maml(loss_fn, optax.chain(jsharp.stop_gradient(), optax.sgd(inner_lr)), ...)`;
unlike that link, it also works with inner optimizers that evaluate gradients
themselves, such as SAM. Cost: `num_inner_steps + 1` gradients per task.
"""

import dataclasses
from typing import Any, ClassVar

import optax

from jsharp.algorithms._options import (
  InnerLoop,
  Made,
  NormOptions,
  Phases,
  Problem,
  Sharpness,
  constant_cost,
  gradient_based,
)
from jsharp.algorithms.maml import MAML, maml
from jsharp.losses import first_order
from jsharp.types import LossFn, MetaAlgorithm


def fomaml(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  **options: Any,
) -> MetaAlgorithm:
  """Builds first-order MAML.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    inner_optimizer: any optax optimizer.
    outer_optimizer: any optax optimizer.
    **options: the keyword arguments of `jsharp.algorithms.maml`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: as `jsharp.algorithms.maml` does.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp import Batch, Task
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = fomaml(loss_fn, optax.sgd(0.25), optax.sgd(0.5), num_inner_steps=1)
    >>> batch = Batch(None, jnp.array([[0.0], [2.0]]))
    >>> state, _ = algorithm.step(algorithm.init(3.0), Task(batch, batch))
    >>> float(state.params)
    2.0
  """
  return maml(first_order(loss_fn), inner_optimizer, outer_optimizer, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FOMAML(InnerLoop, NormOptions):
  """First-order MAML (Finn et al. 2017)."""

  name: ClassVar[str] = "fomaml"

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, self.inner_lr)

    def build(loss_fn: LossFn) -> MetaAlgorithm:
      return fomaml(
        loss_fn,
        optimizers["inner_optimizer"],
        problem.outer.optimizer(problem.sharpness),
        num_inner_steps=self.num_inner_steps,
        adapted_mask=self.mask(problem),
        execution=problem.execution,
      )

    return gradient_based(problem, build, optimizers["at_test"])

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, _ = self.cost_of_steps(sharpness)
    cost = self.num_inner_steps * gradients * support + query
    return constant_cost(cost, sharpness.loops(self)[1])

  def exact(self) -> MAML:
    values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return MAML(**values)
