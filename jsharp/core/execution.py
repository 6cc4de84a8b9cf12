"""How a computation is executed, as one value that is passed as an argument.

Apart from the platform (CPU or accelerator), the library never inspects the machine to
decide how to compute. Programs call `jsharp.training.devices.execution_for` once to get
what suits their machine and pass it on, so a trace depends only on its arguments.
"""

import dataclasses
from typing import Literal, get_args

from jsharp._checks import check_choice, check_chunk, check_count
from jsharp.types import Chunk, Convolution

InnerSteps = Literal["unrolled", "scanned", "recomputed"]
"""How inner steps are repeated, see `Execution`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
  """How a computation is executed; results agree up to rounding.

  The defaults suit an accelerator, and a CPU whose devices have several cores each.

  Attributes:
    task_chunk: how many tasks are computed at a time; a smaller number needs less
      memory. None chooses by platform: one on a CPU, all elsewhere. "in_order" takes
      one at a time and adds in the order of the tasks. See `jsharp.over_tasks`.
    inner_steps: how inner steps are repeated. "unrolled" unrolls them, or scans if
      there are more than `max_unrolled`. "scanned" is a loop with one body, which
      compiles faster and runs slower. "recomputed" is that loop with each step
      recomputed in the backward pass: on a device with one core, this takes less time
      than writing and reading the intermediate results.
    max_unrolled: the largest number of steps that "unrolled" unrolls. Beyond it,
      compilation costs more than unrolling saves.
    convolution: the form of the network's convolutions. Algorithms do not read it: give
      it to the network, `Conv4(..., convolution=execution.convolution)`. See
      `jsharp.nn.conv2d`.
    single_threaded: whether each device computes with one thread. On a CPU, matrix
      products are then not divided among threads, and an evaluation is divided among
      the devices.

  Raises:
    ValueError: if a value is not one of these.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from jsharp import maml
    >>> loss_fn = lambda w, batch: (jnp.mean((w - batch.targets) ** 2), {})
    >>> algorithm = maml(
    ...   loss_fn, optax.sgd(0.25), optax.sgd(0.5), num_inner_steps=3,
    ...   execution=Execution(task_chunk=4, inner_steps="recomputed"))
  """

  task_chunk: Chunk = None
  inner_steps: InnerSteps = "unrolled"
  max_unrolled: int = 10
  convolution: Convolution = "auto"
  single_threaded: bool = False

  def __post_init__(self) -> None:
    """Checks the values."""
    check_chunk("task_chunk", self.task_chunk)
    check_choice("inner_steps", self.inner_steps, get_args(InnerSteps))
    check_count("max_unrolled", self.max_unrolled, minimum=0)
    check_choice("convolution", self.convolution, get_args(Convolution))


PORTABLE = Execution(convolution="direct")
"""For exports: the same operations on every platform and for any number of examples."""
