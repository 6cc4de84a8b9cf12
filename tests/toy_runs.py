"""A small meta-learner to train in tests, and a program around it to kill.

`python -m tests.toy_runs RUN_DIR NUM_STEPS [SECONDS_PER_VALIDATION]` trains it,
prints `ready` once it trains and `validating` at each validation, and ends with the
exit code that the program promises.
"""

import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jsharp.training import compilation_cache
from jsharp.training.loop import StopSignal, train
from jsharp.training.run_directory import RunDirectory
from jsharp.types import Batch, MetaAlgorithm, MetaState, Task

NUM_TASKS = 4
VOLATILE = ("tasks_per_second", "wall_time")


def _loss(params, batch):
  hidden = jnp.tanh(batch.inputs @ params["w"] + params["b"][None, :])
  return jnp.mean((hidden @ params["v"] - batch.targets) ** 2)


def algorithm():
  """Joint training of a small network with momentum, as an algorithm."""
  optimizer = optax.sgd(0.05, momentum=0.9)

  def step(state, tasks):
    losses, grads = jax.vmap(jax.value_and_grad(_loss), (None, 0))(
      state.params, tasks.query
    )
    grads = jax.tree.map(lambda x: x.mean(0), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": losses, "accuracy": jnp.exp(-losses)}
    return MetaState(state.step + 1, params, opt_state), metrics

  return MetaAlgorithm(
    init=lambda params: MetaState(jnp.int32(0), params, optimizer.init(params)),
    step=step,
    adapt=lambda params, support: params,
  )


def params():
  """Initial parameters, always the same."""
  w, v = jax.random.split(jax.random.key(7))
  return {
    "w": jax.random.normal(w, (3, 8)),
    "b": jnp.zeros(8),
    "v": jax.random.normal(v, (8,)),
  }


def data():
  """What the targets of the tasks are made with."""
  return np.array([0.5, -1.0, 2.0], np.float32)


def sample_tasks(step, data):
  """Tasks of one meta-step."""
  key = jax.random.fold_in(jax.random.key(1), step)
  inputs = jax.random.normal(key, (NUM_TASKS, 6, 3))
  batch = Batch(inputs, jnp.sin(inputs @ data))
  return Task(batch, batch)


def sample_tasks_with_nan(step_index, task):
  """As `sample_tasks`, with a NaN in one task of one meta-step."""

  def sample(step, data):
    tasks = sample_tasks(step, data)
    bad = (step == step_index) & (jnp.arange(NUM_TASKS) == task)
    targets = jnp.where(bad[:, None], jnp.nan, tasks.query.targets)
    return tasks._replace(query=tasks.query._replace(targets=targets))

  return sample


@jax.jit
def _validation_loss(params):
  tasks = sample_tasks(10**6, data())
  return jax.vmap(_loss, (None, 0))(params, tasks.query).mean()


def validate(params):
  """Plain numbers on tasks that training does not see."""
  loss = float(_validation_loss(params))
  return {"loss": loss, "accuracy": float(np.exp(-loss))}


def run_toy(run, num_steps, **overrides):
  """Trains the toy in the folder `run`."""
  arguments = {
    "log_every": 5,
    "eval_every": 10,
    "checkpoint_seconds": 0,
    "validate": validate,
    "progress": False,
    "num_tasks": NUM_TASKS,
    "sample_tasks": sample_tasks,
    **overrides,
  }
  return train(
    algorithm(), params(), data=data(), run=run, num_steps=num_steps, **arguments
  )


def steady(records):
  """Metrics without what depends on the clock."""
  return [{k: v for k, v in r.items() if k not in VOLATILE} for r in records]


def same_bits(first, second):
  """Whether two pytrees hold the same bits in the same structure."""
  first, second = jax.device_get((first, second))
  if jax.tree.structure(first) != jax.tree.structure(second):
    return False
  pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
  return all(
    a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    for a, b in pairs
  )


def suites_cache():
  """Leaves the suite's own compilation cache on where a program asks for none."""

  def use(directory):
    if directory:
      compilation_cache.use_compilation_cache(directory)

  return mock.patch("jsharp.training.use_compilation_cache", use)


def main(run_dir, num_steps, validation_seconds):
  """Trains as a program would."""
  with (
    StopSignal() as stop,
    RunDirectory.open(run_dir, identity={"toy": 1}) as run,
  ):
    said = False

    def validate_slowly(params):
      nonlocal said
      if validation_seconds:
        print("validating", flush=True)
      elif not said:
        print("ready", flush=True)
      said = True
      deadline = time.monotonic() + validation_seconds
      while time.monotonic() < deadline:
        stop.check()
        time.sleep(0.01)
      return validate(params)

    result = run_toy(run, num_steps, stop=stop, validate=validate_slowly)
    if result.interrupted:
      return stop.exit_code
    print(f"done at {int(result.state.step)}", flush=True)
    return 0


if __name__ == "__main__":
  seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
  sys.exit(main(sys.argv[1], int(sys.argv[2]), seconds))
