"""Many meta-steps per dispatch, with results that do not depend on their number."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jsharp._files import FileError
from jsharp.core.execution import Execution
from jsharp.data.prefetch import Prefetch
from jsharp.data.streams import Feed, Stream
from jsharp.training.devices import (
  Divide,
  TakeStep,
  compiler_options,
  divide_batch,
  local_parts,
  on_devices,
  rows_divided,
)
from jsharp.types import MetaAlgorithm, MetaState, Metrics, Task

_CAPACITY = 512
# Short enough for signals and the progress bar, long enough for negligible overhead.
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
    tasks: the indices of the tasks whose loss was not finite; empty if every loss was
      finite and the updated state was not.
    unit: what these indices count, as for `train`. The message mentions meta-steps only
      for "tasks".
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
        "divides by the size of a gradient (Adam, clipping by norm), it has no "
        "derivative at a zero gradient; give Adam eps_root=1e-8, use "
        "jsharp.core.clip_by_global_norm, or see docs/methods.md"
      )
    super().__init__(
      f"{where} is not finite at {step_name} {step}; the state after {step - 1} "
      f"{step_name}s is kept. Use a smaller step size ({rates}) or rho, in a new run "
      f"directory{cause}"
    )


class Dispatched(NamedTuple):
  """The result of one dispatch, still on the device.

  Attributes:
    state: the state after the last finite meta-step.
    metrics: `[capacity, num_tasks]` each; row i belongs to the i-th step.
    num_done: int32, the number of steps taken. Later rows are meaningless, except that
      row `num_done` shows the step that was not finite.
    finite: bool, whether every step was finite.
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
  divide: Divide = "tasks",
) -> Callable[[MetaState, Any, Any], Dispatched]:
  """Builds `dispatch(state, length, data) -> Dispatched`, to be compiled by the caller.

  The loop has one body and a length known only at run time: one compilation serves
  every length, and 100 steps are bitwise equal to 10 times 10. A step whose task losses
  or new state are not finite is not taken and ends the dispatch. (An optimizer may
  start with an infinite "best value so far": infinities that were there before are
  tolerated. If the optimizer contains `optax.apply_if_finite`, which skips and counts
  such steps, only the new state has to be finite, not the loss.)

  Args:
    algorithm: its `step` is repeated.
    sample_tasks: `sample_tasks(step, data) -> tasks`, pure.
    capacity: the largest length.
    mesh: from `jsharp.training.devices.task_mesh`; None for one device.
    divide: what the devices share: "tasks" as `jsharp.training.devices.on_devices`,
      which asks for parts of the tasks, or a "batch" as `divide_batch` there.

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
    over = {"tasks": on_devices, "batch": divide_batch}[divide]
    take_step = over(algorithm.step, sample_tasks, mesh)

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
  """Whether the optimizer itself skips steps that are not finite."""

  def skips(node: Any) -> bool:
    return isinstance(node, optax.ApplyIfFiniteState)

  return any(map(skips, jax.tree.leaves(opt_state, is_leaf=skips)))


def _stays_finite(new: jax.Array, old: jax.Array) -> jax.Array:
  if not jnp.issubdtype(new.dtype, jnp.inexact):
    return jnp.bool_(True)
  lost = jnp.isnan(new) | (jnp.isinf(new) & jnp.isfinite(old))
  return ~jnp.any(lost)


class Done(NamedTuple):
  """The outcome of one dispatch, on the host.

  Attributes:
    num_steps: meta-steps taken.
    metrics: `[num_steps, num_tasks]` each.
    seconds: wall time.
    error: the exception to raise once the state is saved; None without an error.
  """

  num_steps: int
  metrics: dict[str, np.ndarray]
  seconds: float
  error: NonFiniteLossError | FileError | OSError | None


class Dispatcher:
  """Runs as many meta-steps per dispatch as take about a second.

  If `data` is a `jsharp.data.streams.Stream`, each step is a separate dispatch, and a
  thread puts its batch on the device in advance. `close` ends that thread.

  Args:
    algorithm: its `step` is repeated.
    sample_tasks: `sample_tasks(step, data) -> tasks`, pure.
    num_tasks: the number of tasks that it draws.
    unit: as for `train`.
    mesh: as for `make_dispatch`.
    divide: as for `make_dispatch`; a stream needs "batch" if there is a mesh.
    execution: what it is compiled for; only `single_threaded` matters here.
    stopped: checked while waiting for a batch of a stream.

  Attributes:
    compiled: whether `compile` was called.
    length: the largest number of meta-steps in the next dispatch.

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
    divide: Divide = "tasks",
    execution: Execution = Execution(),
    stopped: Callable[[], bool] = lambda: False,
  ):
    placed: Any = {} if mesh is None else {"out_shardings": NamedSharding(mesh, P())}

    def jitted(capacity: int) -> Any:
      return jax.jit(
        make_dispatch(
          algorithm, sample_tasks, capacity=capacity, mesh=mesh, divide=divide
        ),
        donate_argnums=0,
        compiler_options=compiler_options(execution),
        **placed,
      )

    self._jitted = jitted
    # Several processes stop together, between dispatches.
    self._stopped = stopped if jax.process_count() == 1 else lambda: False
    self._mesh = mesh
    self._sample_tasks = sample_tasks
    self._feed: Feed | None = None
    self._parts = () if mesh is None or divide == "batch" else local_parts(mesh)
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
    """The memory of a dispatch on a device; None if XLA does not report it."""
    sizes = getattr(self._compiled, "memory_analysis", lambda: None)()
    if sizes is None:
      return None
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return held + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes

  def compile(self, state: MetaState, data: Any) -> None:
    """Compiles for the shapes of `state` and `data`, which may take a minute.

    With `jax.disable_jit` nothing is compiled, and every operation runs separately.

    Raises:
      ValueError: if `sample_tasks` draws another number than `num_tasks`.
    """
    streamed = isinstance(data, Stream)
    arguments = state, np.int32(1), self._spec(data) if streamed else data
    # With a stream, each step has its own batch.
    dispatch = self._jitted(1 if streamed else _CAPACITY)
    traced = None
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
      shapes = jax.eval_shape(dispatch, *arguments)
    else:
      traced = dispatch.trace(*arguments)
      shapes = traced.out_info
    drawn = shapes.metrics["loss"].shape[1]
    if drawn != self._num_tasks:
      raise ValueError(
        f"sample_tasks draws {drawn} tasks, but num_tasks={self._num_tasks}; make them "
        "equal"
      )
    self._compiled = traced.lower().compile() if traced else dispatch
    if not streamed:
      self._prefetch = Prefetch(self._sample_tasks, data, self._parts)

  def _spec(self, stream: Stream) -> Any:
    """The shapes and dtypes of a stream's batch, and where its arrays will be."""
    if self._mesh is None:
      return stream.spec
    return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      stream.spec,
      rows_divided(stream.spec, self._mesh),
    )

  def _put(self, batch: Any) -> Any:
    """Puts a batch of a stream on the devices."""
    if self._mesh is None:
      return jax.device_put(batch)
    return jax.tree.map(
      lambda x, where: jax.make_array_from_callback(
        np.shape(x), where, np.asarray(x).__getitem__
      ),
      batch,
      rows_divided(batch, self._mesh),
    )

  def close(self) -> None:
    """Ends the thread that reads data ahead."""
    if self._feed is not None:
      self._feed.close()
      self._feed = None

  def run(self, state: MetaState, data: Any, longest: int) -> tuple[MetaState, Done]:
    """Takes at least one meta-step and at most `longest`; `state` is consumed.

    With a stream, it may take none, if `stopped` or an error came first.
    """
    length = min(self.length, longest, _CAPACITY)
    first_step = int(state.step)
    start = time.perf_counter()
    if isinstance(data, Stream):
      return self._run_streamed(state, data, first_step, length)
    with self._prefetch.steps(first_step, length):
      result = self._compiled(state, np.int32(length), data)
      num_done = int(result.num_done)
    seconds = self._timed(start, length)
    rows = jax.device_get(result.metrics)
    error = None
    if not result.finite:
      self._prefetch.clear()
      error = self._not_finite(first_step + num_done, rows["loss"][num_done])
    metrics = {name: row[:num_done] for name, row in rows.items()}
    return result.state, Done(num_done, metrics, seconds, error)

  def _run_streamed(
    self, state: MetaState, stream: Stream, first_step: int, length: int
  ) -> tuple[MetaState, Done]:
    """As `run`; the host only waits for the device two steps behind."""
    start = time.perf_counter()
    if self._feed is None or self._feed.step != first_step:
      self.close()
      self._feed = Feed(stream, first_step, put=self._put)
    error: Any = None
    results: list[Dispatched] = []
    # After a step that is not finite, the following dispatches take no step.
    going: Any = np.int32(1)
    while len(results) < length:
      try:
        batch = self._feed.take(self._stopped)
      except (FileError, OSError) as raised:
        error = raised
        break
      if batch is None:
        break
      result = self._compiled(state, going, batch)
      state, going = result.state, result.num_done
      results.append(result._replace(state=()))
      if len(results) > 2:
        results[-3].num_done.block_until_ready()
    num_done = sum(int(result.num_done) for result in results)
    seconds = self._timed(start, max(1, len(results)))
    rows = jax.device_get([result.metrics for result in results])
    if num_done < len(results):
      error = self._not_finite(first_step + num_done, rows[num_done]["loss"][0])
    if error is not None:
      self.close()
    names = rows[0] if rows else {"loss": None}
    empty = np.zeros((0, self._num_tasks), np.float32)
    metrics = {
      name: np.concatenate([empty, *(row[name] for row in rows[:num_done])])
      for name in names
    }
    return state, Done(num_done, metrics, seconds, error)

  def _timed(self, start: float, length: int) -> float:
    """Seconds since the start of a dispatch; sets the length of the next one."""
    seconds = time.perf_counter() - start
    # At most twice as long: the first dispatches are slower than later ones.
    fitting = int(length * _SECONDS / seconds)
    self.length = max(1, min(fitting, 2 * self.length))
    return seconds

  def _not_finite(self, step: int, losses: np.ndarray) -> NonFiniteLossError:
    tasks = np.flatnonzero(~np.isfinite(losses))
    return NonFiniteLossError(step + 1, tuple(tasks.tolist()), self._unit)
