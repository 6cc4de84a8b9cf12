"""iMAML: MAML with implicit gradients (Rajeswaran et al. 2019, arXiv 1909.04630).

    adapted = argmin over w of  support loss(w) + proximity / 2 * |w - params|^2,
              approached by num_inner_steps steps of inner_optimizer from params
    meta-gradient of a task = (I + H / proximity)^-1 grad(query loss)(adapted)
              with H the Hessian of the support loss at adapted

The implicit function theorem needs only the solution, not the path to it, so no
derivative goes through the inner steps and memory does not grow with their number.
The linear system is solved by `num_cg_steps` steps of conjugate gradients on
Hessian-vector products. The meta-gradient is as exact as the two solvers are. Cost of
one meta-step and task: `num_inner_steps` support gradients, `num_cg_steps + 1`
Hessian-vector products and one query gradient.

The paper takes proximity 2.0, 16 gradient steps on 5-way and 25 on 20-way Omniglot,
and 5 steps of conjugate gradients. Its released code
(github.com/aravindr93/imaml_dev) differs: plain gradient steps on the support loss with
one step on the proximal term after the last; the matrix `2 I + H / (proximity + 10)`;
by default proximity 1.0, step sizes of 0.01 at both levels and Adam with `eps=1e-3` in
the outer loop. Here the inner steps descend on the regularised loss, and the matrix is
the paper's.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jsharp._checks import check_count, check_positive
from jsharp.algorithms._bundle import bundle
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
from jsharp.core.adaptation import (
  adapted_value_and_grad,
  chosen_steps,
  inner_loop,
  join,
  split,
)
from jsharp.core.execution import Execution
from jsharp.core.linear_systems import conjugate_gradients
from jsharp.core.objectives import on_query
from jsharp.core.second_order import symmetric_map
from jsharp.options import at_least, option, positive
from jsharp.tree import (
  as_arrays,
  conjugate,
  inexact,
  inner_product,
)
from jsharp.types import (
  AdaptFn,
  Batch,
  LossFn,
  Mask,
  MetaAlgorithm,
  Metrics,
  Params,
  TaskLossFn,
)


def imaml(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  num_inner_steps: int,
  proximity: float,
  num_cg_steps: int = 5,
  query_loss_fn: TaskLossFn | None = None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> MetaAlgorithm:
  """Builds iMAML.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    inner_optimizer: any optax optimizer; the closer it comes to the solution, the
      better. The step size has to suit the curvature of the support loss plus
      `proximity`.
    outer_optimizer: any optax optimizer.
    num_inner_steps: inner steps in training.
    proximity: the weight of the proximal term, above 0; 2.0 in the paper. It has to
      exceed the support loss's most negative curvature for the inner problem to have
      one solution. With ReLU and max-pooling that solution may lie on a kink, where
      inner steps do not converge and the formula is not a derivative; a larger weight
      keeps the solution closer to the starting point.
    num_cg_steps: steps of conjugate gradients, at least 1.
    query_loss_fn: `(adapted, task) -> (loss, metrics)` for the meta-objective;
      `loss_fn` on the query set if None.
    adapted_mask: `params -> pytree of bool`, the leaves that the inner loop changes;
      all if None. The others are meta-learned, including their effect on the solution.
    execution: tasks at a time and form of the inner loop; see `jsharp.Execution`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: if a count is out of range or `proximity` is not above 0.

  Example:
    >>> from jsharp import Task
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = imaml(
    ...   loss_fn, optax.sgd(0.25), optax.sgd(1.0), num_inner_steps=1, proximity=2.0)
    >>> batch = Batch(None, jnp.array([[0.0], [2.0]]))
    >>> state = algorithm.init(3.0)
    >>> state, metrics = jax.jit(algorithm.step)(state, Task(batch, batch))
    >>> metrics["loss"].tolist(), float(state.params)  # One step solves it: half-way.
    ([2.25, 0.25], 2.0)
  """
  adapt = implicit_adaptation(
    loss_fn,
    inner_optimizer,
    num_steps=check_count("num_inner_steps", num_inner_steps, minimum=0),
    proximity=proximity,
    num_cg_steps=num_cg_steps,
    adapted_mask=adapted_mask,
    execution=execution,
  )
  return bundle(
    adapt,
    query_loss_fn or on_query(loss_fn),
    outer_optimizer,
    execution=execution,
  )


def implicit_adaptation(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  num_steps: int,
  proximity: float,
  num_cg_steps: int = 5,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
) -> AdaptFn:
  """An inner loop that is differentiated implicitly, as the solution of its problem.

  Only first-order reverse-mode derivatives are defined, and none with respect to the
  support set.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    optimizer: any optax optimizer.
    num_steps: steps on the support loss plus
      `proximity / 2 * |adapted - params|^2`.
    proximity: the weight of the proximal term, above 0.
    num_cg_steps: steps of conjugate gradients for the derivative.
    adapted_mask: which leaves are changed. The others are arguments of the inner
      problem.
    execution: how the steps are repeated.

  Returns:
    `adapt(params, support, *, num_steps=None, optimizer=None) -> adapted`, as from
    `jsharp.inner_loop`.

  Raises:
    ValueError: if a count is out of range or `proximity` is not above 0.

  Example:
    >>> loss_fn = lambda w, x: (1.5 * (w - x) ** 2, {})
    >>> adapt = implicit_adaptation(
    ...   loss_fn, optax.sgd(0.25), num_steps=1, proximity=1.0)
    >>> adapted, slope = jax.value_and_grad(adapt)(8.0, 0.0)
    >>> float(adapted), float(slope)
    (2.0, 0.25)
  """
  proximity = check_positive("proximity", proximity, example=2.0)
  usual_steps = check_count("num_steps", num_steps, minimum=0)
  usual_optimizer = optimizer
  num_cg_steps = check_count("num_cg_steps", num_cg_steps)

  def mask_of(complete: Any, constants: Any) -> Mask | None:
    """Restricts the mask of all parameters to the leaves that have a derivative."""
    if adapted_mask is None:
      return None

    def mask(point: Params) -> Any:
      return jax.tree.map(
        lambda x, keep: None if x is None else keep,
        point,
        adapted_mask(complete(point, constants)),
        is_leaf=lambda x: x is None,
      )

    return mask

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
  def solve(
    num_steps: int,
    optimizer: Any,
    complete: Any,
    params: Params,
    constants: Any,
    support: Batch,
  ) -> Params:
    def regularised(point: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
      loss, metrics = loss_fn(complete(point, constants), batch)
      difference = jax.tree.map(jnp.subtract, point, params)
      square = inner_product(difference, difference).astype(loss.dtype)
      return loss + proximity / 2 * square, metrics

    loop = inner_loop(
      regularised,
      optimizer,
      num_steps=num_steps,
      adapted_mask=mask_of(complete, constants),
      execution=execution,
    )
    return loop(params, support)

  def forward(
    num_steps: int,
    optimizer: Any,
    complete: Any,
    params: Params,
    constants: Any,
    support: Batch,
  ) -> tuple[Params, Any]:
    adapted = solve(num_steps, optimizer, complete, params, constants, support)
    return adapted, (params, constants, support, adapted)

  def backward(
    num_steps: int, optimizer: Any, complete: Any, residuals: Any, cotangent: Params
  ) -> tuple[Params, None, None]:
    del num_steps, optimizer
    params, constants, support, adapted = residuals

    def support_loss_fn(point: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
      return loss_fn(complete(point, constants), batch)

    mask = mask_of(complete, constants)
    solution, _ = split(adapted, mask)
    vector, by_others = split(cotangent, mask)
    vector = conjugate(vector)  # JAX's cotangent is the conjugate of a gradient.

    def optimality(solution: Params, params: Params) -> Params:
      """The gradient that is zero at the solution."""
      own, others = split(params, mask)
      _, gradient = adapted_value_and_grad(support_loss_fn, others, support)(solution)
      return jax.tree.map(
        lambda g, a, b: g + proximity * (a - b), gradient, solution, own
      )

    matrix = symmetric_map(lambda point: optimality(point, params), solution)
    x = conjugate_gradients(matrix, vector, num_steps=num_cg_steps)
    _, pull_back = jax.vjp(lambda params: optimality(solution, params), params)
    direct = join(jax.tree.map(jnp.zeros_like, vector), by_others)
    return jax.tree.map(jnp.subtract, direct, pull_back(conjugate(x))[0]), None, None

  solve.defvjp(forward, backward)

  def adapt(
    params: Params,
    support: Batch,
    *,
    num_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
  ) -> Params:
    length = chosen_steps(num_steps, usual_steps)
    variables, constants = inexact(as_arrays(params))
    # JAX does not accept other leaves, such as activation functions, as arguments.
    arrays = jax.tree.map(lambda x: x if hasattr(x, "dtype") else None, constants)
    static = jax.tree.map(lambda x: None if hasattr(x, "dtype") else x, constants)

    def complete(variables: Params, arrays: Any) -> Params:
      return join(variables, join(arrays, static))

    adapted = solve(
      length, optimizer or usual_optimizer, complete, variables, arrays, support
    )
    return complete(adapted, arrays)

  return adapt


@dataclasses.dataclass(frozen=True, kw_only=True)
class IMAML(InnerLoop, NormOptions):
  """Implicit MAML: the meta-gradient of a proximal problem (Rajeswaran et al. 2019)."""

  name: ClassVar[str] = "imaml"
  # One large step, as MAML takes on Omniglot, does not solve a proximal problem.
  own_defaults: ClassVar[tuple[str, ...]] = ("inner_lr",)
  # Conjugate gradients diverge if products have only 8 bits of precision.
  precisions: ClassVar[tuple[str, ...]] = ("float32", "tf32")

  proximity: float = option(
    2.0,
    "Weight of the squared distance to the meta-parameters in the inner problem, "
    "lambda in the paper.",
    check=positive("2 in the paper."),
  )
  num_cg_steps: int = option(5, "Steps of conjugate gradients.", check=at_least(1))

  def make(self, problem: Problem) -> Made:
    optimizers = self.optimizers(problem, self.inner_lr)

    def build(loss_fn: LossFn) -> MetaAlgorithm:
      return imaml(
        loss_fn,
        optimizers["inner_optimizer"],
        problem.outer.optimizer(problem.sharpness),
        num_inner_steps=self.num_inner_steps,
        proximity=self.proximity,
        num_cg_steps=self.num_cg_steps,
        adapted_mask=self.mask(problem),
        execution=problem.execution,
      )

    return gradient_based(problem, build, optimizers["at_test"])

  def phases(self, support: int, query: int, sharpness: Sharpness) -> Phases:
    gradients, _ = self.cost_of_steps(sharpness)
    per_example = self.num_inner_steps * gradients + 2 * self.num_cg_steps + 2
    return constant_cost(per_example * support + query, sharpness.loops(self)[1])

  def without_derivative(self) -> str | None:
    return (
      "whose derivative belongs to an idealised inner loop and not to the loss that is "
      "drawn"
    )
