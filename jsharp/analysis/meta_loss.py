"""The meta-objective on fixed tasks, as a function of the parameters.

Measures of a loss surface need a `loss(params)`. Here it is a `jax.tree_util.Partial`
that holds the tasks: its arrays are arguments of compiled code instead of constants, so
two sets of tasks with the same shapes share one compilation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from jsharp import tree as trees
from jsharp.core.objectives import over_tasks
from jsharp.types import Metrics, Params, TaskLossFn

_MAX_KEPT = 16  # Cached functions, so that each is compiled once.


def meta_objective(
  task_loss_fn: TaskLossFn, tasks: Any, *, chunk: int | None = None
) -> Callable[[Params], jax.Array]:
  """The mean of a task loss over fixed tasks, in the memory of one chunk.

  The same memory suffices for its gradient, which is the mean of per-task gradients,
  and for Hessian-vector products: derivatives are computed chunk by chunk instead of
  backwards through all tasks. Through MAML's inner loop, a Hessian takes third
  derivatives of the network's loss; everything in `jsharp.nn` has them.

  Args:
    task_loss_fn: `task_loss_fn(params, task) -> (loss, metrics)`, such as
      `jsharp.after_adaptation(algorithm.adapt, query_loss_fn)`.
    tasks: a pytree with leading axes `[num_tasks, ...]`.
    chunk: how many tasks are batched at a time, see `jsharp.over_tasks`.

  Returns:
    `loss(params) -> scalar`, which can be differentiated with respect to `params` any
    number of times.

  Raises:
    ValueError: from the loss, if the arrays of `tasks` differ in their leading axes.

  Example:
    >>> import jax.numpy as jnp
    >>> square = lambda w, task: ((w - task) ** 2, {})
    >>> loss = meta_objective(square, jnp.array([0.0, 2.0]))
    >>> slope = jax.grad(loss)
    >>> float(loss(2.0)), float(slope(2.0)), float(jax.grad(slope)(2.0))
    (2.0, 2.0, 2.0)
  """
  return Partial(_mean(task_loss_fn, chunk), tasks)


def per_task(
  task_loss_fn: TaskLossFn, tasks: Any, *, chunk: int | None = None
) -> Callable[[Params], Metrics]:
  """The metrics of each task in a fixed list.

  Args:
    task_loss_fn: as for `meta_objective`.
    tasks: as for `meta_objective`.
    chunk: as for `meta_objective`.

  Returns:
    `measure(params) -> metrics`, each `[num_tasks, ...]`, including the loss as
    `"loss"`.

  Example:
    >>> import jax.numpy as jnp
    >>> square = lambda w, task: ((w - task) ** 2, {})
    >>> per_task(square, jnp.array([0.0, 2.0]))(2.0)["loss"].tolist()
    [4.0, 0.0]
  """
  return Partial(_each(task_loss_fn, chunk), tasks)


@functools.lru_cache(maxsize=_MAX_KEPT)
def _mean(task_loss_fn: TaskLossFn, chunk: int | None) -> Callable[..., jax.Array]:
  def task_loss(params: Params, task: Any) -> jax.Array:
    return task_loss_fn(params, task)[0]

  value_fn = over_tasks(lambda params, task: (task_loss(params, task), ()), chunk=chunk)
  gradient_fn = over_tasks(
    lambda params, task: (trees.value_and_grad(task_loss)(params, task), ()),
    chunk=chunk,
  )

  def loss(tasks: Any, params: Params) -> jax.Array:
    @jax.custom_jvp
    def at(params: Params) -> jax.Array:
      return value_fn(params, tasks)[0]

    @at.defjvp
    def at_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
      (value, grads), _ = gradient_fn(primals[0], tasks)
      return value, trees.inner_product(grads, tangents[0]).astype(value.dtype)

    return at(params)

  return loss


@functools.lru_cache(maxsize=_MAX_KEPT)
def _each(task_loss_fn: TaskLossFn, chunk: int | None) -> Callable[..., Metrics]:
  def measured(params: Params, task: Any) -> tuple[Any, Metrics]:
    loss, metrics = task_loss_fn(params, task)
    return (), {"loss": loss, **metrics}

  each_fn = over_tasks(measured, chunk=chunk)
  return lambda tasks, params: each_fn(params, tasks)[1]
