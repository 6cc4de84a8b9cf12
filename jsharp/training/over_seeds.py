"""Several runs of one algorithm in one program: one for each seed.

    params[i], opt_state[i] = algorithms[i].step(params[i], opt_state[i], tasks[i])

The runs share one compilation and, on an accelerator, can keep it busy when a single
run cannot; they need the memory of all runs. Otherwise they are independent: each has
its own tasks and ends with the parameters of a separate run, up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jsharp._checks import check_count
from jsharp.types import MetaAlgorithm, MetaState, Metrics, Params


def over_seeds(
  algorithms: Sequence[MetaAlgorithm], *, together: bool | None = None
) -> MetaAlgorithm:
  """Joins algorithms that differ at most in their initialisation.

  Args:
    algorithms: one for each seed; `step` and `adapt` of the first are used for all.
    together: whether they are batched by `vmap`, or run one after another in the same
      program; None chooses by backend: one after another on a CPU.

  Returns:
    A bundle whose parameters and tasks have an additional leading axis `[num_seeds]`.
    Metrics of `step` are `[num_seeds * num_tasks]`, seed after seed. `adapt` adapts all
    seeds to one support set. `evaluator_over_seeds` measures them.

  Raises:
    ValueError: if there is no algorithm; when called, if an array's leading axis is
      not as long as `algorithms`.

  Example:
    >>> import optax
    >>> from jsharp.algorithms import maml
    >>> from jsharp.types import Batch, Task
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> one = maml(loss_fn, optax.sgd(0.25), optax.sgd(0.5), num_inner_steps=1)
    >>> both = over_seeds([one, one])
    >>> batch = Batch(None, jnp.zeros((2, 1, 4)))  # Two seeds, one task each.
    >>> state, metrics = jax.jit(both.step)(
    ...   both.init(jnp.array([2.0, 4.0])), Task(batch, batch))
    >>> state.params.tolist(), metrics["loss"].tolist()
    ([1.5, 3.0], [1.0, 4.0])
  """
  if not algorithms:
    raise ValueError("over_seeds needs one algorithm per seed, got none")
  first, num_seeds = algorithms[0], len(algorithms)

  def checked(name: str, tree: Any) -> Any:
    return _checked(name, tree, num_seeds)

  def mapped(fn: Callable[..., Any], *arguments: Any) -> Any:
    return _mapped(fn, *arguments, together=together)

  def init(params: Params) -> MetaState:
    checked("params", params)
    states = [
      algorithm.init(jax.tree.map(lambda x, i=i: x[i], params))
      for i, algorithm in enumerate(algorithms)
    ]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *states)
    return stacked._replace(step=states[0].step)

  def step(state: MetaState, tasks: Any) -> tuple[MetaState, Metrics]:
    def one(params: Params, opt_state: Any, tasks: Any) -> Any:
      new, metrics = first.step(MetaState(state.step, params, opt_state), tasks)
      return (new.params, new.opt_state), metrics

    starts = checked("state", (state.params, state.opt_state))
    (params, opt_state), metrics = mapped(one, *starts, checked("tasks", tasks))
    flat = jax.tree.map(lambda x: x.reshape(-1), metrics)
    return MetaState(state.step + 1, params, opt_state), flat

  def adapt(params: Params, support: Any, **options: Any) -> Params:
    return mapped(
      lambda params: first.adapt(params, support, **options), checked("params", params)
    )

  return MetaAlgorithm(init, step, adapt)


def evaluator_over_seeds(
  evaluate_tasks: Callable[[Params, Any], Metrics],
  *,
  num_seeds: int,
  together: bool | None = None,
) -> Callable[[Params, Any], Metrics]:
  """Maps an evaluation over seeds, all on the same tasks.

  Args:
    evaluate_tasks: `evaluate_tasks(params, tasks) -> metrics` of one seed, each metric
      `[num_tasks, ...]`, such as from `jsharp.evaluation.evaluator`.
    num_seeds: the number of seeds.
    together: as for `over_seeds`.

  Returns:
    `evaluate_tasks(params, tasks) -> metrics` for params with a leading axis
    `[num_seeds]`, each metric `[num_tasks, num_seeds, ...]`.

  Raises:
    ValueError: if `num_seeds` is below 1; when called, if the leading axis of an array
      of the params is not `num_seeds`.

  Example:
    >>> evaluate_both = evaluator_over_seeds(
    ...   lambda w, tasks: {"loss": w * tasks}, num_seeds=2)
    >>> evaluate_both(jnp.array([2.0, 3.0]), jnp.array([1.0, 10.0]))["loss"].tolist()
    [[2.0, 3.0], [20.0, 30.0]]
  """
  num_seeds = check_count("num_seeds", num_seeds)

  def evaluate_all(params: Params, tasks: Any) -> Metrics:
    metrics = _mapped(
      lambda params: evaluate_tasks(params, tasks),
      _checked("params", params, num_seeds),
      together=together,
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), metrics)

  return evaluate_all


def _checked(name: str, tree: Any, num_seeds: int) -> Any:
  for leaf in jax.tree.leaves(tree):
    if jnp.shape(leaf)[:1] != (num_seeds,):
      raise ValueError(
        f"there are {num_seeds} seeds, but an array of {name} is "
        f"{list(jnp.shape(leaf))}; its leading axis must be {num_seeds}, one row per "
        "seed: stack them, or pass one algorithm per row"
      )
  return tree


def _mapped(fn: Callable[..., Any], *arguments: Any, together: bool | None) -> Any:
  if jax.default_backend() != "cpu" if together is None else together:
    return jax.vmap(fn)(*arguments)
  return jax.lax.map(lambda rows: fn(*rows), arguments)
