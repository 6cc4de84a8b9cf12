"""Many meta-steps in one dispatch, with numbers that do not depend on how many."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jsharp.core.execution import Execution
from jsharp.data.prefetch import Prefetch
from jsharp.training.devices import TakeStep, compiler_options, local_parts, on_devices
from jsharp.types import MetaAlgorithm, MetaState, Metrics, Task

_CAPACITY = 512
# Short enough to hear a signal and to move a progress bar, long enough to cost nothing.
_SECONDS = 0.75

SampleFn = Callable[..., Task]
"""`sample_tasks(step, data) -> tasks`, pure; `step` is a traced int32. On several
devices it is called with `part=(index, count)`, see
`jsharp.training.devices.on_devices`. Images in host memory are gathered ahead of it,
see `jsharp.data.prefetch`."""


class NonFiniteLossError(FloatingPointError):
  """A meta-step gave NaN or infinity; the state before it is saved.

  Attributes:
    step: the meta-step that failed, counted from 1.
    tasks: the indices of the tasks whose loss was not finite; empty where every
      loss was finite and the updated state was not.
    unit: what these indices count, as for `train`. Only with "tasks" does the message
      speak of meta-steps.
  """

  def __init__(self, step: int, tasks: tuple[int, ...], unit: str = "tasks"):
    self.step = step
    self.tasks = tasks
    self.unit = unit
    step_name, update, rates = "step", "update", "lr"
    if unit == "tasks":
      step_name, update, rates = "meta-step", "outer update", "inner_lr, outer_lr"
    where, cause = f"the state after the {update}", ""
    if tasks:
      where = f"the loss of {unit.removesuffix('s')} {', '.join(map(str, tasks))}"
    elif unit == "tasks":
      cause = (
        ". Every loss is finite, so the meta-gradient is not: if the inner optimizer "
        "divides by the size of a gradient (Adam, a clip by norm), a gradient of zero "
        "has no derivative there; give Adam eps_root=1e-8, take "
        "jsharp.core.clip_by_global_norm, or see docs/methods.md"
      )
    super().__init__(
      f"{where} is not finite at {step_name} {step}; the state after {step - 1} "
      f"{step_name}s is kept. Use a smaller step size ({rates}) or rho, in a new run "
      f"directory{cause}"
    )


class Dispatched(NamedTuple):
  """What one dispatch returns, still on the device.

  Attributes:
    state: after the last meta-step that was finite.
    metrics: `[capacity, num_tasks]` each; row i belongs to the i-th step.
    num_done: int32, the steps that `state` went forward; rows from there on are
      meaningless, except that row `num_done` shows the step that was not finite.
    finite: bool, whether every step was.
  """

  state: MetaState
  metrics: Metrics
  num_done: jax.Array
  finite: jax.Array


def make_dispatch(
  algorithm: MetaAlgorithm,
  sample_tasks: SampleFn,
  *,
  capacity: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[MetaState, Any, Any], Dispatched]:
  """Builds `dispatch(state, length, data) -> Dispatched`, to be jitted by the caller.

  The loop has one body and a length known only when it runs: one compilation
  serves every length, and 100 steps give the same bits as 10 times 10. A step
  whose task losses or new state are not finite is not taken and ends the dispatch. (An
  optimizer may start with an infinite "best value so far": infinities that were
  there before are tolerated. With `optax.apply_if_finite` in it a loss may be what it
  is, as long as the new state is finite: that link skips and counts such steps.)

  Args:
    algorithm: its `step` is what is repeated.
    sample_tasks: `sample_tasks(step, data) -> tasks`, pure.
    capacity: the largest length.
    mesh: as for `jsharp.training.devices.on_devices`, which then asks for parts of the
      tasks; None for one device.

  Returns:
    The function; `length` is an int32 of at most `capacity`, `data` any pytree.

  Raises:
    ValueError: while it is traced, if a metric is not one number per task.

  Example:
    >>> def step(state, tasks):
    ...   return MetaState(state.step + 1, state.params + tasks, ()), {"loss": tasks}
    >>> algorithm = MetaAlgorithm(init=None, step=step, adapt=None)
    >>> dispatch = make_dispatch(algorithm, lambda step, data: data, capacity=8)
    >>> state = MetaState(jnp.int32(0), jnp.zeros(2), ())
    >>> result = jax.jit(dispatch)(state, 3, jnp.array([1.0, 2.0]))
    >>> result.state.params.tolist(), int(result.num_done)
    ([3.0, 6.0], 3)
  """

  def here(state: MetaState, data: Any) -> tuple[MetaState, Metrics]:
    return algorithm.step(state, sample_tasks(state.step, data))

  take_step: TakeStep = here
  if mesh is not None:
    take_step = on_devices(algorithm.step, sample_tasks, mesh)

  @jax.jit  # Traced once for the shapes and the loop together.
  def attempt(state: MetaState, data: Any) -> tuple[MetaState, Metrics, jax.Array]:
    proposed, metrics = take_step(state, data)
    finite = jnp.all(jnp.isfinite(metrics["loss"])) | _skips_errors(state.opt_state)
    for new, old in zip(jax.tree.leaves(proposed), jax.tree.leaves(state), strict=True):
      finite &= _stays_finite(new, old)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, state)
    return kept, metrics, finite

  def dispatch(state: MetaState, length: jax.Array, data: Any) -> Dispatched:
    _, shapes, _ = jax.eval_shape(attempt, state, data)
    for name, shape in shapes.items():
      if len(shape.shape) != 1 or shape.shape != shapes["loss"].shape:
        raise ValueError(
          f"algorithm.step's metric '{name}' has shape {shape.shape}; return one "
          "number per task, [num_tasks]"
        )
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), shapes)

    def body(result: Dispatched) -> Dispatched:
      kept, metrics, finite = attempt(result.state, data)
      rows = jax.tree.map(
        lambda row, new: row.at[result.num_done].set(new), result.metrics, metrics
      )
      return Dispatched(kept, rows, result.num_done + finite.astype(jnp.int32), finite)

    return jax.lax.while_loop(
      lambda result: result.finite & (result.num_done < length),
      body,
      Dispatched(state, rows, jnp.int32(0), jnp.bool_(True)),
    )

  return dispatch


def _skips_errors(opt_state: Any) -> bool:
  """Whether the optimizer itself leaves out steps that are not finite."""

  def skips(node: Any) -> bool:
    return isinstance(node, optax.ApplyIfFiniteState)

  return any(map(skips, jax.tree.leaves(opt_state, is_leaf=skips)))


def _stays_finite(new: jax.Array, old: jax.Array) -> jax.Array:
  if not jnp.issubdtype(new.dtype, jnp.inexact):
    return jnp.bool_(True)
  lost = jnp.isnan(new) | (jnp.isinf(new) & jnp.isfinite(old))
  return ~jnp.any(lost)


class Done(NamedTuple):
  """What one dispatch did, on the host.

  Attributes:
    num_steps: meta-steps taken.
    metrics: `[num_steps, num_tasks]` each.
    seconds: wall time.
    error: what to raise once the state is saved, None if all went well.
  """

  num_steps: int
  metrics: dict[str, np.ndarray]
  seconds: float
  error: NonFiniteLossError | None


class Dispatcher:
  """Runs many meta-steps per dispatch, about as many as take a second.

  Args:
    algorithm: its `step` is what is repeated.
    sample_tasks: `sample_tasks(step, data) -> tasks`, pure.
    num_tasks: the number that it draws.
    unit: as for `train`.
    mesh: as for `make_dispatch`.
    execution: what it is compiled for; only `single_threaded` matters here.

  Attributes:
    compiled: whether `compile` was called.
    length: the most meta-steps of the next dispatch.

  Example:
    >>> def step(state, tasks):
    ...   return MetaState(state.step + 1, state.params + tasks, ()), {"loss": tasks}
    >>> algorithm = MetaAlgorithm(init=None, step=step, adapt=None)
    >>> dispatcher = Dispatcher(algorithm, lambda step, data: data, num_tasks=1)
    >>> state = MetaState(jnp.int32(0), jnp.zeros(1), ())
    >>> dispatcher.compile(state, jnp.ones(1))
    >>> state, done = dispatcher.run(state, jnp.ones(1), 10)
    >>> done.num_steps, done.metrics["loss"].tolist()
    (1, [[1.0]])
  """

  def __init__(
    self,
    algorithm: MetaAlgorithm,
    sample_tasks: SampleFn,
    *,
    num_tasks: int,
    unit: str = "tasks",
    mesh: jax.sharding.Mesh | None = None,
    execution: Execution = Execution(),
  ):
    dispatch = make_dispatch(algorithm, sample_tasks, capacity=_CAPACITY, mesh=mesh)
    placed: Any = {} if mesh is None else {"out_shardings": NamedSharding(mesh, P())}
    self._dispatch = jax.jit(
      dispatch, donate_argnums=0, compiler_options=compiler_options(execution), **placed
    )
    self._sample_tasks = sample_tasks
    self._parts = () if mesh is None else local_parts(mesh)
    self._num_tasks = num_tasks
    self._unit = unit
    self._compiled: Any = None
    self.length = 1

  @property
  def compiled(self) -> bool:
    """Whether `run` can be called."""
    return self._compiled is not None

  @property
  def needed_bytes(self) -> int | None:
    """What a dispatch holds on a device at a time; None where XLA cannot say."""
    sizes = getattr(self._compiled, "memory_analysis", lambda: None)()
    if sizes is None:
      return None
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return held + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes

  def compile(self, state: MetaState, data: Any) -> None:
    """Compiles for the shapes of `state` and `data`, which may take a minute.

    With `jax.disable_jit` nothing is compiled, and every operation runs by itself.

    Raises:
      ValueError: if `sample_tasks` draws another number than `num_tasks`.
    """
    arguments = state, np.int32(1), data
    traced = None
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
      shapes = jax.eval_shape(self._dispatch, *arguments)
    else:
      traced = self._dispatch.trace(*arguments)
      shapes = traced.out_info
    drawn = shapes.metrics["loss"].shape[1]
    if drawn != self._num_tasks:
      raise ValueError(
        f"sample_tasks draws {drawn} tasks, num_tasks={self._num_tasks}; make them "
        "equal"
      )
    self._compiled = traced.lower().compile() if traced else self._dispatch
    self._prefetch = Prefetch(self._sample_tasks, data, self._parts)

  def run(self, state: MetaState, data: Any, longest: int) -> tuple[MetaState, Done]:
    """Takes at least one meta-step and at most `longest`; `state` is consumed."""
    length = min(self.length, longest, _CAPACITY)
    first_step = int(state.step)
    start = time.perf_counter()
    with self._prefetch.steps(first_step, length):
      result = self._compiled(state, np.int32(length), data)
      num_done = int(result.num_done)
    seconds = time.perf_counter() - start
    # Twice as long at most: the first dispatches are slower than later ones.
    fitting = int(length * _SECONDS / seconds)
    self.length = max(1, min(fitting, 2 * self.length))
    rows = jax.device_get(result.metrics)
    error = None
    if not result.finite:
      self._prefetch.clear()
      tasks = np.flatnonzero(~np.isfinite(rows["loss"][num_done]))
      failed = first_step + num_done + 1
      error = NonFiniteLossError(failed, tuple(tasks.tolist()), self._unit)
    metrics = {name: row[:num_done] for name, row in rows.items()}
    return result.state, Done(num_done, metrics, seconds, error)
