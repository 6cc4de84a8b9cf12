"""Tasks of several shapes in one run: the way or shot varies from step to step.

    which = uniform over the members, by (seed, step)
    state = members[which].step(state, samplers[which](step, data))

All tasks of one meta-step have the same shape, so nothing is padded. Every member is
compiled separately, and `lax.switch` runs the one that is drawn. The members share
parameters and optimizer state. Compilation time grows with their number; the cost of a
step does not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jsharp.data.episodes import task_key
from jsharp.training.dispatch import SampleFn
from jsharp.types import MetaAlgorithm, MetaState, Metrics


def mixture(
  algorithms: Sequence[MetaAlgorithm], samplers: Sequence[SampleFn], *, seed: int = 0
) -> tuple[MetaAlgorithm, Callable[..., Any]]:
  """Joins algorithms that learn the same parameters from tasks of different shapes.

  Args:
    algorithms: the members; states and metrics must agree in structure and shape, so
      every member takes the same number of tasks per step.
    samplers: `sampler(step, data) -> tasks`, one for each algorithm; a `part` argument
      is passed on to them, see `jsharp.training.devices.on_devices`.
    seed: decides which member takes which step. It may equal the tasks' seed, since the
      keys come from a separate stream, "member" of `jsharp.data.task_key`.

  Returns:
    An algorithm and its sampler. `init` and `adapt` are those of the first member; to
    adapt to other shapes use the other members.

  Raises:
    ValueError: if there is no member, or not one sampler per algorithm.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from jsharp.algorithms import maml
    >>> from jsharp.types import Batch, Task
    >>> def member(size):
    ...   batch = Batch(None, jnp.ones((1, size)))
    ...   return lambda step, data: Task(batch, batch)
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    >>> both, draw = mixture([algorithm, algorithm], [member(2), member(5)])
    >>> state, metrics = jax.jit(both.step)(both.init(0.0), draw(0, None))
    >>> int(state.step), metrics["loss"].shape
    (1, (1,))
  """
  if not algorithms or len(algorithms) != len(samplers):
    raise ValueError(
      f"mixture needs one sampler for each of at least one algorithm, got "
      f"{len(algorithms)} algorithms and {len(samplers)} samplers"
    )

  def member(number: Any) -> jax.Array:
    key = task_key(seed, number, stream="member")
    return jax.random.randint(key, (), 0, len(algorithms))

  def step(state: MetaState, step_and_data: Any) -> tuple[MetaState, Metrics]:
    number, data, part = step_and_data

    def branch(algorithm: MetaAlgorithm, sampler: SampleFn) -> Callable[..., Any]:
      return lambda state: algorithm.step(state, sampler(number, data, **part))

    branches = [branch(*pair) for pair in zip(algorithms, samplers, strict=True)]
    return jax.lax.switch(member(number), branches, state)

  def draw(step: Any, data: Any, **part: Any) -> Any:
    return step, data, part

  def reads(step: Any, data: Any, **part: Any) -> None:
    def branch(sampler: SampleFn) -> Callable[[], tuple[()]]:
      return lambda: (sampler(step, data, **part), ())[1]

    jax.lax.switch(member(step), [branch(sampler) for sampler in samplers])

  draw.reads = reads  # type: ignore[attr-defined]  # For jsharp.data.prefetch.
  return algorithms[0]._replace(step=step), draw
