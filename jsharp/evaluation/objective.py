"""The loss of a learner as a function of its parameters, for landscapes.

There are three losses on the query set of a task:

    meta     after adaptation, as a function of the meta-parameters
    task     without adaptation, as a function of the same parameters
    adapted  around the parameters adapted to the task
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from jsharp import losses
from jsharp.core.objectives import after_adaptation, on_query
from jsharp.learners import Learner
from jsharp.types import AdaptFn, Params, Task, TaskLossFn

_MAX_KEPT = 16  # Cached functions, so that each is compiled once.


class NetworkAlone(NamedTuple):
  """A learner as a function of only its network's parameters.

  Attributes:
    params: the network's parameters.
    adapt: `adapt(params, support) -> adapted`, as at test. Everything else that the
      learner has learned, such as step sizes, is a constant in it.
    query_loss_fn: `query_loss_fn(adapted, task) -> (loss, metrics)`, transductive.
  """

  params: Params
  adapt: AdaptFn
  query_loss_fn: TaskLossFn


def network_alone(learner: Learner, way: int | None = None) -> NetworkAlone:
  """Makes everything a learner has learned constant, except its network's parameters.

  Learned rates, running statistics, copies of leaves per inner step and states of
  optimizers become constants. A learner without any of these shares its functions, and
  therefore their compilations, with every `Learner.replace` of it.

  Args:
    learner: a trained learner.
    way: classes per task; all outputs if None.

  Returns:
    Functions of the network's parameters.

  Example:
    >>> from jsharp.algorithms.meta_sgd import MetaSGD
    >>> from jsharp.learners import Description, build
    >>> from jsharp.models.mlp import SineNetwork
    >>> learner = build(Description(
    ...   algorithm=MetaSGD(), network=SineNetwork(), problem="regression",
    ...   num_outputs=1, input_shape=(1,)))
    >>> alone = network_alone(learner)
    >>> type(learner.params).__name__, sorted(alone.params)
    ('WithRates', ['dense_0', 'dense_1', 'dense_2'])
  """
  made = learner.made
  adapt, query_loss_fn = _functions(
    made.algorithm,
    made.predict,
    learner.criterion,
    learner.description.num_outputs if way is None else way,
    tuple(made.at_test.items()),
  )
  point = learner.params
  if "params" not in getattr(point, "_fields", ()):
    return NetworkAlone(point, adapt, query_loss_fn)

  def adapt_holding_others(params: Params, support: Any) -> Any:
    return adapt(point._replace(params=params), support)

  return NetworkAlone(point.params, adapt_holding_others, query_loss_fn)


def objective(
  network: NetworkAlone,
  tasks: Task,
  *,
  of: Literal["meta", "task", "adapted"] = "meta",
) -> tuple[TaskLossFn, Any]:
  """The loss of one task as a function of a network's parameters.

  Args:
    network: from `network_alone`.
    tasks: `[num_tasks, ...]`.
    of: "meta", the loss after adaptation; "task", the loss without adaptation; or
      "adapted", which adds the displacement of the given parameters to the adapted
      parameters of every task, so that it equals "meta" at `network.params`.

  Returns:
    `(task_loss_fn, items)` for `jsharp.analysis.meta_objective` and `per_task`:
    `task_loss_fn(params, item) -> (loss, metrics)`, and the pytree of items
    `[num_tasks, ...]`.

  Raises:
    ValueError: for "task" and "adapted", if the algorithm does not adapt exactly the
      parameters of a network.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp.types import Batch
    >>> network = NetworkAlone(
    ...   params=jnp.float32(4), adapt=lambda w, support: w - support.inputs,
    ...   query_loss_fn=lambda w, task: (w * task.query.inputs, {}))
    >>> tasks = Task(Batch(jnp.array([1.0, 3.0]), None), Batch(jnp.ones(2), None))
    >>> for of in ("meta", "task", "adapted"):
    ...   loss_fn, items = objective(network, tasks, of=of)
    ...   jax.vmap(loss_fn, (None, 0))(jnp.float32(5), items)[0].tolist()
    [4.0, 2.0]
    [5.0, 5.0]
    [4.0, 2.0]
  """
  if of == "meta":
    return _after_adaptation(network.adapt, network.query_loss_fn), tasks
  params = network.params
  adapt_all = jax.jit(
    lambda: jax.lax.map(lambda support: network.adapt(params, support), tasks.support)
  )
  shapes = jax.tree.map(lambda x: x.shape[1:], jax.eval_shape(adapt_all))
  if shapes != jax.tree.map(lambda x: x.shape, params):
    raise ValueError(
      f"of={of} needs an algorithm that adapts the network's parameters and "
      "meta-learns nothing else; use of=meta"
    )
  if of == "task":
    return network.query_loss_fn, tasks
  moved = jax.tree.map(lambda a, w: a - w[None], adapt_all(), params)
  return _around_adapted(network.query_loss_fn), (moved, tasks)


@functools.lru_cache(maxsize=_MAX_KEPT)
def _functions(
  algorithm: Callable[[int], Any],
  predict: Callable[[int], Any],
  criterion: losses.Criterion,
  way: int,
  at_test: tuple[tuple[str, Any], ...],
) -> tuple[AdaptFn, TaskLossFn]:
  adapt = functools.partial(algorithm(way).adapt, **dict(at_test))
  return adapt, on_query(losses.batch_loss(predict(way), criterion))


_after_adaptation = functools.lru_cache(maxsize=_MAX_KEPT)(after_adaptation)


@functools.lru_cache(maxsize=_MAX_KEPT)
def _around_adapted(query_loss_fn: TaskLossFn) -> TaskLossFn:
  def around_adapted(params: Params, item: Any) -> Any:
    by, task = item
    return query_loss_fn(jax.tree.map(jax.numpy.add, params, by), task)

  return around_adapted
