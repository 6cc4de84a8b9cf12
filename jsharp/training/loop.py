"""The meta-training loop: dispatches, records, checkpoints, resuming.

Parameters, optimizer state and sampled tasks depend only on the initial parameters, the
data and the step. So a run that was killed resumes from its newest checkpoint and ends
bitwise equal to an uninterrupted run.

At a step where several things are due, the order is: metrics line, validation, point of
the path, best checkpoint, checkpoint. A checkpoint therefore covers all records up to
the count that it stores; later records are cut on resume and written again.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsharp._checks import check_count, check_nonnegative
from jsharp.core.execution import Execution
from jsharp.data.streams import Stream
from jsharp.training.checkpoints import Checkpoints, Restored
from jsharp.training.devices import Divide, one_copy, replicate, task_mesh
from jsharp.training.dispatch import Dispatcher, NonFiniteLossError, SampleFn
from jsharp.training.processes import Peers, is_first
from jsharp.training.records import Records
from jsharp.training.run_directory import RunDirectory
from jsharp.training.stop_signal import StopRequested, StopSignal
from jsharp.types import MetaAlgorithm, MetaState, Params

__all__ = [
  "NonFiniteLossError",
  "StopRequested",
  "StopSignal",
  "TrainingResult",
  "train",
]


class TrainingResult(NamedTuple):
  """The outcome of training.

  Attributes:
    state: the last state.
    best_params: the parameters with the best validation score; the last parameters if
      nothing was validated.
    best_step: the number of meta-steps of `best_params`.
    best_score: their score; None if nothing was validated.
    interrupted: whether a stop was requested; the same call resumes.
    tasks_per_second: over all meta-steps so far, without compilation and validation.
    resumed_from: the step of the checkpoint that training resumed from, or None.
    top: the `keep_top` best validated states, best first, each with `step`, `tree` (the
      parameters) and `extra["score"]`.
    damaged: names of better checkpoints that are damaged and were replaced by others.
  """

  state: MetaState
  best_params: Params
  best_step: int
  best_score: float | None
  interrupted: bool
  tasks_per_second: float
  resumed_from: int | None
  top: list[Restored]
  damaged: tuple[str, ...] = ()


def train(
  algorithm: MetaAlgorithm,
  params: Params,
  sample_tasks: SampleFn,
  data: Any,
  *,
  run: RunDirectory,
  num_steps: int,
  num_tasks: int,
  log_every: int = 50,
  eval_every: int = 500,
  checkpoint_seconds: float = 60.0,
  validate: Callable[[Params], dict[str, float]] | None = None,
  score: str | Callable[[dict[str, float]], float] = "accuracy",
  stop: StopSignal | None = None,
  progress: bool | None = None,
  unit: str = "tasks",
  keep_top: int = 0,
  keep_path: bool = False,
  num_devices: int = 1,
  divide: Divide = "tasks",
  peers: Peers | None = None,
  execution: Execution = Execution(),
) -> TrainingResult:
  """Meta-trains for `num_steps` in all, resuming from the newest checkpoint.

  `metrics.jsonl` gets `{"step", "loss", ..., "tasks_per_second", "wall_time"}`, means
  over the steps since the last line, and `{"step", "val_loss", ..., "wall_time"}`
  (seconds since 1970). Checkpoints are in `checkpoints/`: the state after every
  validation, every `checkpoint_seconds` and at the end, and the parameters of the best
  validation.

  Args:
    algorithm: the algorithm to train.
    params: the initial parameters; not changed.
    sample_tasks: `sample_tasks(step, data) -> tasks`, pure; compiled here.
    data: a pytree of arrays, put on the device once; None if not needed. Or a
      `jsharp.data.streams.Stream`; each step then gets the stream's batch of its number
      as `data`.
    run: the run's directory.
    num_steps: all meta-steps, including those of earlier starts. A run that has already
      taken more does not change.
    num_tasks: tasks per meta-step, as `sample_tasks` draws them.
    log_every: meta-steps per line of metrics.
    eval_every: meta-steps between validations; the last step is always validated.
    checkpoint_seconds: about the most work that is lost if the process is killed; 0
      saves after every dispatch.
    validate: `validate(params) -> metrics`, plain numbers. It may call `stop.check()`;
      an interrupted validation is repeated on resume.
    score: the validation metric that decides what is best, larger is better; or a
      function of all metrics. Of two equal scores the earlier one is kept.
    stop: checked between dispatches, which take about a second.
    progress: None shows a bar on a terminal and lines elsewhere, True a bar, False
      nothing.
    unit: the name of what `num_tasks` counts, for records, display and errors.
    keep_top: how many of the best validated parameters to keep, for an ensemble.
    keep_path: whether to keep the initial parameters and those of every validation,
      one file each; `Checkpoints.restore_path` reads them.
    num_devices: the devices that share the tasks of a meta-step or the examples of a
      batch. A run may resume with another number.
    divide: how several devices share a step. "tasks" asks `sample_tasks` for parts, see
      `jsharp.training.devices.on_devices`. "batch" is for ordinary training
      (`jsharp.algorithms.supervised`), see `jsharp.training.devices.divide_batch`.
    peers: the processes that train together, each with this call. The `run` of the
      first process is the run; those of the others are discarded. Only this process if
      None.
    execution: what steps are compiled for; only `single_threaded` matters here.

  Returns:
    The result; if `interrupted` is set, the same call resumes.

  Raises:
    NonFiniteLossError: at the first meta-step that is not finite. It is not taken;
      the state before it is saved.
    ValueError: for counts out of range, a wrong number of tasks, a score that
      `validate` does not return, a checkpoint of another program or run, `keep_path`
      without `validate`, devices that do not exist or cannot share the tasks evenly.
    OSError: if a record cannot be written; earlier checkpoints are intact. Also, with
      the state saved, if a file of a stream cannot be read, or a process that decodes
      its images has died.
    FileError: if an image of a stream cannot be decoded; the state is saved.

  Example:
    >>> import tempfile
    >>> from jsharp.types import Batch, Task
    >>> def step(state, tasks):
    ...   losses = (state.params - tasks.query.targets) ** 2
    ...   moved = 0.9 * state.params + 0.1 * tasks.query.targets.mean()
    ...   return MetaState(state.step + 1, moved, ()), {"loss": losses}
    >>> mean = MetaAlgorithm(
    ...   init=lambda params: MetaState(jnp.int32(0), params, ()),
    ...   step=step, adapt=None)
    >>> batch = Batch(jnp.zeros(4), jnp.ones(4))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   with RunDirectory.open(directory, identity={}) as run:
    ...     result = train(
    ...       mean, jnp.float32(0.0), lambda step, data: Task(batch, batch), None,
    ...       run=run, num_steps=50, num_tasks=4, progress=False)
    >>> print(f"{result.state.params:.3f}")
    0.995
  """
  check_count("num_steps", num_steps)
  check_count("log_every", log_every)
  check_count("eval_every", eval_every)
  check_nonnegative("checkpoint_seconds", checkpoint_seconds)
  check_count("keep_top", keep_top, minimum=0)
  if keep_path and validate is None:
    raise ValueError(
      "keep_path=True keeps the parameters of every validation, but validate is None; "
      "pass validate, or keep_path=False"
    )
  if num_devices != 1 and divide == "tasks" and isinstance(data, Stream):
    raise ValueError(
      f"num_devices={num_devices}: streamed tasks support only one device; pass 1, or "
      'divide="batch" for ordinary training'
    )
  mesh = None
  if num_devices != 1:
    mesh = task_mesh(num_devices, num_tasks=num_tasks)
  stop = stop or StopSignal()
  checkpoints = Checkpoints(run.path / "checkpoints", run=run)
  # Copied, since a dispatch donates its argument and `params` belongs to the caller.
  state = jax.tree.map(
    lambda x: jnp.array(x, dtype=jnp.result_type(x), copy=True), algorithm.init(params)
  )
  restored = checkpoints.restore(state)
  saved = restored.extra if restored else None
  state = restored.tree if restored else state
  peers = peers or Peers(timeout=0.0)
  state, saved = _of_the_first(peers, state, saved)
  step = int(state.step)
  # The best file stores its own score: the process may have been killed after writing
  # it and before the next checkpoint.
  best = checkpoints.restore_best(state.params)
  best_score = best.extra["score"] if best else -math.inf
  options: Any = {"unit": unit, "mesh": mesh, "execution": execution}
  options |= {"divide": divide, "stopped": lambda: stop.requested}
  dispatcher = Dispatcher(algorithm, sample_tasks, num_tasks=num_tasks, **options)
  if mesh is not None:
    state = replicate(state, mesh)
  if not isinstance(data, Stream):  # Its batches are put on the devices one by one.
    if mesh is None:
      data = jax.device_put(data)
    else:
      data = replicate(data, mesh, constant=True)
  records = Records(
    run, saved, step=step, num_steps=num_steps, progress=progress, unit=unit
  )
  ledger = records.ledger
  if keep_path and step == 0:
    checkpoints.save_path(step, one_copy(state.params))
  interrupted = False
  saved_at = time.monotonic()

  def save() -> float:
    checkpoints.save(step, one_copy(state), extra=dataclasses.asdict(ledger))
    return time.monotonic()

  with contextlib.closing(records), contextlib.closing(dispatcher):
    while True:
      at_end = step >= num_steps
      if step > ledger.logged_step and (at_end or step % log_every == 0):
        records.log(step)
      due = step > ledger.validated_step and (at_end or step % eval_every == 0)
      judged = False
      if validate and due and not stop.requested:
        try:
          params = one_copy(state.params)
          metrics, value = _judge(validate, score, params)
          if keep_path:
            checkpoints.save_path(step, params)
          if keep_top:
            checkpoints.save_top(step, params, score=value, num=keep_top)
          if is_best := value > best_score:
            best_score = value
            checkpoints.save_best(step, params, extra={"score": value})
          records.log_validation(step, metrics, is_best=is_best)
          judged = True
        except StopRequested:
          interrupted = True
      interrupted, dispatcher.length = peers.agree(
        stop=interrupted or stop.requested, length=dispatcher.length
      )
      if interrupted and not stop.requested:
        stop.request()  # Another process received the request.
      over = at_end or interrupted
      if over or judged or time.monotonic() - saved_at >= checkpoint_seconds:
        saved_at = save()
      if over:
        break
      if not dispatcher.compiled:
        records.note("compiling the training step")
        # Everything is saved here; with several processes the others would wait.
        alone = jax.process_count() == 1
        with stop.ending_at_once() if alone else contextlib.nullcontext():
          dispatcher.compile(state, data)
        continue  # A stop may have been requested meanwhile.
      boundary = min(e - step % e for e in (log_every, eval_every, num_steps))
      with peers.patience("the other processes"):
        state, done = dispatcher.run(state, data, boundary)
      step += done.num_steps
      records.add(step, done)
      if done.error:
        save()
        raise done.error

  state = one_copy(state)
  best = checkpoints.restore_best(state.params)
  return TrainingResult(
    state=state,
    best_params=best.tree if best else state.params,
    best_step=best.step if best else step,
    best_score=best.extra["score"] if best else None,
    interrupted=interrupted,
    tasks_per_second=records.tasks_per_second(),
    resumed_from=restored.step if restored else None,
    top=checkpoints.restore_top(state.params) if keep_top else [],
    damaged=_stood_in_for(checkpoints, best, keep_top),
  )


def _stood_in_for(
  checkpoints: Checkpoints, best: Restored | None, keep_top: int
) -> tuple[str, ...]:
  """The damaged files that were replaced by others."""
  paths = [
    path
    for step, path in checkpoints.damaged("best").items()
    if best is None or step > best.step
  ]
  if keep_top:
    paths += checkpoints.damaged("top").values()
  return tuple(path.name for path in paths)


def _of_the_first(
  peers: Peers, state: MetaState, saved: dict[str, Any] | None
) -> tuple[MetaState, dict[str, Any] | None]:
  """The first process's state; the other processes start their own records there."""
  if jax.process_count() == 1:
    return state, saved
  text = peers.text_from_first(json.dumps(saved))
  state, saved = peers.from_first(state), json.loads(text)
  if saved is not None and not is_first():
    saved["num_records"] = 0
  return jax.tree.map(jnp.asarray, state), saved


def _judge(
  validate: Callable[[Params], dict[str, float]],
  score: str | Callable[[dict[str, float]], float],
  params: Params,
) -> tuple[dict[str, float], float]:
  metrics = {name: float(value) for name, value in validate(params).items()}
  if not isinstance(score, str):
    return metrics, float(score(metrics))
  if score not in metrics:
    raise ValueError(
      f"score='{score}' is not among the metrics of validate: {sorted(metrics)}"
    )
  return metrics, metrics[score]
