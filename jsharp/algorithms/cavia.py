"""CAVIA: fast context adaptation (Zintgraf et al. 2019, arXiv 1810.03642).

    context = 0;  num_inner_steps times:
      context = context - inner_lr * grad_context(support loss)(params, context)
    params = outer_optimizer(params, mean over tasks of
                             grad_params(query loss(params, context)))

MAML whose inner loop changes only a small context vector, an extra input of the model;
everything except the context is meta-learned. The meta-gradient is exact;
`cavia(jsharp.losses.first_order(loss_fn), ...)` is the first-order form. Cost of one
meta-step and task: MAML's, except that the inner gradients stop where the context
enters the model.

The paper and its code (github.com/lmzintgraf/cavia): SGD with step 1.0 on a mean loss
in the inner loop and Adam at 1e-3 in the outer. Sinusoid: 5 context parameters,
concatenated to the input of a 40-40 ReLU network, one step, 25 tasks
(`jsharp.models.ContextMLP`). mini-ImageNet: 100 context parameters that scale and shift
the channels of the third of four blocks, two steps, 16 tasks
(`jsharp.models.ContextConv4`). The code clips the meta-gradient of each task to
[-10, 10]; `optax.clip(10.0)` in front of the outer optimizer clips the mean instead.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jsharp import losses
from jsharp._checks import check_count
from jsharp.algorithms._bundle import bundle
from jsharp.algorithms._options import (
  InnerLoop,
  Made,
  Phases,
  Problem,
  SecondOrderOptions,
  Sharpness,
  constant_cost,
)
from jsharp.core.adaptation import inner_loop
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.models import as_context_functions, first_outputs
from jsharp.options import at_least, option
from jsharp.types import (
  Batch,
  LossFn,
  MetaAlgorithm,
  Params,
  TaskLossFn,
)


class Contextual(NamedTuple):
  """A model and the context of one task: what CAVIA's `adapt` returns.

  Attributes:
    params: the meta-learned parameters, the same for all tasks.
    context: the context vector that the inner loop found for this task.
  """

  params: Params
  context: Params


def cavia(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  context: Params,
  num_inner_steps: int,
  query_loss_fn: TaskLossFn | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds CAVIA.

  Args:
    loss_fn: `loss_fn(contextual, batch) -> (loss, metrics)` of one task, where
      `contextual` is `Contextual(params, context)`.
    inner_optimizer: any optax optimizer, `optax.sgd(1.0)` in the paper. It sees
      `Contextual(None in place of each parameter, context)`.
    outer_optimizer: any optax optimizer.
    context: arrays with the context's shapes and dtypes, such as `jnp.zeros(5)`; their
      values are not used. Every task starts from zeros.
    num_inner_steps: inner steps in training.
    query_loss_fn: `(contextual, task) -> (loss, metrics)` for the meta-objective;
      `loss_fn` on the query set if None.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`. `init` and the state use plain
    `params`; `adapt` returns a `Contextual`.

  Raises:
    ValueError: if a count is out of range or `context` has no array.

  Example:
    >>> from jsharp import Task
    >>> loss_fn = lambda c, x: (jnp.mean((c.params * (1 + c.context) - x) ** 2), {})
    >>> algorithm = cavia(
    ...   loss_fn, optax.sgd(0.125), optax.sgd(1.0), context=jnp.zeros(()),
    ...   num_inner_steps=1)
    >>> float(algorithm.adapt(2.0, jnp.array([2.0, 4.0])).context)
    0.5
  """
  if not jax.tree.leaves(context):
    raise ValueError(
      f"context must hold at least one array, got {context!r}; pass for example "
      "context=jnp.zeros(5)"
    )

  def zeros() -> Params:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.result_type(x.dtype)), context)

  def context_only(contextual: Contextual) -> Contextual:
    return Contextual(
      params=jax.tree.map(lambda _: False, contextual.params),
      context=jax.tree.map(lambda _: True, contextual.context),
    )

  loop = inner_loop(
    loss_fn,
    inner_optimizer,
    num_steps=check_count("num_inner_steps", num_inner_steps, minimum=0),
    adapted_mask=context_only,
    execution=execution,
  )

  def adapt(
    params: Params,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
  ) -> Contextual:
    start = Contextual(params, zeros())
    adapted: Contextual = loop(start, support, num_steps=num_steps, optimizer=optimizer)
    return adapted

  return bundle(
    adapt,
    query_loss_fn or on_query(loss_fn),
    outer_optimizer,
    execution=execution,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAVIA(InnerLoop, SecondOrderOptions):
  """CAVIA: a context vector adapts (Zintgraf et al. 2019)."""

  name: ClassVar[str] = "cavia"
  any_loss: ClassVar[bool] = False
  beyond_backbone: ClassVar[tuple[str, ...]] = ("film",)

  context_size: int | None = option(
    None,
    "Length of the context vector that is adapted. Default: 100 for images, 5 for sine "
    "waves.",
    check=at_least(1),
  )

  def make(self, problem: Problem) -> Made:
    is_regression = problem.criterion is losses.squared_error
    size = self.context_size or (5 if is_regression else 100)
    module = problem.network.with_context(
      problem.num_outputs, size, convolution=problem.execution.convolution
    )
    init_fn, apply_fn = problem.functions(module, as_context_functions)
    optimizers = self.optimizers(problem, self.inner_lr)

    def algorithm(way: int) -> MetaAlgorithm:
      loss_fn = losses.batch_loss(first_outputs(apply_fn, way), problem.criterion)
      loss_fn, options = self.remembering(loss_fn)
      return cavia(
        loss_fn,
        optimizers["inner_optimizer"],
        problem.outer.optimizer(problem.sharpness),
        context=jnp.zeros(size),
        num_inner_steps=self.num_inner_steps,
        execution=problem.execution,
        **options,
      )

    return Made(
      params=init_fn(problem.key, problem.inputs),
      algorithm=algorithm,
      predict=functools.partial(first_outputs, apply_fn),
      at_test=optimizers["at_test"],
    )

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    # Few numbers are adapted, but their gradient passes through the whole network.
    gradients, products = self.cost_of_steps(sharpness)
    cost = self.num_inner_steps * (gradients + 2 * products) * support + query
    return constant_cost(cost, sharpness.loops(self)[1])
