"""The types that all of jsharp shares: batches, tasks, state and algorithms.

All of them are NamedTuples, so they are pytrees: `jax.tree.map`, `jax.jit` and
`jax.vmap` accept them directly. Create and access their fields by name.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Params = Any
"""Any pytree of arrays."""

Metrics = dict[str, jax.Array]
"""Named scalars (or, over tasks, arrays `[num_tasks]`)."""

ApplyFn = Callable[..., Any]
"""`apply_fn(params, inputs) -> outputs`, a pure function."""

LossFn = Callable[[Params, Any], tuple[jax.Array, Metrics]]
"""`loss_fn(params, batch) -> (loss, metrics)`, always with metrics."""

TaskLossFn = Callable[[Params, Any], tuple[jax.Array, Metrics]]
"""`task_loss_fn(params, task) -> (loss, metrics)`."""

AdaptFn = Callable[..., Params]
"""`adapt(params, support, *, num_steps=None, optimizer=None) -> adapted`.

The keywords are static. None means as in training."""

Chunk = int | Literal["in_order"] | None
"""How many tasks are computed at a time, see `jsharp.core.objectives.over_tasks`."""

Convolution = Literal["auto", "auto_winograd", "direct", "im2col", "winograd"]
"""How a convolution is computed, see `jsharp.nn.conv2d`."""

Mask = Callable[[Params], Any]
"""`mask(params) -> pytree of bool` with the structure of `params`."""


class Batch(NamedTuple):
  """Examples of one task.

  Attributes:
    inputs: `[num_examples, ...]`.
    targets: `[num_examples]` int32 labels in `[0, way)`, or
      `[num_examples, ...]` float regression targets.
  """

  inputs: Any
  targets: Any


class Task(NamedTuple):
  """One learning problem: adapt to `support`, evaluate on `query`.

  With an additional leading axis `[num_tasks, ...]` on every array, the same NamedTuple
  holds many tasks; such a variable is called `tasks`.

  Attributes:
    support: the examples that the inner loop adapts to.
    query: the examples of the meta-objective.
  """

  support: Batch
  query: Batch


class Variables(NamedTuple):
  """The parameters and the state of a model, for ordinary training.

  Attributes:
    params: the parameters, which the optimizer changes.
    statistics: state that training passes update and evaluation uses, such as running
      averages of batch normalisation; empty for a model without state.
  """

  params: Params
  statistics: Any


class MetaState(NamedTuple):
  """The state that a meta-learner carries from one meta-step to the next.

  Attributes:
    step: int32 scalar, the number of meta-steps taken.
    params: the meta-learned parameters.
    opt_state: state of the outer optimizer.
  """

  step: jax.Array
  params: Params
  opt_state: Any


class MetaAlgorithm(NamedTuple):
  """A meta-learning algorithm as a bundle of pure functions, to be compiled by `jit`.

  Attributes:
    init: `init(params) -> MetaState`.
    step: `step(state, tasks) -> (MetaState, metrics)`, one meta-step. Metrics
      are per task: `{"loss": [num_tasks], ...}`. There is no random key: all
      randomness is in the sampling of tasks.
    adapt: `adapt(params, support, *, num_steps=None, optimizer=None) -> adapted`, for
      one task. It adapts as in training, unless a keyword gives another number of inner
      steps or another inner optimizer. Both keywords are static. Deployment needs only
      this function, and `jsharp.evaluation.evaluator` measures it.

  `tasks` is a `Task` with a leading axis; in ordinary training
  (`jsharp.algorithms.supervised`) it is a `Batch`, and metrics are per example.
  """

  init: Callable[[Params], MetaState]
  step: Callable[[MetaState, Any], tuple[MetaState, Metrics]]
  adapt: AdaptFn
