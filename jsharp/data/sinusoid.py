"""Sinusoid regression, the toy problem of few-shot learning.

Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation
of Deep Networks" (2017), section 5.1: amplitude uniform in [0.1, 5], phase in
[0, pi], inputs in [-5, 5]. Other papers use other ranges (Reptile's demonstration
takes phases up to 2 pi), so they are arguments.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jsharp.data.episodes import sample_many
from jsharp.options import Options, Role, at_least, option, positive
from jsharp.types import Batch, Task

Range = tuple[float, float]

AMPLITUDES: Range = (0.1, 5.0)
PHASES: Range = (0.0, math.pi)
INPUTS: Range = (-5.0, 5.0)


def sample_task(
  key: jax.Array,
  *,
  shot: int,
  query_shot: int,
  amplitudes: Range = AMPLITUDES,
  phases: Range = PHASES,
  inputs: Range = INPUTS,
) -> Task:
  """Draws one sine wave, `amplitude * sin(input - phase)`, and points on it.

  Example:
    >>> task = sample_task(jax.random.key(0), shot=5, query_shot=10)
    >>> task.support.inputs.shape, task.query.targets.shape
    ((5, 1), (10, 1))

  Args:
    key: a typed key.
    shot: number of support points.
    query_shot: number of query points.
    amplitudes: range of the amplitude.
    phases: range of the phase, in radians.
    inputs: range of the inputs, in radians.

  Returns:
    A task with inputs and targets `[shot, 1]` float32; the query set likewise.

  Raises:
    ValueError: if a number of points is below 1, or a range is not finite or has `low`
      above `high`.
  """
  for name, value in (("shot", shot), ("query_shot", query_shot)):
    if value < 1:
      raise ValueError(f"{name} is {value}; it must be at least 1")
  named = {"amplitudes": amplitudes, "phases": phases, "inputs": inputs}
  for name, (low, high) in named.items():
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
      raise ValueError(f"{name} is {(low, high)}; expected finite (low, high)")

  amplitude_key, phase_key, input_key = jax.random.split(key, 3)
  amplitude = jax.random.uniform(
    amplitude_key, dtype=jnp.float32, minval=amplitudes[0], maxval=amplitudes[1]
  )
  phase = jax.random.uniform(
    phase_key, dtype=jnp.float32, minval=phases[0], maxval=phases[1]
  )
  points = jax.random.uniform(
    input_key, (shot + query_shot, 1), jnp.float32, inputs[0], inputs[1]
  )
  values = amplitude * jnp.sin(points - phase)
  return Task(
    support=Batch(inputs=points[:shot], targets=values[:shot]),
    query=Batch(inputs=points[shot:], targets=values[shot:]),
  )


def sample_tasks(
  key: jax.Array,
  *,
  num_tasks: int,
  shot: int,
  query_shot: int,
  amplitudes: Range = AMPLITUDES,
  phases: Range = PHASES,
  inputs: Range = INPUTS,
  first_task: int | jax.Array = 0,
) -> Task:
  """Draws many sine waves; task i is `sample_task` with the key `fold_in(key, i)`.

  Example:
    >>> tasks = sample_tasks(jax.random.key(0), num_tasks=25, shot=5, query_shot=10)
    >>> tasks.support.inputs.shape
    (25, 5, 1)

  Args:
    key: a typed key.
    num_tasks: how many tasks.
    shot: number of support points.
    query_shot: number of query points.
    amplitudes: range of the amplitude.
    phases: range of the phase, in radians.
    inputs: range of the inputs, in radians.
    first_task: number of the first task, for drawing them in parts.

  Returns:
    A task whose arrays have one more leading axis `[num_tasks]`.

  Raises:
    ValueError: as for `sample_task`, or if `num_tasks` is below 1.
  """
  sample_one = functools.partial(
    sample_task,
    shot=shot,
    query_shot=query_shot,
    amplitudes=amplitudes,
    phases=phases,
    inputs=inputs,
  )
  return sample_many(sample_one, key, num_tasks=num_tasks, first_task=first_task)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SineTasks(Options):
  """Sine waves of unknown amplitude and phase."""

  role: ClassVar[Role] = Role.TESTING

  shot: int = option(5, "Support points per task.", check=at_least(1))
  query_shot: int | None = option(
    None,
    "Query points per task. Default: as --shot.",
    check=at_least(1),
    role=Role.TRAINING,
  )
  eval_query_shot: int | None = option(
    None,
    "Query points at validation and test. Default: as --query_shot.",
    check=at_least(1),
  )
  max_phase: float = option(
    math.pi,
    "Upper end of the uniform phases, in radians: pi in MAML, 2 pi in Reptile's "
    "demonstration.",
    check=positive("pi is the papers' value."),
  )

  def complete(self) -> None:
    self._set("query_shot", self.shot)
    self._set("eval_query_shot", self.query_shot)

  def examples(self) -> list[tuple[int, int]]:
    """Support and query points of a training task."""
    return [(self.shot, self.query_shot or self.shot)]
