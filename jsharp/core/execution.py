"""Stub until the core work is merged."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Execution:
  """How a computation is executed."""

  task_chunk: Any = None
  convolution: str = "auto"
