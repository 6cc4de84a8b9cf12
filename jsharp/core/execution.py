"""How a computation is executed, as one value that is passed along."""

import dataclasses

from jsharp.types import Chunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
  """How a computation is executed, never what it computes: results agree to rounding.

  Attributes:
    task_chunk: how many tasks are computed at a time, the memory dial. None takes what
      suits the backend: one on a CPU, all elsewhere. "in_order" takes one at a time
      and adds in the order of the tasks. See `jsharp.over_tasks`.

  Example:
    >>> Execution(task_chunk=4).task_chunk
    4
  """

  task_chunk: Chunk = None
